"""Shards hold every document once, whole, in order, in the same bytes however they were made."""

import hashlib
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.cli import main
from puna.corpus.parquet import read_documents
from puna.manifest import load_manifest
from puna.tokens.shards import hold_out, npy_file, token_dtype, write_shards


@pytest.fixture
def books(make, tmp_path):
    texts = [make.prose(seed, 20 + 40 * (seed % 3)) for seed in range(30)]
    return make.documents(tmp_path / "books", "books", texts, files=3)


@pytest.fixture
def github(make, tmp_path):
    return make.documents(
        tmp_path / "github", "github", [make.prose(seed, 50) for seed in range(60, 70)], files=2
    )


def data_bytes(directory):
    """Every data file and its digest, and the manifest but for what tells time and place."""
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.glob("*.npy")}
    manifest = load_manifest(directory / "manifest.json")
    return files, manifest.fingerprint, manifest.details["sources"], manifest.counts


def documents_in(directory, manifest, source, split, tokenizer):
    """The texts of a split: between <s> and </s>, nothing outside."""
    texts = []
    for name in manifest.details["sources"][source][split]:
        ids = np.load(directory / name, mmap_mode="r").tolist()
        while ids:
            assert ids[0] == 1
            end = ids.index(2)
            texts.append(tokenizer.decode(ids[1:end]))
            ids = ids[end + 1 :]
    return texts


def test_every_document_is_there_once_between_bos_and_eos(books, github, small_tokenizer, tmp_path):
    out = tmp_path / "out"
    manifest = write_shards([books, github], small_tokenizer.path, out, workers=1)
    for source, directory in (("books", books), ("github", github)):
        texts = [
            document.text for file in sorted(directory.glob("*.parquet")) for document in read_documents(file)
        ]
        train = documents_in(out, manifest, source, "train", small_tokenizer)
        held_out = documents_in(out, manifest, source, "val", small_tokenizer)
        assert held_out and sorted(train + held_out) == sorted(texts)
        assert train == [text for text in texts if text in train]


def test_the_manifest_counts_what_is_there(books, github, small_tokenizer, tmp_path):
    out = tmp_path / "out"
    manifest = write_shards([books, github], small_tokenizer.path, out, workers=1)
    assert list(manifest.details["sources"]) == ["github", "books"]  # Table 1's order
    for source, entry in manifest.details["sources"].items():
        for split in ("train", "val"):
            assert entry[f"{split}_tokens"] == sum(len(np.load(out / name)) for name in entry[split])
        texts = {
            split: documents_in(out, manifest, source, split, small_tokenizer) for split in ("train", "val")
        }
        assert entry["documents"] == len(texts["train"]) + len(texts["val"])
        assert entry["val_documents"] == len(texts["val"])
        assert entry["val_bytes"] == sum(len(text.encode()) for text in texts["val"])
        assert entry["bytes"] == sum(len(text.encode()) for text in texts["train"] + texts["val"])
    assert manifest.inputs[-1].fingerprint == small_tokenizer.fingerprint
    assert (manifest.details["vocab_size"], manifest.details["dtype"]) == (512, "uint16")
    assert (out / "tokenizer.model").read_bytes() == small_tokenizer.path.read_bytes()
    held = sum(entry["train_tokens"] + entry["val_tokens"] for entry in manifest.details["sources"].values())
    assert manifest.counts == {"documents": 40, "tokens": held}


def test_any_number_of_workers_writes_the_same_bytes(books, github, small_tokenizer, tmp_path):
    for workers in (1, 2):
        write_shards([books, github], small_tokenizer.path, tmp_path / f"{workers}", workers=workers)
    assert data_bytes(tmp_path / "1") == data_bytes(tmp_path / "2")


@pytest.mark.parametrize("survived", [0, 1, 4])
def test_a_killed_run_ends_with_the_bytes_of_an_undisturbed_one(
    make, books, github, small_tokenizer, tmp_path, survived
):
    out = tmp_path / "out"
    make.killed_run(
        "import os, signal\n"
        "from pathlib import Path\n"
        "from puna.tokens import shards\n"
        "shards.GROUP_CHARACTERS = 100\n"
        "def groups(documents, *options, every=shards.by_size, calls=[]):\n"
        "    calls.append(1)\n"
        "    for place, group in enumerate(every(documents, *options)):\n"
        f"        if len(calls) > {survived} and place == 2:\n"  # in the middle of a file
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "        yield group\n"
        "shards.by_size = groups\n"
        f"docs = [Path({str(books)!r}), Path({str(github)!r})]\n"
        f"shards.write_shards(docs, Path({str(small_tokenizer.path)!r}), Path({str(out)!r}), workers=1)\n"
    )
    assert not (out / "manifest.json").exists()
    assert len(list(out.glob("0*.json"))) == survived
    kept = {path: path.stat().st_mtime_ns for path in out.glob("0*.npy")}
    write_shards([books, github], small_tokenizer.path, out, workers=1)
    write_shards([books, github], small_tokenizer.path, tmp_path / "undisturbed", workers=1)
    assert data_bytes(out) == data_bytes(tmp_path / "undisturbed")
    assert not list(out.glob(".*.partial"))
    # What was finished was not done again.
    assert kept == {path: path.stat().st_mtime_ns for path in kept}


def test_what_is_done_is_not_done_again_and_another_configuration_is_refused(
    books, small_tokenizer, tmp_path
):
    out = tmp_path / "out"
    done = write_shards([books], small_tokenizer.path, out, workers=1)
    assert write_shards([books], small_tokenizer.path, out, workers=1) == done
    with pytest.raises(ValueError, match="another config"):
        write_shards([books], small_tokenizer.path, out, validation_share=0.2, workers=1)


# ---- the held-out split ------------------------------------------------------------------------


@pytest.mark.parametrize("documents", [2, 3, 40])
@pytest.mark.parametrize("share", [1e-9, 0.5, 1 - 1e-9])
def test_a_source_of_two_documents_or_more_has_both_splits(make, small_tokenizer, tmp_path, documents, share):
    docs = make.documents(tmp_path / "docs", "wikipedia", [f"text {n}" for n in range(documents)], files=2)
    entry = write_shards([docs], small_tokenizer.path, tmp_path / "out", share, workers=1).details["sources"][
        "wikipedia"
    ]
    assert entry["train_tokens"] > 0 and entry["val_tokens"] > 0
    if share < 0.1:
        assert entry["val_documents"] == 1
    if share > 0.9:
        assert entry["val_documents"] == documents - 1


def test_a_source_of_one_document_trains_on_it_and_says_that_nothing_is_held_out(
    make, small_tokenizer, tmp_path
):
    docs = make.documents(tmp_path / "docs", "wikipedia", ["alone"])
    entry = write_shards([docs], small_tokenizer.path, tmp_path / "out", 0.9, workers=1).details["sources"][
        "wikipedia"
    ]
    assert (entry["val"], entry["val_tokens"]) == ([], 0)
    assert entry["train_tokens"] > 2


def test_about_the_asked_share_is_held_out_and_stays_so_when_documents_come(make, small_tokenizer, tmp_path):
    held = []
    for documents in (400, 800):
        docs = make.documents(tmp_path / f"d{documents}", "c4", [f"text {n}" for n in range(documents)])
        out = tmp_path / f"o{documents}"
        manifest = write_shards([docs], small_tokenizer.path, out, 0.1, workers=1)
        held.append(documents_in(out, manifest, "c4", "val", small_tokenizer))
        # 0.1 +- five standard deviations
        assert abs(len(held[-1]) / documents - 0.1) < 5 * (0.1 * 0.9 / documents) ** 0.5
    assert [text for text in held[1] if int(text.split()[1]) < 400] == held[0]


def test_the_split_does_not_depend_on_how_documents_lie_in_files(make, tmp_path):
    texts = ["text"] * 50
    files = [
        sorted(make.documents(tmp_path / f"{count}", "c4", texts, files=count).glob("*.parquet"))
        for count in (1, 7)
    ]
    for share in (1e-9, 0.1, 1 - 1e-9):
        assert hold_out(files[0], share) == hold_out(files[1], share) == hold_out(files[1][::-1], share)


def test_the_command_line_holds_out_what_it_is_told_to(make, small_tokenizer, tmp_path, capsys):
    docs = make.documents(tmp_path / "docs", "c4", [f"text {n}" for n in range(40)])
    arguments = ["--tokenizer", small_tokenizer.path, "--out", tmp_path / "out", "--validation-share", 0.5]
    assert main(["shards", str(docs), *map(str, arguments), "--json"]) == 0
    manifest = json.loads(capsys.readouterr().out)
    assert manifest["config"]["validation_share"] == 0.5
    assert 10 < manifest["details"]["sources"]["c4"]["val_documents"] < 30


# ---- files -------------------------------------------------------------------------------------


@given(lengths=st.lists(st.integers(0, 300), max_size=8), dtype=st.sampled_from(["uint16", "uint32"]))
def test_an_appended_file_is_what_numpy_would_have_saved(tmp_path_factory, lengths, dtype):
    path = tmp_path_factory.mktemp("npy") / "tokens.npy"
    parts = [np.arange(length, dtype=dtype) for length in lengths]
    with npy_file(path, dtype) as append:
        for part in parts:
            append(part)
    whole = np.concatenate([np.array([], dtype), *parts])
    held = np.load(path)
    assert held.dtype == whole.dtype and (held == whole).all()


def test_ids_are_16_bits_wide_below_65536_pieces_and_32_from_there():
    assert token_dtype(65_535) == "uint16"
    assert token_dtype(65_536) == "uint32"


def test_bad_input_is_named(make, books, small_tokenizer, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="no document in"):
        write_shards([make.documents(tmp_path / "none", "books", [])], small_tokenizer.path, out)
    with pytest.raises(ValueError, match="no tokenizer at"):
        write_shards([books], tmp_path / "nothing.model", out)
    with pytest.raises(ValueError, match="validation_share is 2"):
        write_shards([books], small_tokenizer.path, out, validation_share=2)
    odd = make.documents(tmp_path / "odd", "../books", ["a", "b"])
    with pytest.raises(ValueError, match=r"source named '\.\./books'"):
        write_shards([odd], small_tokenizer.path, tmp_path / "odd-out", workers=1)
    (books / "00001.parquet").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"00001.parquet is missing or not the \d+ bytes"):
        write_shards([books], small_tokenizer.path, out)
    assert not (out / "manifest.json").exists()
