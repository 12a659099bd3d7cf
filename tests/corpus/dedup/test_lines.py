"""Repeated lines are found exactly, whatever the shards, the ranges and the order of work."""

import hashlib
import string
import unicodedata
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.corpus.dedup.hash_ranges import RangeWriter
from puna.corpus.dedup.lines import (
    LINE_FIELDS,
    line_hashes,
    line_records,
    normalise,
    repeated_in,
    without_lines,
    write_repeated,
)
from puna.stages.stage import Shard

# Letters and digits of many scripts, punctuation of both kinds, controls, and what lower-cases oddly.
ALPHABET = (
    string.printable + "éÉñßΣςσİıǅ“”’…–—«»、。！？１２٣٤𝟘𝟙ⅷ²\u0300\u0085\u00a0\u00ad\u200b\u2028𐄀🦙語字йЙ"
)
stripped = st.text(ALPHABET, max_size=60).map(lambda line: line.replace("\n", " ").strip())


def oracle(line: str) -> str:
    """The definition, a character at a time."""
    result = []
    for character in line.strip().lower():
        point = ord(character)
        if point < 32 or 127 <= point <= 159 or character in "´∶━►":
            continue
        if point >= 128 and unicodedata.category(character).startswith("P"):
            continue
        result.append("0" if unicodedata.category(character) == "Nd" else character)
    return "".join(result)


@pytest.mark.parametrize(
    ("line", "normal"),
    [
        ("  Hello, World! 1234 ", "hello, world! 0000"),
        ("Élan “quoted” – 1…", "élan quoted  0"),
        ("a\tb\x7fc\x9dd", "abcd"),
        ("١٢٣ 𝟙", "000 0"),
        ("", ""),
    ],
)
def test_lines_that_differ_in_case_digits_and_punctuation_beyond_ascii_are_one(line, normal):
    assert normalise(line) == normal


@given(st.text(ALPHABET.replace("\n", "")))
def test_normalising_is_its_definition(line):
    assert normalise(line) == oracle(line)


@settings(max_examples=200)
@given(st.lists(st.lists(stripped, min_size=1).map("\n".join), min_size=1, max_size=4))
def test_hashes_of_many_lines_are_the_first_eight_bytes_of_sha1_of_each(texts):
    expected = [
        int.from_bytes(hashlib.sha1(oracle(line).encode()).digest()[:8], "big")
        for text in texts
        for line in text.split("\n")
    ]
    assert line_hashes(texts).tolist() == expected


lines_of_shards = st.lists(
    st.lists(st.sampled_from(["a", "b", "c", "Menu 1", "Menu 2", "d", "e", "f"]), max_size=12),
    min_size=1,
    max_size=5,
)


@settings(max_examples=25, deadline=None)
@given(
    shards=lines_of_shards, keep_first=st.booleans(), n_ranges=st.sampled_from([1, 4]), run=st.integers(1, 99)
)
def test_what_is_removed_is_what_counting_all_lines_in_memory_says(
    tmp_path_factory, shards, keep_first, n_ranges, run
):
    folder = tmp_path_factory.mktemp("lines")
    files = []
    for shard, lines in enumerate(shards):
        files.append(folder / f"{shard}.ranges")
        with RangeWriter(files[-1], LINE_FIELDS, n_ranges, run_bytes=run) as writer:
            for place in range(0, len(lines), 3):
                hashes = line_hashes(["\n".join(lines[place : place + 3])])
                writer.add(line_records(hashes, shard, place))
    ranges = [Shard(f"range-{number:05d}", ()) for number in range(n_ranges)]
    done = [write_repeated(files, keep_first, ["removed", "lines"], shard, folder) for shard in ranges]
    places = [path for item in done for path in item["outputs"]]
    assert sum(item["counts"]["lines"] for item in done) == sum(map(len, shards))

    counts = Counter(normalise(line) for lines in shards for line in lines)
    seen: set[str] = set()
    for shard, lines in enumerate(shards):
        removed = []
        for place, line in enumerate(map(normalise, lines)):
            if counts[line] > 1 and not (keep_first and line not in seen):
                removed.append(place)
            seen.add(line)
        assert repeated_in(places, shard).tolist() == removed


def test_lines_are_taken_out_by_their_numbers():
    assert without_lines("a\nb\nc\nd", np.array([0, 2])) == "b\nd"
    assert without_lines("a", np.array([0])) == ""
