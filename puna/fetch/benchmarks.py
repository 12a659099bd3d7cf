"""Original files of benchmarks, from their publishers: what `puna fetch eval` downloads.

Where only an archive is published, its address is printed; unpacked below the same directory, it is read.
"""

from puna.fetch.http import Item

GITHUB = "https://raw.githubusercontent.com"

# Folder -> (repository and folder in it, file -> SHA-256).
FILES: dict[str, tuple[str, dict[str, str]]] = {
    "humaneval": (
        "openai/human-eval/master/data",
        {"HumanEval.jsonl.gz": "b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef"},
    ),
    "gsm8k": (
        "openai/grade-school-math/master/grade_school_math/data",
        {"test.jsonl": "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14"},
    ),
    "crows_pairs": (
        "nyu-mll/crows-pairs/master/data",
        {"crows_pairs_anonymized.csv": "dfb36986ce0502abbaf7055b9176da3d08d48e07df1251991b5dfbcbceab9d0c"},
    ),
    "winogender": (
        "rudinger/winogender-schemas/master/data",
        {
            "all_sentences.tsv": "bd69da16bf228cb8df63fd0843aec2d8b5c36a7f21bf8c7b168bcc83932556c8",
            "occupations-stats.tsv": "3f7f37c16381a70571356982ea7fe613ac700ad04a6d3b19b9f2be18248df567",
        },
    ),
    "piqa": (
        "ybisk/ybisk.github.io/master/piqa/data",
        {
            "valid.jsonl": "93503cc97c679e459b065c3d13e848282e44b2a25213985bed3e5d458abef72d",
            "valid-labels.lst": "b4192dc3a2a0363d9d60ccf79800cbbe2f32ebb17726efdde6970e0b8131bceb",
        },
    ),
    "nq_open": (
        "google-research-datasets/natural-questions/master/nq_open",
        {
            "NQ-open.dev.jsonl": "f15567f38099f3615f5b8a685c0aef449c11ad90d3da3735e8d1b98115b40616",
            "NQ-open.efficientqa.dev.1.1.jsonl": (
                "0ad45e2fa9fd32d10b3cf08c63e6d22f97ba1a0ce44ea98040f4c18bce7e268d"
            ),
        },
    ),
    # Re-serialised copies exist with other digests; the rows are checked when they are read.
    "hellaswag": ("rowanz/hellaswag/master/data", {"hellaswag_val.jsonl": ""}),
    "truthfulqa": ("sylinrl/TruthfulQA/main", {"TruthfulQA.csv": ""}),
    "mbpp": (
        "google-research/google-research/master/mbpp",
        {"mbpp.jsonl": "0b5e07b5b40fedd01c57b7c9177b79f8b2eebd72c304c928605d91a7237d2f33"},
    ),
}
ARCHIVES = {
    "mmlu": "https://people.eecs.berkeley.edu/~hendrycks/data.tar",
    "math": "https://people.eecs.berkeley.edu/~hendrycks/MATH.tar",
    "race": "https://www.cs.cmu.edu/~glai1/data/race/RACE.tar.gz",
    "arc": "https://ai2-public-datasets.s3.amazonaws.com/arc/ARC-V1-Feb2018.zip",
    "openbookqa": "https://ai2-public-datasets.s3.amazonaws.com/open-book-qa/OpenBookQA-V1-Sep2018.zip",
    "winogrande": "https://storage.googleapis.com/ai2-mosaic/public/winogrande/winogrande_1.1.zip",
    "siqa": "https://storage.googleapis.com/ai2-mosaic/public/socialiqa/socialiqa-train-dev.zip",
    "boolq": "https://dl.fbaipublicfiles.com/glue/superglue/data/v2/BoolQ.zip",
    "triviaqa": "https://nlp.cs.washington.edu/triviaqa/data/triviaqa-rc.tar.gz",
    "realtoxicityprompts": (
        "https://ai2-public-datasets.s3.amazonaws.com/realtoxicityprompts/realtoxicityprompts-data.tar.gz"
    ),
}


def items(folder: str, base: str = GITHUB) -> list[Item]:
    """The files of one benchmark's folder."""
    place, files = FILES[folder]
    return [
        Item(f"{base}/{place}/{name}", name, digest=("sha256", digest) if digest else None)
        for name, digest in files.items()
    ]
