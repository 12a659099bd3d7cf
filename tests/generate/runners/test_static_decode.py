"""The decode step of fixed shapes: the plain runner's logits, whoever else is in the call."""

import logging
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from puna.generate.runners.pytorch import PlainRunner
from puna.generate.runners.static_decode import ROWS, StaticDecode, or_eager
from tests.generate.conftest import CONFIG, random_model

TOKENS = torch.randint(0, 512, (600,), generator=torch.Generator().manual_seed(1)).tolist()
LONG = replace(CONFIG, context=640)
LENGTHS, TABLES = [3, 64, 300, 130, 590], [[0], [1, 2], [3, 4, 5, 6, 7], [8, 9, 10], list(range(11, 21))]


@pytest.fixture(scope="module")
def runner() -> PlainRunner:
    """A runner with a block that no table names, prompts of several lengths in its cache."""
    runner = PlainRunner(random_model(LONG), 22)
    for length, table in zip(LENGTHS, TABLES, strict=True):
        runner.prefill(TOKENS[:length], 0, table)
    return runner


@pytest.fixture(scope="module")
def decode(runner) -> StaticDecode:
    return StaticDecode(runner.model, runner.cache, padding=21, compiled=False)


def test_logits_are_those_of_the_plain_runner(runner, decode):
    expected = runner.decode(TOKENS[:5], LENGTHS, TABLES)
    torch.testing.assert_close(decode(TOKENS[:5], LENGTHS, TABLES), expected, atol=1e-5, rtol=1e-5)


def test_a_row_has_the_same_bits_alone_and_beside_longer_sequences(decode):
    together = decode(TOKENS[:5], LENGTHS, TABLES)  # ten blocks, filled up to sixteen
    for row in range(5):
        alone = decode([TOKENS[row]], [LENGTHS[row]], [TABLES[row]])
        assert torch.equal(alone[0], together[row])


@pytest.mark.parametrize("left", [float("nan"), float("inf")])
def test_what_another_sequence_left_in_a_block_is_never_seen(left):
    model = random_model(LONG)
    logits = []
    for value in (0.0, left):
        runner = PlainRunner(model, 4)
        runner.cache.keys.fill_(value)
        runner.cache.values.fill_(value)
        runner.prefill(TOKENS[:70], 0, [0, 1])
        logits.append(StaticDecode(model, runner.cache, 3, compiled=False)([5], [70], [[0, 1, 2]]))
    assert logits[0].isfinite().all()
    assert torch.equal(logits[0], logits[1])


def test_the_step_is_one_graph(decode):
    """What is compiled on a GPU: without a break, or CUDA graphs could not replay it."""
    compiled = torch.compile(decode.step, backend="eager", fullgraph=True)
    batch = torch.zeros(ROWS, 2 + 4, dtype=torch.long)
    batch[:, 2:] = 21
    with torch.inference_mode():
        assert torch.equal(compiled(batch), decode.step(batch))


def test_what_cannot_be_compiled_runs_uncompiled_with_one_warning(caplog):
    calls = []

    def broken(x):
        calls.append(x)
        raise RuntimeError("no ptxas\nand a long trace")

    run = or_eager(broken, lambda x: x + 1)
    with caplog.at_level(logging.WARNING):
        assert run(torch.tensor(1)) == 2
        assert run(torch.tensor(2)) == 3
    assert len(calls) == 1
    (record,) = caplog.records
    assert record.message == "decoding could not be compiled (no ptxas); it runs uncompiled, slower"


@pytest.mark.parametrize("starts", [[0, 70], [0, 3, 5, 66, 70], [0, 64, 70]])
def test_the_fused_attention_of_prompts_is_that_over_blocks(starts):
    """A prompt of 70 tokens in one or several calls, of one and of two blocks, also unaligned."""
    model = random_model(CONFIG)
    static, plain = PlainRunner(model, 4), PlainRunner(model, 4)
    static.static_decode = StaticDecode(model, static.cache, 3, compiled=False)
    tokens = [(7 * i) % CONFIG.vocab_size for i in range(70)]
    for start, stop in pairwise(starts):
        found, expected = (r.prefill(tokens[start:stop], start, [2, 0], True) for r in (static, plain))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_more_sequences_than_rows_are_decoded_in_several_calls():
    model = random_model(CONFIG)
    static, plain = PlainRunner(model, ROWS + 3), PlainRunner(model, ROWS + 3)
    static.static_decode = StaticDecode(model, static.cache, ROWS + 2, compiled=False)
    count = ROWS + 2
    for runner in (static, plain):
        for block in range(count):
            runner.prefill(TOKENS[block : block + 5], 0, [block])
    calls = TOKENS[:count], [5] * count, [[block] for block in range(count)]
    torch.testing.assert_close(static.decode(*calls), plain.decode(*calls), atol=1e-5, rtol=1e-5)
    assert not static.prefill_is_decode
