"""The stage's promises: the same bytes always, whole or absent, nothing bad silently."""

import errno
import json
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from puna.corpus.books import source as books_source
from puna.corpus.clean import clean_in_one_step, clean_source, find_inputs
from puna.corpus.document import Document
from puna.corpus.parquet import read_documents, write_documents
from puna.files import MANIFEST, read_json, sha256_file
from puna.manifest import read_manifest
from puna.stages.stage import Executor, plan_shards, run_stage
from tests.corpus.wikipedia.dumps import page, write_dump
from tests.stages import works

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def books(tmp_path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    for number in range(6):
        words = "\n".join(f"Line {line} of book {number}, about llamas and salt." for line in range(20))
        (folder / f"book{number}.txt").write_text(words, encoding="utf-8")
    return folder


def clean_in_shards(folder: Path, out: Path, workers: int) -> dict:
    shards = plan_shards(find_inputs("books", [folder]), shard_bytes=1)
    return clean_in_one_step("books", shards, out, books_source.Options(), Executor(workers=workers))


def clean_books(folder: Path, out: Path, **options: object) -> dict:
    """Books in one step, without looking for overlap."""
    shards = plan_shards(find_inputs("books", [folder]))
    return clean_in_one_step("books", shards, out, books_source.Options(), Executor(workers=1, **options))


def timeless(value: object) -> object:
    """A record without what a clock decides."""
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key not in ("seconds", "energy")}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def contents(out: Path) -> dict[str, object]:
    """Every file of a stage's output: JSON without seconds and energy, the rest as bytes."""
    return {
        path.name: timeless(read_json(path)) if path.suffix == ".json" else path.read_bytes()
        for path in out.iterdir()
        if path.name != "progress.jsonl"
    }


# ---- the same bytes


def test_one_and_two_workers_write_the_same_bytes(books, tmp_path):
    clean_in_shards(books, tmp_path / "one", workers=1)
    clean_in_shards(books, tmp_path / "two", workers=2)
    one = contents(tmp_path / "one")
    assert len([name for name in one if name.endswith(".parquet")]) == 6
    assert one == contents(tmp_path / "two")


def test_the_fingerprint_is_of_contents_and_not_of_places(books, tmp_path):
    first = clean_books(books, tmp_path / "a")
    moved = books.rename(tmp_path / "elsewhere")
    assert clean_books(moved, tmp_path / "b").fingerprint == first.fingerprint
    (moved / "book0.txt").write_text("Other words, as many as a book must have. " * 9, encoding="utf-8")
    assert clean_books(moved, tmp_path / "c").fingerprint != first.fingerprint


@pytest.mark.parametrize(("workers", "records"), [(1, 0), (1, 2), (2, 0), (2, 3)])
def test_a_killed_stage_ends_with_the_bytes_of_an_undisturbed_one(tmp_path, workers, records):
    inputs = tmp_path / "raw"
    inputs.mkdir()
    for number in range(5):
        (inputs / f"{number}.txt").write_text(f"words of {number}\n" * 5, encoding="utf-8")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "tests.stages.works", str(inputs), str(out), str(workers)]
    with subprocess.Popen(command, cwd=ROOT) as process:
        deadline = time.monotonic() + 30
        # The moment: so many shards done, and another half written.
        while len(list(out.glob("0*.json"))) < records or not list(out.glob(".0*.txt.*.partial")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.002)
        workers_of_it = children(process.pid)
        process.send_signal(signal.SIGKILL)
    assert not (out / MANIFEST).exists()
    assert workers == 1 or workers_of_it
    for worker in workers_of_it:
        wait_until_gone(worker)
    # The resource tracker of the dead process may still be closing; the shards that were done stay.
    finished = {path: path.stat().st_mtime_ns for path in out.glob("0*.json")}
    assert len(finished) >= records

    works.copy_all(inputs, out, workers=1)
    works.copy_all(inputs, tmp_path / "undisturbed", workers=1)
    assert contents(out) == contents(tmp_path / "undisturbed")
    assert {path: path.stat().st_mtime_ns for path in finished} == finished


def children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in listed.read_text().split()] if listed.exists() else []


def wait_until_gone(pid: int) -> None:
    """A worker ends with the process that it worked for."""
    deadline = time.monotonic() + 10
    while True:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return
        if state == "Z":
            return
        assert time.monotonic() < deadline, f"worker {pid} outlives its parent"
        time.sleep(0.02)


# ---- whole or absent


def test_what_a_killed_run_left_never_counts(books, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / ".00000.parquet.4711.partial").write_bytes(b"half")
    (out / "00000.parquet").write_bytes(b"data whose record was not written")
    clean_in_shards(books, out, workers=1)
    clean_in_shards(books, tmp_path / "fresh", workers=1)
    assert contents(out) == contents(tmp_path / "fresh")


def test_what_a_killed_run_left_is_removed_when_the_next_one_begins(books, tmp_path):
    left = [
        tmp_path / "out" / name
        for name in (
            ".00000.parquet.7.partial",
            ".manifest.json.7.partial",
            "dropped/.00000.parquet.7.partial",
        )
    ]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    clean_books(books, tmp_path / "out")
    assert not any(path.exists() for path in left)
    left[1].write_bytes(b"half")
    clean_books(books, tmp_path / "out")
    assert not left[1].exists()


def test_a_finished_stage_is_not_run_again(books, tmp_path):
    first = clean_books(books, tmp_path / "out")
    before = (tmp_path / "out" / "00000.parquet").stat().st_mtime_ns
    assert clean_books(books, tmp_path / "out") == first
    assert (tmp_path / "out" / "00000.parquet").stat().st_mtime_ns == before


def test_a_full_disk_leaves_nothing_that_counts(books, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(pq.ParquetWriter, "write_table", full)
        with pytest.raises(OSError, match="No space left"):
            clean_books(books, out)
    assert {path.name for path in out.iterdir()} == {"plan.json", "progress.jsonl"}
    assert clean_books(books, out).counts["kept"] == 6


@pytest.mark.skipif(sys.platform == "win32", reason="no limits on the size of files")
def test_a_file_that_cannot_grow_is_taken_back(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "book.txt").write_bytes("".join(f"{number:x} " for number in range(200_000)).encode())
    script = (
        "import resource, sys; from pathlib import Path; from tests.corpus.test_clean import clean_books\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "clean_books(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", script, str(raw), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "OSError" in done.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"plan.json", "progress.jsonl"}


def test_a_dead_worker_is_an_error_that_says_how_to_go_on(books, tmp_path):
    shards = plan_shards(find_inputs("books", [books]), shard_bytes=1)
    with pytest.raises(ChildProcessError, match="run the same command again"):
        run_stage("copies", works.die, shards, tmp_path / "out", {}, workers=2)
    assert not (tmp_path / "out" / MANIFEST).exists()


# ---- refusals


def test_another_configuration_is_refused_and_nothing_is_overwritten(books, tmp_path):
    out = tmp_path / "out"
    clean_books(books, out)
    before = contents(out)
    with pytest.raises(ValueError, match=r"begun with another config.*choose another --out"):
        shards = plan_shards(find_inputs("books", [books]))
        run_stage("documents", works.slow_copy, shards, out, {"source": "x"})
    (books / "book9.txt").write_text("one more", encoding="utf-8")
    with pytest.raises(ValueError, match="another inputs"):
        clean_books(books, out)
    assert contents(out) == before


def test_a_corpus_without_documents_is_an_error_and_no_output(tmp_path):
    raw = write_dump(tmp_path / "dump.xml", [page(1, "#REDIRECT [[x]]"), page(2, namespace=4)])
    for _ in range(2):  # run again, it says the same
        with pytest.raises(ValueError, match=r"no wikipedia document was kept .*1 dropped: redirect"):
            clean_source("wikipedia", [raw], tmp_path / "out")
        with pytest.raises(ValueError, match="no finished documents"):
            read_manifest(tmp_path / "out", "documents", "puna corpus")


def test_unknown_sources_and_missing_inputs_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"unknown source 'wiki'.*wikipedia"):
        find_inputs("wiki", [tmp_path])
    with pytest.raises(ValueError, match="nowhere does not exist"):
        find_inputs("books", [tmp_path / "nowhere"])
    with pytest.raises(ValueError, match=r"no books input found.*\*\.txt"):
        find_inputs("books", [tmp_path])


# ---- bad input


def test_bad_input_is_listed_counted_and_does_not_stop_the_rest(tmp_path):
    pages = [page(number) for number in range(20)]
    pages[3] = pages[3].replace("<title>", "<title>\x00")
    raw = write_dump(tmp_path / "dump.xml", pages)
    manifest = clean_source("wikipedia", [raw], tmp_path / "out")
    assert manifest.damaged == 1 and manifest.counts["kept"] == 19
    (line,) = (tmp_path / "out" / "00000.bad.jsonl").read_text(encoding="utf-8").splitlines()
    bad = json.loads(line)
    assert bad["file"] == str(raw) and "XML" in bad["reason"]
    assert raw.read_bytes()[bad["offset"] :].startswith(b"<page>\n    <title>\x00")


def test_more_bad_input_than_allowed_stops_the_stage_without_output(tmp_path):
    pages = [page(number) for number in range(8)]
    pages[2:4] = [text.replace("<title>", "<title>\x00") for text in pages[2:4]]
    raw = write_dump(tmp_path / "dump.xml", pages)
    with pytest.raises(ValueError, match=r"2 of 8 records are damaged.*--max-bad 0\.1.*bad\.jsonl"):
        clean_source("wikipedia", [raw], tmp_path / "out")
    assert not (tmp_path / "out" / MANIFEST).exists()
    assert (
        clean_source("wikipedia", [raw], tmp_path / "out", executor=Executor(max_bad=0.3)).counts["kept"] == 6
    )


# ---- records


def test_the_manifest_says_what_went_in_and_what_came_out(books, tmp_path):
    (books / "short.txt").write_text("Too short.", encoding="utf-8")
    out = tmp_path / "out"
    manifest = clean_books(books, out)
    assert manifest == read_manifest(out, "documents", "puna corpus")
    options = asdict(books_source.Options())
    assert manifest.config == {"source": "books", "options": options}
    assert manifest.counts["dropped: too short"] == 1
    assert {Path(item.path).name: item.sha256 for item in manifest.inputs} == {
        path.name: sha256_file(path) for path in books.iterdir()
    }
    (output,) = manifest.outputs
    path = out / output.path
    assert (output.sha256, output.bytes) == (sha256_file(path), path.stat().st_size)
    documents = list(read_documents(path))
    assert manifest.counts["kept"] == len(documents) == 6
    assert manifest.counts["characters"] == sum(len(document.text) for document in documents)


def test_what_was_dropped_is_kept_beside_when_asked(books, tmp_path):
    (books / "short.txt").write_text("Too short.", encoding="utf-8")
    plain = clean_books(books, tmp_path / "plain")
    out = tmp_path / "out"
    manifest = clean_books(books, out, keep_dropped=True)
    (row,) = pq.read_table(out / "dropped" / "00000.parquet").to_pylist()
    assert (row["source"], row["reason"], row["detail"]) == ("books", "too short", "short")
    assert json.loads(row["record"]) == {"name": "short", "text": "Too short."}
    assert manifest.fingerprint == plain.fingerprint  # the documents are the same
    with pytest.raises(ValueError, match="another keep_dropped"):
        clean_books(books, out)


def test_documents_come_back_as_they_were_written(tmp_path, monkeypatch):
    monkeypatch.setattr("puna.corpus.parquet.ROW_GROUP_CHARACTERS", 100)
    written = [
        Document(f"d{number}", "books", "née 🦙\n" * (number + 1), {"title": "Ñ", "n": number})
        for number in range(50)
    ]
    write_documents(iter(written), tmp_path / "x.parquet")
    assert list(read_documents(tmp_path / "x.parquet", batch_rows=7)) == written
    assert pq.ParquetFile(tmp_path / "x.parquet").num_row_groups > 1


def test_shards_hold_every_input_once_in_order(books):
    inputs = find_inputs("books", [books])
    for size in (1, 1500, 10**9):
        shards = plan_shards(inputs, size)
        assert [path for shard in shards for path in shard.inputs] == inputs
        assert all(shard.bytes >= size for shard in shards[:-1])
        assert [shard.name for shard in shards] == sorted({shard.name for shard in shards})


def test_progress_is_written_beside_the_output(books, tmp_path):
    clean_books(books, tmp_path / "out")
    lines = (tmp_path / "out" / "progress.jsonl").read_text(encoding="utf-8").splitlines()
    last = json.loads(lines[-1])
    assert last["done"] == last["total"] == sum(path.stat().st_size for path in books.iterdir())
