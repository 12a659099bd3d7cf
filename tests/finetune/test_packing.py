"""Packed batches: each example once per epoch, none predicts another's, a step follows from its number."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.config import ComputeConfig, ModelConfig, RunConfig, ScheduleConfig
from puna.finetune.examples import Examples, read_examples
from puna.finetune.packing import PackedExamples, pack
from puna.manifest import Input
from puna.train.setup import build_model, initialise
from puna.train.step import OutlierGuard, train_step
from tests.conftest import sentences
from tests.finetune.conftest import chat, write_rows

CONTEXT = 96


def talks(count: int, seed: int) -> list[dict]:
    return [
        chat(f"{seed} {n}: {sentences(n, 1 + n % 2)}", sentences(n + count * seed, 1 + n % 3))
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def sets(tmp_path_factory, pieces, template) -> list[Examples]:
    """Two sets of data, of 90 and of 30 examples."""
    folder = tmp_path_factory.mktemp("sets")
    return [
        read_examples(
            write_rows(folder / f"{name}.jsonl", talks(count, seed)), template, pieces, CONTEXT, max_bad=0.9
        )
        for name, count, seed in (("many", 90, 1), ("few", 30, 2))
    ]


def packed(sets, pieces, **changes) -> PackedExamples:
    values = {"weights": {}, "seed": 1, "context": CONTEXT, "batch_sequences": 4, "held_out": 0.1, **changes}
    return PackedExamples(sets, values.pop("weights"), pieces, **values)


def examples_of(batch) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The inputs and the targets of each example of a batch, padding aside."""
    found = []
    for inputs, targets, segments in zip(batch.inputs, batch.targets, batch.segments, strict=True):
        assert segments[0] == 0 and set(np.diff(segments).tolist()) <= {0, 1}
        for segment in range(segments[-1] + 1):
            own = segments == segment
            if (targets[own] >= 0).any():
                found.append((tuple(inputs[own].tolist()), tuple(targets[own].tolist())))
            else:
                assert segment == segments[-1], "only the last segment is padding"
    return found


def expected(examples: Examples, index: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    ids, is_target = examples.ids[examples.span(index)].tolist(), examples.is_target[examples.span(index)]
    targets = [id if trained else -100 for id, trained in zip(ids[1:], is_target[1:], strict=True)]
    return tuple(ids[:-1]), tuple(targets)


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(1, 32), min_size=1, max_size=60))
def test_packing_holds_each_example_once_in_few_rows(lengths):
    rows = pack(np.array(lengths), 32)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    used = [sum(lengths[index] for index in row) for row in rows]
    assert max(used) <= 32
    # No two rows would have fitted into one: each later row began because nothing had room for it.
    assert sum(use <= 16 for use in used) <= 1


def test_an_epoch_holds_every_training_example_once(sets, pieces):
    data = packed(sets[:1], pieces, batch_sequences=1)
    rows = data.steps_of(1)
    for epoch in range(2):
        seen = Counter(e for step in range(rows) for e in examples_of(data.batch(epoch * rows + step)))
        held_out = [e for batch in data.validation_windows("many") for e in examples_of(batch)]
        assert set(seen.values()) == {1}
        everything = Counter(expected(sets[0], index) for index in range(len(sets[0])))
        assert seen + Counter(held_out) == everything
        assert 0 < len(held_out) < 20


def test_epochs_differ_in_order(sets, pieces):
    data = packed(sets[:1], pieces, batch_sequences=1)
    rows = data.steps_of(1)
    orders = [[data.batch(e * rows + n).inputs.tobytes() for n in range(rows)] for e in range(2)]
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1])


def test_the_first_token_of_an_example_is_never_a_target(sets, pieces):
    data = packed(sets, pieces)
    firsts = {expected(examples, index)[0][0] for examples in sets for index in range(len(examples))}
    assert firsts == {pieces.bos_id}
    for step in range(10):
        assert not (data.batch(step).targets == pieces.bos_id).any()


def test_the_end_token_is_a_target_of_every_answer(sets, pieces):
    batch = packed(sets, pieces).batch(3)
    assert (batch.targets == pieces.eos_id).sum() == len(examples_of(batch))


def test_batches_do_not_depend_on_the_number_of_ranks(sets, pieces):
    data = packed(sets, pieces)
    whole = data.batch(7)
    for world in (2, 4):
        parts = [data.batch(7, rank, world) for rank in range(world)]
        for name in ("inputs", "targets", "segments", "sources"):
            assert (getattr(whole, name) == np.concatenate([getattr(part, name) for part in parts])).all()
        assert {part.global_tokens for part in parts} == {whole.global_tokens}
    assert whole.global_tokens == (whole.targets >= 0).sum()
    with pytest.raises(ValueError, match="not a multiple of 3 ranks"):
        data.batch(0, 0, 3)


def test_micro_batches_of_one_to_eight_rows_give_the_same_step(sets, pieces):
    batch = packed(sets, pieces, batch_sequences=8).batch(3)
    model = ModelConfig(dim=32, n_layers=2, n_heads=2, ffn_dim=64, vocab_size=320, context=CONTEXT)

    def taken(micro: int) -> tuple[float, float, torch.Tensor]:
        config = RunConfig(
            model=model,
            schedule=ScheduleConfig(steps=1, batch_tokens=8 * CONTEXT, micro_batch=micro),
            compute=ComputeConfig(precision="fp32"),
        )
        trained, optimizer = build_model(config, torch.device("cpu"))
        initialise(trained, 1)
        gradient: list[torch.Tensor] = []
        optimizer.register_step_pre_hook(
            lambda *_: gradient.extend(p.grad.flatten() for p in trained.parameters())
        )
        guard = OutlierGuard(0, torch.device("cpu"))
        result = train_step(trained, optimizer, guard, batch, len(sets), 1e-3, config)
        record = result.record(("few", "many"))
        return record["loss"], record["grad_norm"], torch.cat(gradient)

    loss, norm, whole = taken(8)
    for micro in range(1, 8):
        found = taken(micro)
        assert found[:2] == pytest.approx((loss, norm), rel=1e-5)
        torch.testing.assert_close(found[2], whole, rtol=1e-4, atol=1e-6)


def test_a_step_is_a_function_of_fingerprint_and_number(sets, pieces):
    first, again = packed(sets, pieces), packed(sets[::-1], pieces)
    assert first.fingerprint == again.fingerprint
    for step in (0, 9, 50):
        assert (first.batch(step).inputs == again.batch(step).inputs).all()
    changes = ({"seed": 2}, {"held_out": 0.2}, {"weights": {"many": 1, "few": 1}}, {"context": 128})
    others = {packed(sets, pieces, **change).fingerprint for change in changes}
    assert len(others | {first.fingerprint}) == 5


def test_the_fingerprint_tells_another_template(tmp_path, sets, pieces, template):
    from puna.finetune.templates import choose_template

    path = write_rows(tmp_path / "many.jsonl", talks(90, 1))
    alpaca = read_examples(path, choose_template(pieces, "alpaca"), pieces, 512)
    puna = read_examples(path, template, pieces, 512)
    assert (
        packed([alpaca], pieces, context=512).fingerprint != packed([puna], pieces, context=512).fingerprint
    )
    # What is held out depends on what the examples say alone.
    sides = [examples.keys < np.uint64(2**63) for examples in (alpaca, puna)]
    assert (sides[0] == sides[1]).all()


def test_weights_are_shares_of_the_rows(sets, pieces):
    data = packed(sets, pieces, weights={"many": 1.0, "few": 3.0})
    sources = np.concatenate([data.batch(step).sources for step in range(200)])
    assert data.sources == ("few", "many")
    assert (sources == 0).mean() == pytest.approx(0.75, abs=0.01)
    few, many = data.report(200)
    assert few["intended"] == 0.75 and few["sequences"] == (sources == 0).sum()
    assert few["epochs"] > 5 * many["epochs"]
    targets = sum(data.batch(step).global_tokens for step in range(200))
    assert few["tokens"] + many["tokens"] == targets


def test_without_weights_each_set_is_read_equally_often(sets, pieces):
    data = packed(sets, pieces)
    epochs = [row["epochs"] for row in data.report(data.steps_of(20))]
    assert epochs == pytest.approx([20, 20], rel=0.02)


def test_padding_is_reported_and_small(sets, pieces):
    (row,) = packed(sets[:1], pieces, context=1024, batch_sequences=1, held_out=0.0).report(10)
    used = len(sets[0].ids) - len(sets[0])
    rows = used / 1024 / (1 - row["padding"])
    assert rows == pytest.approx(-(-used // 1024)), "as few rows as the tokens fill"


def test_what_a_manifest_needs(sets, pieces):
    data = packed(sets, pieces)
    assert data.inputs == tuple(Input.file(examples.path) for examples in sets[::-1])
    for row, examples in zip(data.report(5), sets[::-1], strict=True):
        assert row["counts"]["examples"] == row["documents"] == len(examples)
        assert len(row["malformed"]) == row["counts"]["malformed: longer than the context"] > 0
        assert row["malformed"][0].startswith(f"{examples.path.name}:")
    assert data.vocab_size == pieces.vocab_size and data.tokenizer == pieces.path
    held_out = next(data.validation_windows("many", 1, 1))
    assert held_out.global_tokens == (held_out.targets >= 0).sum() > 0
    assert 0.1 < data.tokens_per_byte("many") < 2


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"weights": {"many": 1.0}}, "give a weight for each data file or for none; 'few'"),
        ({"weights": {"many": 1.0, "few": 0.0}}, "the weight of 'few' is 0; it must be positive"),
        ({"held_out": 0.9999}, "are held out; give more data, or lower --held-out"),
    ],
)
def test_what_cannot_be_mixed_is_an_error(sets, pieces, changes, error):
    with pytest.raises(ValueError, match=error):
        packed(sets, pieces, **changes)


def test_two_sets_of_one_name_are_an_error(sets, pieces):
    with pytest.raises(ValueError, match="two data files are named many"):
        packed([sets[0], sets[0]], pieces)
