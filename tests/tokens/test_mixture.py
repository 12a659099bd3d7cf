"""Batches are a function of (data, seed, step), in Table 1's proportions, each token in its turn."""

import hashlib
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from puna.corpus.document import TABLE_1
from puna.tokens.mixture import IGNORED, Mixture, Stream
from puna.tokens.order import BLOCK, Schedule, permute, quotas, shares

WEIGHTS = {"books": 5.0, "c4": 2.5, "wikipedia": 2.5}


def pinned(directory):
    return Mixture([directory], WEIGHTS, seed=7, context=16, batch_sequences=8)


def digest(mixture, steps):
    """A name for all that some steps give."""
    named = hashlib.sha256()
    for step in steps:
        batch = mixture.batch(step)
        for array in (batch.inputs, batch.targets, batch.sources):
            named.update(array.astype("<i8").tobytes())
    return named.hexdigest()[:16]


@pytest.fixture(scope="module")
def directory(make, tmp_path_factory):
    """Three sources whose tokens are all different: 0.. books, 10,000.. c4, 20,000.. wikipedia."""
    return make.shards(
        tmp_path_factory.mktemp("mixture") / "shards",
        {
            "books": [np.arange(0, 1000), np.arange(1000, 1003), np.arange(1003, 2500)],
            "c4": [np.arange(10_000, 10_700)],
            "wikipedia": [np.arange(20_000, 20_005)],  # less than a window
        },
        {"books": [np.arange(5000, 5050)], "c4": [np.arange(15_000, 15_010)]},
    )


@pytest.fixture(scope="module")
def mixture(directory):
    return pinned(directory)


# ---- a pure function of the step ---------------------------------------------------------------


@given(step=st.integers(0, 10**7), world=st.sampled_from([1, 2, 4, 8]))
@example(step=1250, world=4)  # the first step of the second block
def test_batches_do_not_depend_on_the_number_of_ranks(mixture, step, world):
    whole = mixture.batch(step)
    parts = [mixture.batch(step, rank, world) for rank in range(world)]
    for name in ("inputs", "targets", "sources"):
        assert (getattr(whole, name) == np.concatenate([getattr(part, name) for part in parts])).all()
    tokens = (whole.targets != IGNORED).sum()
    assert [batch.global_tokens for batch in (whole, *parts)] == [tokens] * (1 + world)


def test_resuming_at_a_late_step_gives_what_would_have_come(directory, mixture):
    for step in range(3000):
        before = mixture.batch(step)
    resumed = pinned(directory).batch(2999)
    assert (resumed.inputs == before.inputs).all() and (resumed.targets == before.targets).all()


def test_a_step_far_ahead_costs_no_more_than_the_first(mixture):
    # A replay of a million million steps would not end.
    assert mixture.batch(10**12).inputs.shape == (8, 16)


def test_batches_are_the_same_in_every_process_and_have_been_since_the_first_release(directory, mixture):
    # The name was written down from this code: a change of the order would break the resuming of runs.
    expected = "772d79296a662c25"
    assert digest(mixture, (0, 1, 1249, 1250, 99_999)) == expected
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from test_mixture import *\n"
        "print(digest(pinned(sys.argv[2]), (0, 1, 1249, 1250, 99_999)))"
    )
    for salt in ("1", "2"):
        process = subprocess.run(
            [sys.executable, "-c", code, str(Path(__file__).parent), str(directory)],
            env={**os.environ, "PYTHONHASHSEED": salt},
            capture_output=True,
            text=True,
            check=True,
        )
        assert process.stdout.strip() == expected


def test_the_fingerprint_names_the_order(directory, mixture):
    assert pinned(directory).fingerprint == mixture.fingerprint
    settings = {"weights": WEIGHTS, "seed": 7, "context": 16, "batch_sequences": 8}
    others = [{"weights": {**WEIGHTS, "c4": 3.0}}, {"seed": 8}, {"context": 17}, {"batch_sequences": 4}]
    names = {Mixture([directory], **{**settings, **other}).fingerprint for other in others}
    assert len(names) == len(others) and mixture.fingerprint not in names
    doubled = {source: 2 * weight for source, weight in WEIGHTS.items()}
    assert Mixture([directory], **{**settings, "weights": doubled}).fingerprint == mixture.fingerprint


def test_another_seed_gives_another_order(directory, mixture):
    other = Mixture([directory], WEIGHTS, seed=8, context=16, batch_sequences=8)
    assert digest(other, range(4)) != digest(mixture, range(4))


# ---- every token in its turn -------------------------------------------------------------------


def test_targets_are_the_inputs_one_place_on_and_stay_in_their_source(mixture):
    first = np.array([{"books": 0, "c4": 1, "wikipedia": 2}[source] for source in mixture.sources])
    for step in range(200):
        batch = mixture.batch(step)
        real = batch.targets != IGNORED
        # Each source's tokens count upwards.
        assert (batch.targets[real] == batch.inputs[real] + 1).all()
        assert (batch.inputs // 10_000 == first[batch.sources][:, None])[real].all()
        # Padding only follows.
        assert (np.diff(real.astype(int), axis=1) <= 0).all()


@pytest.mark.parametrize("source", ["books", "c4", "wikipedia"])
def test_every_token_is_seen_once_before_any_is_seen_twice(directory, source):
    mixture = Mixture([directory], {source: 1}, seed=3, context=16, batch_sequences=1)
    tokens = mixture.manifests[0].details["sources"][source]["train_tokens"]
    windows = -(-(tokens - 1) // 16)
    first = {"books": 0, "c4": 10_000, "wikipedia": 20_000}[source]
    orders = []
    for epoch in range(3):
        batches = [mixture.batch(epoch * windows + place) for place in range(windows)]
        targets = np.concatenate([batch.targets[batch.targets != IGNORED] for batch in batches])
        assert (np.sort(targets) == np.arange(first + 1, first + tokens)).all()
        orders.append([int(batch.inputs[0, 0]) for batch in batches])
    if windows > 2:
        assert orders[0] != orders[1] != orders[2]
        assert orders[0] != sorted(orders[0])


def test_a_source_smaller_than_a_window_is_padded(directory):
    mixture = Mixture([directory], {"wikipedia": 1}, seed=3, context=16, batch_sequences=2)
    batch = mixture.batch(5)
    assert batch.inputs[1].tolist() == [20_000, 20_001, 20_002, 20_003] + [0] * 12
    assert batch.targets[1].tolist() == [20_001, 20_002, 20_003, 20_004] + [IGNORED] * 12
    assert batch.tokens == 8


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=8), context=st.integers(1, 25))
def test_windows_run_on_over_the_borders_of_shards(lengths, context):
    whole = np.arange(sum(lengths))
    stream = Stream(np.split(whole, np.cumsum(lengths)[:-1]), context)
    for index in range(stream.windows):
        expected = whole[index * context : (index + 1) * context + 1]
        assert stream.window(index).tolist() == expected.tolist()
        assert len(expected) >= 2


def test_the_streams_of_directories_follow_one_another(make, tmp_path, directory):
    more = make.shards(tmp_path / "more", {"books": [np.arange(2500, 2600)]})
    mixture = Mixture([directory, more], {"books": 1}, seed=1, context=16, batch_sequences=1)
    windows = -(-2599 // 16)
    targets = np.concatenate([mixture.batch(step).targets[0] for step in range(windows)])
    assert sorted(targets[targets != IGNORED].tolist()) == list(range(1, 2600))


@given(size=st.integers(1, 500), key=st.integers(0, 2**64 - 1))
def test_the_order_of_an_epoch_is_a_permutation(size, key):
    assert sorted(permute(index, size, key) for index in range(size)) == list(range(size))


@given(size=st.integers(1, 2**48), key=st.integers(0, 2**64 - 1), data=st.data())
def test_the_order_of_a_large_epoch_maps_no_two_windows_to_one(size, key, data):
    indices = data.draw(st.sets(st.integers(0, size - 1), max_size=20))
    places = {permute(index, size, key) for index in indices}
    assert len(places) == len(indices) and all(0 <= place < size for place in places)


# ---- proportions -------------------------------------------------------------------------------

share_lists = st.lists(st.floats(0.1, 100), min_size=1, max_size=7)


@given(weights=share_lists)
def test_quotas_are_the_shares_rounded_and_fill_the_block(weights):
    names = dict(zip(TABLE_1, weights, strict=False))
    share = shares(names, names)
    counts = quotas(share)
    assert sum(counts.values()) == BLOCK
    assert all(abs(counts[source] - part * BLOCK) < 1 for source, part in share.items())


@settings(max_examples=25, deadline=None)
@given(first=st.integers(0, 10**9), seed=st.integers(0, 100))
def test_proportions_are_realised_within_a_thousandth_over_any_10000_sequences(first, seed):
    share = shares(TABLE_1, {})
    schedule = Schedule(quotas(share), seed)
    given = schedule.given(first + BLOCK) - schedule.given(first)
    assert np.abs(given / BLOCK - list(share.values())).max() <= 0.001


def test_the_schedule_counts_what_it_gives(mixture):
    schedule = Schedule({"a": 6000, "b": 4000}, seed=5)
    given = Counter()
    for n in range(2 * BLOCK + 321):
        source, k = schedule.sequence(n)
        assert k == given[source]
        given[source] += 1
    assert schedule.given(2 * BLOCK + 321).tolist() == [given[0], given[1]]


def test_the_report_is_table_1_of_the_batches(mixture):
    sequences, tokens = Counter(), Counter()
    for step in range(1300):
        batch = mixture.batch(step)
        for source, targets in zip(batch.sources, batch.targets, strict=True):
            sequences[mixture.sources[source]] += 1
            tokens[mixture.sources[source]] += int((targets != IGNORED).sum())
    epoch = {"books": 2499, "c4": 699, "wikipedia": 4}
    rows = mixture.report(1300)
    assert [row["source"] for row in rows] == list(mixture.sources)
    for row in rows:
        source = row["source"]
        assert row["intended"] == WEIGHTS[source] / 10
        assert row["realised"] == pytest.approx(tokens[source] / sum(tokens.values()))
        assert (row["sequences"], row["tokens"]) == (sequences[source], tokens[source])
        assert row["epochs"] == pytest.approx(tokens[source] / epoch[source])
        assert (row["documents"], row["bytes"]) == (2, 20)


def test_without_weights_the_mixture_is_table_1_over_the_sources_present(directory):
    mixture = Mixture([directory], {}, seed=1, context=16, batch_sequences=8)
    assert mixture.shares == pytest.approx({"c4": 15 / 24, "wikipedia": 4.5 / 24, "books": 4.5 / 24})


# ---- validation --------------------------------------------------------------------------------


def test_validation_goes_through_the_held_out_tokens_in_order(mixture):
    batches = list(mixture.validation_windows("books", rows=3))
    assert [len(batch.inputs) for batch in batches] == [3, 1]
    targets = np.concatenate([batch.targets[batch.targets != IGNORED] for batch in batches])
    assert targets.tolist() == list(range(5001, 5050))
    assert sum(batch.tokens for batch in batches) == 49
    limited = list(mixture.validation_windows("books", limit=2))
    assert [batch.inputs[:, 0].tolist() for batch in limited] == [[5000, 5016]]
    assert list(mixture.validation_windows("wikipedia")) == []
    with pytest.raises(ValueError, match="no source 'arxiv' in the mixture"):
        next(mixture.validation_windows("arxiv"))


def test_real_shards_train_and_validate(shards):
    mixture = Mixture([shards], {}, seed=1, context=64, batch_sequences=4)
    assert mixture.sources == ("github", "books")
    assert mixture.batch(0).inputs.max() < mixture.vocab_size
    assert mixture.tokenizer.is_file()
    for source in mixture.sources:
        assert sum(batch.tokens for batch in mixture.validation_windows(source)) > 0
        assert 0 < mixture.tokens_per_byte(source) < 1


# ---- what cannot be ----------------------------------------------------------------------------


def mix(*directories, weights=None, world=1):
    return Mixture(directories, weights or {}, 1, 16, 6).batch(0, 0, world)


def test_impossible_weights_are_named(directory):
    with pytest.raises(ValueError, match="names 'arxiv', but the data has: c4, wikipedia, books"):
        mix(directory, weights={"arxiv": 1})
    with pytest.raises(ValueError, match=r"mixture.weights.c4 is -1"):
        mix(directory, weights={"c4": -1})
    with pytest.raises(
        ValueError, match=r"mixture.weights.c4 is 0.00\d+% of the total, less than 1 sequence"
    ):
        mix(directory, weights={"books": 1, "c4": 0.00005})


def test_a_source_that_table_1_lacks_needs_a_weight(make, tmp_path):
    letters = make.shards(tmp_path / "letters", {"letters": [np.arange(100)]})
    with pytest.raises(ValueError, match="Table 1 has no weight for 'letters'"):
        mix(letters)
    assert mix(letters, weights={"letters": 1}).tokens == 6 * 16


def test_an_empty_source_is_an_error(make, tmp_path):
    empty = make.shards(tmp_path / "empty", {"books": [], "c4": [np.arange(100)]})
    with pytest.raises(ValueError, match="source 'books' has no train tokens"):
        mix(empty)
    assert mix(empty, weights={"c4": 1}).tokens > 0


def test_a_truncated_or_missing_shard_is_named(make, tmp_path):
    data = make.shards(tmp_path / "data", {"books": [np.arange(100)]})
    shard = data / "00000.books.train.npy"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-2])
    with pytest.raises(ValueError, match=r"00000.books.train.npy is 326 bytes, not the 328 bytes"):
        mix(data)
    shard.unlink()
    with pytest.raises(ValueError, match=r"00000.books.train.npy is missing"):
        mix(data)
    np.save(shard, np.arange(50, dtype=np.uint32))
    with pytest.raises(ValueError, match="holds uint32, not uint16"):
        mix(data)


def test_data_that_do_not_belong_together_are_refused(make, tmp_path, directory):
    other = make.shards(tmp_path / "other", {"books": [np.arange(100)]}, tokenizer="beef")
    with pytest.raises(ValueError, match=r"was made with tokenizer beef, .* with f00d"):
        mix(directory, other)
    larger = make.shards(tmp_path / "larger", {"books": [np.arange(100)]}, vocab_size=65_000)
    with pytest.raises(ValueError, match="was made with vocab_size 65000"):
        mix(directory, larger)
    with pytest.raises(ValueError, match="holds the same shards as"):
        mix(directory, directory)
    with pytest.raises(ValueError, match="data names no directory"):
        mix()
    with pytest.raises(ValueError, match="holds no finished shards"):
        mix(tmp_path)


def test_ranks_that_cannot_share_a_batch_are_an_error(directory):
    with pytest.raises(ValueError, match="6 sequences, which 4 ranks cannot share evenly"):
        mix(directory, world=4)
