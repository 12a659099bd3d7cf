"""A full disk, in every verb that writes: one line that names what could not be written; then a resumed run.

The disk is a real one of 16 MB where the tests may mount one (Linux, as root); elsewhere, and there too, the
size of files is limited, which fails in the same places. What the first try left behind is what the second
one finds.
"""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from puna.cli import main
from tests.conftest import sentences

MEGABYTES = 16
TASK = """
file: seasons.jsonl
prompt: "{question}"
options: choices
gold: label
"""
TINY = (
    "--schedule.steps 2 --schedule.batch-tokens 128 --watch.validate-every 0 --model.context 64 "
    "--model.dim 32 --model.n-layers 1 --model.n-heads 2 --model.ffn-dim 64 --model.vocab-size 512"
)
VERBS = {
    "fetch": "fetch github {here}/dumps --out {out}",
    "corpus": "corpus jsonl {here}/dumps --out {out}",
    "tokenizer": "tokenizer train {here}/books --out {out} --vocab-size 400",
    "shards": "shards {here}/books --tokenizer {tokenizer} --out {out}",
    "train": "train --recipe tiny --data {shards} --out {out} " + TINY,
    "finetune": "finetune --model {here}/run --data {here}/tune.jsonl --out {out} --template puna --steps 2 "
    "--batch-tokens 128 --context 64 --watch.validate-every 0",
    "convert to hf": "convert {here}/run {out} --to hf",
    "convert to meta": "convert {here}/run {out} --to meta",
    "convert to puna": "convert {here}/hf {out} --to puna",
    "convert to gguf": "convert {here}/run {out}.gguf --to gguf",
    "report": "report {here}/run --out {out}.html",
    "model card": "report {here}/run --format md --out {out}.md",
    "eval": "eval --model {here}/run --tasks {here}/seasons.yaml --data {here} --out {out} --device cpu",
    "eval view": "eval view {here}/eval --out {out}.html",
}


@pytest.fixture(scope="module")
def places(shards, tmp_path_factory) -> dict[str, Path]:
    """What the verbs read, written by the verbs."""
    here = tmp_path_factory.mktemp("inputs")
    (here / "dumps").mkdir()
    texts = [json.dumps({"text": sentences(seed, 40)}) for seed in range(60)]
    (here / "dumps" / "texts.jsonl").write_text("\n".join(texts))
    rows = [{"prompt": sentences(seed, 1), "completion": "Salt."} for seed in range(60)]
    (here / "tune.jsonl").write_text("\n".join(map(json.dumps, rows)))
    rows = [{"question": sentences(seed, 1), "choices": ["Salt.", "Snow."], "label": 1} for seed in range(9)]
    (here / "seasons.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (here / "seasons.yaml").write_text(TASK)
    found = {"here": here, "shards": shards, "tokenizer": shards.parent / "tokenizer"}
    for name, out in {"corpus": "books", "train": "run", "convert to hf": "hf", "eval": "eval"}.items():
        assert main(VERBS[name].format(out=here / out, **found).split()) == 0
    return found


@pytest.fixture(scope="module")
def disk(tmp_path_factory) -> Iterator[Path | None]:
    """A small disk, or None where none can be mounted."""
    folder = tmp_path_factory.mktemp("disk")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m", "tmpfs", str(folder)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True).returncode:
        yield None
        return
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def filled(disk: Path, room: int) -> Iterator[None]:
    """The disk has `room` bytes left."""
    filler = disk / "filler"
    with filler.open("wb") as file:
        now = os.statvfs(disk)
        file.write(bytes(max(now.f_bavail * now.f_frsize - room, 0)))
    try:
        yield
    finally:
        filler.unlink()


@contextmanager
def limited(size: int) -> Iterator[None]:
    """No file grows beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("kind", ["disk", "limit"])
@pytest.mark.parametrize("verb", VERBS)
def test_a_full_disk_is_one_line_and_the_same_command_resumes(places, disk, tmp_path, capsys, verb, kind):
    if kind == "disk" and disk is None:
        pytest.skip("no disk can be mounted here")
    folder = disk / verb.replace(" ", "-") if kind == "disk" and disk else tmp_path
    command = VERBS[verb].format(out=folder / "out", **places).split()
    for room in (0, 10_000, 80_000):
        with filled(disk, room) if kind == "disk" else limited(room):
            code = main(command)
        said = capsys.readouterr().err
        assert "Traceback" not in said
        if code == 0 and room:
            return  # it writes less
        assert code == 2
        (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
        full = ["No space left on device", "exceeds this process's limit"][: 1 if kind == "disk" else 2]
        assert any(words in line for words in full) and str(folder) in line and "free some space" in line
    assert main(command) == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("redirect", ["> /dev/full", ">&-"])
def test_a_full_or_closed_standard_output_is_one_line(redirect):
    command = f"{sys.executable} -m puna.cli --help {redirect}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr.startswith("error: ")
