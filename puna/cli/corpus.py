"""Verbs from raw dumps to documents: fetch, corpus."""

from pathlib import Path

from puna.cli.common import Json, print_result


def fetch(source: str, /, *, json: Json = False) -> int:
    """Download a source's sample corpus, or a small model, checked against pinned SHA-256 sums.

    Parameters
    ----------
    source
        wikipedia, books or github; or the model smollm2.
    """
    from puna.corpus.samples import MODELS, fetch_sample

    folder = fetch_sample(source)
    step = f"puna corpus {source} {folder} --out documents/{source}"
    if source in MODELS:
        step = f"puna convert {next(folder.glob('*.gguf'))} models/{source} --to puna"
    print_result({"source": source, "path": str(folder)}, json, [f"{source}: {folder}", f"next: {step}"])
    return 0


def corpus(
    source: str,
    inputs: list[Path],
    /,
    *,
    out: Path,
    workers: int | None = None,
    max_bad: float = 0.1,
    json: Json = False,
) -> int:
    """Clean raw dumps into documents (Parquet).

    Parameters
    ----------
    source
        wikipedia, books or github.
    inputs
        Files, or folders that are searched for the source's files.
    out
        The directory to write.
    workers
        Processes; all cores when not given. The output is the same for any number.
    max_bad
        The share of damaged records above which the stage is an error.
    """
    from puna.corpus.stage import clean_source
    from puna.files import human_bytes, human_seconds

    manifest = clean_source(source, inputs, out, workers, max_bad)
    counts = manifest["counts"]
    lines = [f"{count:>12,}  {reason}" for reason, count in counts.items()]
    lines += [f"{manifest['bad']:>12,}  damaged (see {out}/*.bad.jsonl)"] if manifest["bad"] else []
    lines += [
        f"{out}: {human_bytes(manifest['bytes'])} in {human_seconds(manifest['seconds'])} of work",
        f"next: puna tokenizer train {out} --out tokenizer",
    ]
    print_result(manifest, json, lines)
    return 0
