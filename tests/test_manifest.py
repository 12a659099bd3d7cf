"""A manifest comes back as it was written; those of before format 1 are read; code versions are of a wing."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from puna.carbon import Energy
from puna.files import MANIFEST, write_json
from puna.manifest import Input, Manifest, Output, load_manifest, read_manifest, write_manifest

PACKAGE = Path(__file__).parent.parent / "puna"
WHOLE = Manifest(
    stage="documents",
    fingerprint="0123456789abcdef",
    config={"source": "books"},
    code_version="0.1.0+1a2b3c4d",
    counts={"kept": 3, "dropped: too short": 1},
    damaged=2,
    inputs=(
        Input("raw/a.txt", 12, "ab" * 32),
        Input("steps/pages", stage="pages", fingerprint="fedcba9876543210"),
    ),
    outputs=(Output("00000.parquet", 345, "cd" * 32),),
    bytes=345,
    seconds=1.5,
    energy=Energy(
        2.5, 2.5, False, "5 W per busy CPU, typical", "no counter", 5.0, 1.8e6, 1.1, 0.385, 0.00106
    ),
    details={"sites": {"a.com": 6}},
)


def test_a_manifest_comes_back_as_it_was_written(tmp_path):
    write_manifest(tmp_path, WHOLE)
    assert load_manifest(tmp_path / MANIFEST) == WHOLE
    assert json.loads((tmp_path / MANIFEST).read_text())["format"] == 1


@pytest.mark.parametrize("energy", [{}, {"energy": None}])
def test_manifests_of_before_the_record_of_energy_are_read(tmp_path, energy):
    values = WHOLE.to_json()
    del values["energy"]
    write_json(tmp_path / MANIFEST, values | energy)
    assert load_manifest(tmp_path / MANIFEST) == replace(WHOLE, energy=None)


def test_a_directory_counts_only_with_the_manifest_of_its_stage(tmp_path):
    with pytest.raises(ValueError, match=r"holds no finished shards .*make it with: puna shards"):
        read_manifest(tmp_path, "shards", "puna shards")
    write_manifest(tmp_path, WHOLE)
    with pytest.raises(ValueError, match=r"holds 'documents', not 'shards'; make it with: puna shards"):
        read_manifest(tmp_path, "shards", "puna shards")
    assert read_manifest(tmp_path, "documents", "puna corpus") == WHOLE


@pytest.mark.parametrize(
    ("values", "trouble"),
    [
        ([], "is not a manifest"),
        ({"counts": {}}, "is not a manifest"),
        ({"stage": "shards", "format": 2}, r"has format 2; .* update puna"),
        ({"stage": "shards", "format": 1}, "is malformed"),
        ({**WHOLE.to_json(), "colour": "red"}, "is malformed"),
        ({"stage": "shards", "outputs": [{"bytes": "many"}]}, "is malformed"),
    ],
)
def test_what_is_not_a_manifest_is_refused(tmp_path, values, trouble):
    write_json(tmp_path / MANIFEST, values)
    with pytest.raises(ValueError, match=f"{MANIFEST} {trouble}"):
        load_manifest(tmp_path / MANIFEST)


def test_manifests_before_format_1_are_read(tmp_path):
    old = {
        "stage": "shards",
        "fingerprint": "0123456789abcdef",
        "config": {"dtype": "uint16"},
        "code_version": "0.1.0+1a2b3c4d",
        "counts": {"documents": 3, "tokens": 99},
        "bad": 0,
        "bytes": 345,
        "seconds": 1.5,
        "inputs": [{"path": "docs/00000.parquet", "bytes": 12, "sha256": "ab" * 32}],
        "outputs": [{"path": "00000.books.train.npy", "bytes": 345, "sha256": "cd" * 32}],
        "vocab_size": 512,
        "tokenizer": {"path": "tokenizer/tokenizer.model", "fingerprint": "7e" * 32},
        "documents": [{"path": "docs", "fingerprint": "fedcba9876543210"}],
    }
    write_json(tmp_path / MANIFEST, old)
    shards = read_manifest(tmp_path, "shards", "puna shards")
    assert shards.inputs == (
        Input("docs/00000.parquet", 12, "ab" * 32),
        Input("docs", stage="documents", fingerprint="fedcba9876543210"),
        Input("tokenizer/tokenizer.model", stage="tokenizer", fingerprint="7e" * 32),
    )
    assert shards.outputs == (Output("00000.books.train.npy", 345, "cd" * 32),)
    assert (shards.counts["tokens"], shards.bytes, shards.details) == (99, 345, {"vocab_size": 512})

    run = {"stage": "run", "inputs": [{"path": "shards", "fingerprint": "ab"}], "validation": {"loss": 3.2}}
    write_json(tmp_path / MANIFEST, run)
    read = load_manifest(tmp_path / MANIFEST)
    assert read.inputs == (Input("shards", stage="shards", fingerprint="ab"),)
    assert read.details == {"validation": {"loss": 3.2}}

    file = {"name": "a.gz", "url": "https://example.org/a.gz", "bytes": 5, "sha256": "ab", "md5": "cd"}
    write_json(tmp_path / MANIFEST, {"stage": "fetch", "source": "books", "files": [file]})
    fetched = load_manifest(tmp_path / MANIFEST)
    assert (fetched.inputs, fetched.outputs) == ((Input(file["url"]),), (Output("a.gz", 5, "ab"),))
    assert "md5:cd" in fetched.details["published"]["a.gz"]


def test_the_code_version_is_that_of_the_wing_that_does_the_work(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "puna", ignore=shutil.ignore_patterns("__pycache__"))

    def versions() -> dict[str, str]:
        code = (
            "import json; from puna.files import code_version as version; "
            "print(json.dumps({wing: version(wing) for wing in ('corpus', 'tokens', 'train', 'formats')}))"
        )
        run = [sys.executable, "-c", code]
        printed = subprocess.run(run, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True)
        return json.loads(printed.stdout)

    def changed(file: str) -> set[str]:
        before = versions()
        with (tmp_path / "puna" / file).open("a") as source:
            source.write("# a typo is fixed\n")
        return {wing for wing, version in versions().items() if version != before[wing]}

    assert changed("serve/app.py") == set()
    assert changed("corpus/books/source.py") == {"corpus"}
    assert changed("tokens/shards.py") == {"tokens"}
    assert changed("stages/stage.py") == {"corpus", "tokens"}
    assert changed("kernels/attention.cpp") == {"train"}
    assert changed("model/llama.py") == {"train", "formats"}
