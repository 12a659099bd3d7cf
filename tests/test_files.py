"""Files are whole or absent, names are of contents, errors name the file and the mend."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.files import (
    atomic_directory,
    atomic_file,
    cache_dir,
    fingerprint,
    human_bytes,
    human_seconds,
    read_json,
    remove_partials,
    sha256_file,
    write_json,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abcé", max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(value=JSON)
def test_a_fingerprint_survives_a_trip_through_json(value):
    assert fingerprint(json.loads(json.dumps(value))) == fingerprint(value)


def test_a_fingerprint_is_of_the_value_and_not_of_the_order_of_keys():
    assert fingerprint({"a": 1, "b": [2, "é"]}) == fingerprint({"b": [2, "é"], "a": 1})
    values = [{"a": 1}, {"a": 2}, {"b": 1}, [1], ["1"], 1, "1", None, [], {}, [[1]], [1, 2], [2, 1]]
    assert len({fingerprint(value) for value in values}) == len(values)


def test_a_fingerprint_is_the_same_in_another_process():
    code = "from puna.files import fingerprint; print(fingerprint({'b': [1, 'é'], 'a': None}))"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    printed = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
    assert printed.stdout.decode().strip() == fingerprint({"a": None, "b": [1, "é"]})


def test_the_digest_of_a_file_is_of_all_its_bytes(tmp_path):
    path = tmp_path / "x"
    for data in (b"", b"abc", os.urandom((1 << 20) + 1)):
        path.write_bytes(data)
        assert sha256_file(path) == hashlib.sha256(data).hexdigest()


def test_a_file_appears_only_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "x.txt"
    with atomic_file(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert [item.name for item in path.parent.iterdir()] == ["x.txt"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_file(path) as temporary:
        temporary.write_text("half of the n")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["x.txt"]


def test_a_file_that_nobody_wrote_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_file(tmp_path / "x"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_directory_appears_only_when_it_is_whole_and_replaces_the_old_one(tmp_path):
    path = tmp_path / "d"
    path.mkdir()
    (path / "old").write_text("old")
    with pytest.raises(OSError, match="full"), atomic_directory(path) as temporary:
        (temporary / "half").write_text("half")
        raise OSError("full")
    assert [item.name for item in path.rglob("*")] == ["old"]
    with atomic_directory(path) as temporary:
        (temporary / "a" / "b").mkdir(parents=True)
        (temporary / "a" / "b" / "new").write_text("new")
    assert sorted(item.name for item in path.rglob("*")) == ["a", "b", "new"]
    assert [item.name for item in tmp_path.iterdir()] == ["d"]


def test_only_partials_are_removed(tmp_path):
    (tmp_path / ".x.txt.12.partial").write_text("half")
    (tmp_path / ".d.12.partial").mkdir()
    (tmp_path / ".d.12.partial" / "file").write_text("half")
    (tmp_path / "x.partial").write_text("a user's own")
    (tmp_path / ".hidden").write_text("kept")
    remove_partials(tmp_path)
    assert {item.name for item in tmp_path.iterdir()} == {"x.partial", ".hidden"}


@given(value=JSON)
def test_json_comes_back_as_it_was_written(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "value.json"
    write_json(path, value)
    assert read_json(path) == value


def test_broken_json_is_named_with_the_mend(tmp_path):
    path = tmp_path / "x.json"
    for data in (b'{"a": ', b"\xff\xfe"):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"x\.json is not valid JSON .*run its stage again"):
            read_json(path)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (12_345_678, "12.3 MB"),
        (5e9, "5.0 GB"),
        (7e15, "7000.0 TB"),
    ],
)
def test_bytes_are_told_in_the_largest_sensible_unit(count, text):
    assert human_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (59.9, "59.9 s"), (60, "1 min 0 s"), (200, "3 min 20 s"), (7384, "2 h 3 min")],
)
def test_durations_are_told_in_the_largest_sensible_units(seconds, text):
    assert human_seconds(seconds) == text


def test_a_user_without_a_home_directory_is_told_what_to_set(monkeypatch):
    for name in ("PUNA_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    with pytest.raises(ValueError, match=r"no home directory.*set PUNA_CACHE"):
        cache_dir()
