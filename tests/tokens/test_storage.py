"""Shards in object storage train as local ones do, and are refused where local ones are."""

import functools
import hashlib
import http.server
import shutil
import threading

import fsspec
import numpy as np
import pytest

from puna import files
from puna.files import sha256_file
from puna.tokens.mixture import Mixture


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PUNA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(files, "_WAITS", (0.0, 0.0))
    return tmp_path / "cache" / "copies"


@pytest.fixture
def local(make, tmp_path):
    directory = make.shards(
        tmp_path / "shards",
        {"books": [np.arange(0, 1000), np.arange(1000, 2500)], "c4": [np.arange(10_000, 10_700)]},
        {"books": [np.arange(5000, 5050)]},
        tokenizer=hashlib.sha256(b"a vocabulary").hexdigest(),
    )
    (directory / "tokenizer.model").write_bytes(b"a vocabulary")
    return directory


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Python's own server, which knows no ranges: the hardest that there is to stream from."""

    def log_message(self, *_):
        pass


@pytest.fixture(params=["file", "memory", "http"])
def remote(request, local):
    """The URL of the shards, and a function that puts other bytes there."""
    if request.param == "file":
        yield f"file://{local}", lambda name, data: (local / name).write_bytes(data)
    elif request.param == "memory":
        memory = fsspec.filesystem("memory")
        for path in local.iterdir():
            memory.pipe_file(f"/data/{path.name}", path.read_bytes())
        yield "memory://data", lambda name, data: memory.pipe_file(f"/data/{name}", data)
        memory.rm("/data", recursive=True)
    else:
        handler = functools.partial(Quiet, directory=str(local))
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield (
                f"http://127.0.0.1:{server.server_port}",
                lambda name, data: (local / name).write_bytes(data),
            )
            server.shutdown()


def mixed(*places):
    return Mixture(places, {"books": 1, "c4": 1}, seed=1, context=16, batch_sequences=8)


def test_remote_shards_give_the_batches_of_local_ones(remote, local):
    url, _ = remote
    ours, theirs = mixed(url), mixed(local)
    assert ours.fingerprint == theirs.fingerprint
    for step in (0, 1, 7, 10**6):
        assert (ours.batch(step).inputs == theirs.batch(step).inputs).all()
        assert (ours.batch(step).targets == theirs.batch(step).targets).all()
    held_out = [[batch.inputs for batch in m.validation_windows("books")] for m in (ours, theirs)]
    assert (np.concatenate(held_out[0]) == np.concatenate(held_out[1])).all()
    assert ours.tokenizer.read_bytes() == b"a vocabulary"


def test_a_shard_is_copied_whole_when_it_is_first_read_and_once(remote, cache):
    url, _ = remote
    mixture = mixed(url)
    assert not cache.exists()
    for step in range(40):
        mixture.batch(step)
    copies = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert len(copies) == 3 and all(sha256_file(path) == path.stem for path in copies)
    for step in range(40):
        mixed(url).batch(step)
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == copies


def test_a_remote_shard_that_was_cut_is_refused_at_once(remote, local):
    url, put = remote
    put("00000.c4.train.npy", (local / "00000.c4.train.npy").read_bytes()[:-2])
    with pytest.raises(ValueError, match=r"00000.c4.train.npy is 1,526 bytes, not the 1,528 bytes"):
        mixed(url)


def test_a_remote_shard_that_was_changed_is_refused_and_leaves_nothing(remote, local, cache):
    url, put = remote
    put("00000.c4.train.npy", (local / "00000.c4.train.npy").read_bytes()[:-2] + b"\0\0")
    mixture = mixed(url)
    with pytest.raises(ValueError, match=r"00000.c4.train.npy has SHA-256 .* copy it there again"):
        for step in range(10):
            mixture.batch(step)
    assert not list(cache.glob(".*"))
    assert all(sha256_file(path) == path.stem for path in cache.glob("*.npy"))


def test_what_is_no_finished_directory_of_shards_is_named(remote, local):
    url, put = remote
    put("00000.books.val.npy", b"x" * (local / "00000.books.val.npy").stat().st_size)
    with pytest.raises(ValueError, match=r"00000.books.val.npy is not an array of tokens"):
        next(mixed(url).validation_windows("books"))
    put("manifest.json", b'{"stage": "documents"}')
    with pytest.raises(ValueError, match=f"{url} holds 'documents', not 'shards'"):
        mixed(url)
    put("manifest.json", b"{")
    with pytest.raises(ValueError, match=f"{url}/manifest.json is not valid JSON"):
        mixed(url)
    with pytest.raises(ValueError, match=f"{url}/elsewhere holds no finished shards"):
        mixed(f"{url}/elsewhere")


def test_a_missing_remote_shard_is_named(local):
    (local / "00000.c4.train.npy").unlink()
    with pytest.raises(ValueError, match=r"00000.c4.train.npy is missing"):
        mixed(f"file://{local}")


def test_a_place_that_fails_now_and_then_is_asked_again(local, monkeypatch):
    fails = iter([True, True, False] * 100)
    read = fsspec.implementations.local.LocalFileSystem._open

    def shaky(self, *args, **kwargs):
        if next(fails):
            raise TimeoutError("try again")
        return read(self, *args, **kwargs)

    monkeypatch.setattr(fsspec.implementations.local.LocalFileSystem, "_open", shaky)
    assert mixed(f"file://{local}").batch(0).tokens > 0


def test_a_place_that_cannot_be_reached_is_named(monkeypatch):
    def down(self, *_, **__):
        raise TimeoutError("no answer")

    monkeypatch.setattr(fsspec.implementations.memory.MemoryFileSystem, "_open", down)
    with pytest.raises(ValueError, match=r"memory://data/manifest.json cannot be read \(no answer\)"):
        mixed("memory://data")
    with pytest.raises(ValueError, match="unheard://data is not supported"):
        mixed("unheard://data")


def test_two_local_copies_of_a_directory_are_one_data_set(local, tmp_path):
    shutil.copytree(local, tmp_path / "copy")
    assert mixed(local).fingerprint == mixed(f"file://{tmp_path}/copy").fingerprint
    with pytest.raises(ValueError, match="holds the same shards as"):
        mixed(local, f"file://{tmp_path}/copy")
