"""Records come back by range, sorted, each once, however they were handed in."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from puna.corpus.dedup.hash_ranges import RangeWriter, range_of, read_range

DTYPE = [("key", "<u8"), ("order", "<u4")]
N_RANGES = 8


def write(path, batches, run_bytes=1 << 20, dtype=DTYPE):
    with RangeWriter(path, dtype, N_RANGES, run_bytes) as writer:
        for batch in batches:
            writer.add(batch)
    return path


records = arrays(np.dtype(DTYPE), st.integers(0, 50))


@settings(max_examples=60, deadline=None)
@given(batches=st.lists(st.lists(records, max_size=4), min_size=1, max_size=3), run_bytes=st.integers(1, 500))
def test_every_record_comes_back_once_in_its_range_and_sorted(tmp_path_factory, batches, run_bytes):
    folder = tmp_path_factory.mktemp("ranges")
    files = [write(folder / f"{number}.ranges", of_file, run_bytes) for number, of_file in enumerate(batches)]
    ranges = [read_range(files, number) for number in range(N_RANGES)]
    for number, found in enumerate(ranges):
        assert (range_of(found["key"], N_RANGES) == number).all()
        assert found.tolist() == sorted(found.tolist())
    given_records = [record for of_file in batches for batch in of_file for record in batch.tolist()]
    assert sorted(given_records) == [record for found in ranges for record in found.tolist()]


def test_ranges_are_the_top_bits_of_the_key():
    keys = np.array([0, 1 << 61, (1 << 61) - 1, (1 << 64) - 1], np.uint64)
    assert range_of(keys, 8).tolist() == [0, 1, 0, 7]
    assert range_of(keys, 1).tolist() == [0, 0, 0, 0]


def test_a_cut_file_is_named(tmp_path):
    batch = np.zeros(100, DTYPE)
    whole = write(tmp_path / "x.ranges", [batch])
    for size in (0, 5, whole.stat().st_size // 2, whole.stat().st_size - 1):
        cut = tmp_path / "cut.ranges"
        cut.write_bytes(whole.read_bytes()[:size])
        with pytest.raises(ValueError, match=r"cut\.ranges is not a complete range file"):
            read_range([cut], 0)
    holed = tmp_path / "holed.ranges"
    holed.write_bytes(whole.read_bytes()[8:])
    with pytest.raises(ValueError, match="size is not what its index says"):
        read_range([holed], 0)


def test_a_task_that_fails_leaves_no_file(tmp_path):
    with pytest.raises(RuntimeError), RangeWriter(tmp_path / "x.ranges", DTYPE, N_RANGES) as writer:
        writer.add(np.zeros(3, DTYPE))
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
