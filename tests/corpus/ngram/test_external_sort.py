"""Sorting on disk: nothing lost, buckets in order, of about the size that was asked for."""

from itertools import pairwise

import numpy as np
import pytest

from puna.corpus.ngram.external_sort import Buckets, append, begins_of, pieces, split_keys

RECORD = np.dtype([("key", "<u8"), ("value", "<u4")])


@pytest.mark.parametrize("skewed", [False, True])
def test_buckets_hold_everything_once_in_order_of_their_keys(tmp_path, skewed):
    rng = np.random.default_rng(0)
    records = np.zeros(5000, RECORD)
    records["key"] = rng.zipf(1.4, 5000) if skewed else rng.integers(0, 1 << 63, 5000)
    records["value"] = np.arange(5000)
    splits = split_keys(records["key"][::7], records.nbytes, 6000)
    buckets = Buckets(tmp_path / "buckets", RECORD, splits)
    for part in np.array_split(records, 9):
        buckets.add(part, part["key"])
    taken = [buckets.take(number) for number in range(buckets.count)]
    assert sorted(np.concatenate(taken)["value"]) == list(range(5000))
    held = [part["key"] for part in taken if len(part)]
    assert all(before.max() < after.min() for before, after in pairwise(held))
    if not skewed:
        assert max(part.nbytes for part in taken) < 2 * 6000
    assert not list((tmp_path / "buckets").iterdir())


def test_a_file_is_read_in_pieces_that_make_the_whole(tmp_path):
    records = np.arange(1000, dtype=np.uint64)
    append(tmp_path / "file", records[:600])
    append(tmp_path / "file", records[600:])
    parts = list(pieces(tmp_path / "file", records.dtype, 8 * 130))
    assert [start for start, _ in parts] == list(range(0, 1000, 130))
    assert (np.concatenate([part for _, part in parts]) == records).all()


def test_groups_begin_where_any_column_changes():
    assert begins_of(np.array([1, 1, 2, 2, 2]), np.array([0, 0, 0, 1, 1])).tolist() == [0, 2, 3]
