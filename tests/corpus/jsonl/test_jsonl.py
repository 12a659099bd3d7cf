"""Documents that exist already come in from JSON lines and Parquet, under any name, up to the mixture."""

import bz2
import gzip
import json
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from puna.cli import main
from puna.corpus.clean import clean_source
from puna.corpus.document import DamagedRecord
from puna.corpus.jsonl.source import Options, read
from puna.corpus.parquet import read_documents
from puna.stages.stage import Executor, plan_shards
from puna.tokens.mixture import Mixture
from tests.conftest import sentences

ONE = Executor(workers=1, max_bad=1.0)
PACKERS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".zst": pa.Codec("zstd").compress}


def write_lines(path: Path, records: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def kept(out: Path) -> dict[str, str]:
    documents = [document for path in sorted(out.glob("0*.parquet")) for document in read_documents(path)]
    ids = {document.id: document.text for document in documents}
    assert len(ids) == len(documents)
    return ids


@pytest.mark.parametrize("suffix", PACKERS)
def test_each_line_is_a_document_however_the_file_is_compressed(tmp_path, suffix):
    path = tmp_path / f"notes.jsonl{suffix}"
    path.write_bytes(PACKERS[suffix](b'{"text": "Llamas hum."}\n\n{"text": "Salt n\xc3\xa9e."}'))
    manifest = clean_source("jsonl", [tmp_path], tmp_path / "out", Options(source="notes"), ONE)
    assert kept(tmp_path / "out") == {f"{path.name}:1": "Llamas hum.", f"{path.name}:3": "Salt née."}
    assert manifest.config["source"] == "notes" and manifest.damaged == 0


def test_each_damaged_line_is_named_with_its_file_line_and_reason(tmp_path):
    lines = [
        (b'{"text": "kept"}', ""),
        (b'{"text": ', "not valid JSON"),
        (b"[1]", "no JSON object"),
        (b'{"body": "x"}', "no field 'text'; the fields are body"),
        (b'{"text": null}', "not a string but null"),
        (b'{"text": 5}', "not a string but 5"),
        (b'{"text": "\xff"}', "not valid JSON"),
        (b'{"text": "\\ud800"}', "half a surrogate pair"),
        (b'{"text": "x", "id": ["y"]}', "neither a string nor an integer"),
        (b'{"text": " \\n"}', ""),
    ]
    path = tmp_path / "notes.jsonl"
    path.write_bytes(b"\n".join(line for line, _ in lines))
    manifest = clean_source("jsonl", [path], tmp_path / "out", Options(id_field="id"), ONE)
    assert (manifest.damaged, manifest.counts["kept"], manifest.counts["dropped: empty"]) == (8, 1, 1)
    listed = (tmp_path / "out" / "00000.bad.jsonl").read_text(encoding="utf-8").splitlines()
    wanted = [(number, reason) for number, (_, reason) in enumerate(lines, 1) if reason]
    for found, (number, reason) in zip(map(json.loads, listed), wanted, strict=True):
        assert found["file"] == str(path)
        assert found["reason"].startswith(f"line {number}: ") and reason in found["reason"]
        assert path.read_bytes()[found["offset"] :].startswith(lines[number - 1][0])


def test_a_file_that_is_cut_off_gives_what_is_intact(tmp_path):
    whole = b"".join(b'{"text": "%d"}\n' % number for number in range(20_000))
    for suffix in (".gz", ".bz2", ".zst"):
        path = tmp_path / f"x.jsonl{suffix}"
        path.write_bytes(PACKERS[suffix](whole)[:-30])
        *rows, last = read(path)
        assert isinstance(last, DamagedRecord) and "cut off" in last.reason
        assert [row.text for row in rows] == [str(number) for number in range(len(rows))]


def test_parquet_with_a_text_column(tmp_path):
    table = pa.table({"body": ["one", None, "three"], "number": [7, 8, 9], "other": [[1], [2], [3]]})
    path = tmp_path / "x.parquet"
    pq.write_table(table, path)
    manifest = clean_source(
        "jsonl", [path], tmp_path / "out", Options(text_field="body", id_field="number"), ONE
    )
    assert kept(tmp_path / "out") == {"7": "one", "9": "three"} and manifest.damaged == 1
    (bad,) = read(path)
    assert isinstance(bad, DamagedRecord) and "no column 'text'; it has body, number" in bad.reason
    path.write_bytes(path.read_bytes()[:-9])
    (bad,) = read(path)
    assert isinstance(bad, DamagedRecord) and "damaged" in bad.reason


def test_bytes_of_a_parquet_string_that_are_not_utf_8_cost_their_row(tmp_path):
    offsets = pa.py_buffer(np.array([0, 1, 2, 3], np.int32).tobytes())
    column = pa.StringArray.from_buffers(3, offsets, pa.py_buffer(b"a\xffc"))
    pq.write_table(pa.table({"text": column}), tmp_path / "x.parquet")
    rows = list(read(tmp_path / "x.parquet"))
    assert isinstance(rows[1], DamagedRecord) and rows[1].reason.startswith("line 2: ")
    assert [row.text for row in rows[::2]] == ["a", "c"]


@pytest.mark.parametrize("workers", [1, 2])
def test_ids_are_unique_over_the_corpus_whatever_the_files_say(tmp_path, workers, monkeypatch):
    monkeypatch.setattr("puna.corpus.clean.plan_shards", partial(plan_shards, shard_bytes=1))
    for folder in ("a", "b"):
        records = [{"text": f"{folder}{number}", "id": number // 2} for number in range(4)]
        write_lines(tmp_path / folder / "x.jsonl", [*records, {"text": f"{folder} without"}])
    out = tmp_path / "out"
    clean_source("jsonl", [tmp_path], out, Options(id_field="id"), Executor(workers=workers))
    assert kept(out) == {
        **{"0": "a0", "a/x.jsonl:2": "a1", "1": "a2", "a/x.jsonl:4": "a3", "a/x.jsonl:5": "a without"},
        **{f"b/x.jsonl:{line}": text for line, text in enumerate(["b0", "b1", "b2", "b3", "b without"], 1)},
    }


def test_options_are_checked(tmp_path):
    path = write_lines(tmp_path / "x.jsonl", [{"text": "x"}])
    for options, message in (
        (Options(source="../x"), "source is '../x'"),
        (Options(text_field=""), "text-field is empty"),
    ):
        with pytest.raises(ValueError, match=message):
            clean_source("jsonl", [path], tmp_path / "out", options)


def test_documents_of_any_name_become_shards_of_a_mixture(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        write_lines(Path(f"raw/{name}.jsonl"), [{"body": sentences(seed, 40)} for seed in range(30)])
    for line in (
        "corpus jsonl raw/a.jsonl --out docs/a --text-field body --source my-notes",
        "corpus jsonl raw/b.jsonl --out docs/b --text-field body --source others",
        "tokenizer train docs/a --out one --vocab-size 300",
        "tokenizer train docs/a docs/b --out tok --vocab-size 300 --weights.my-notes 1 --weights.others 3",
        "shards docs/a docs/b --tokenizer tok --out shards",
    ):
        assert main(line.split()) == 0, capsys.readouterr().err
    assert main(["tokenizer", "train", "docs/a", "docs/b", "--out", "x"]) == 2
    assert "tokenizer train: --weights.my-notes 1" in capsys.readouterr().err
    weights = {"my-notes": 1.0, "others": 3.0}
    mixture = Mixture([Path("shards")], weights, seed=1, context=32, batch_sequences=4)
    assert mixture.shares == {"my-notes": 0.25, "others": 0.75}
