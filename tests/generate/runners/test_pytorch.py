"""The plain runner: the model's own logits, the same bits however tokens are cut into calls."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.generate.runners.cache import BLOCK
from puna.generate.runners.pytorch import PlainRunner
from tests.generate.conftest import CONFIG, random_model

TOKENS = torch.randint(0, 512, (200,), generator=torch.Generator().manual_seed(1)).tolist()
CONFIGS = {
    "grouped heads": CONFIG,
    "one head each": replace(CONFIG, n_kv_heads=4),
    "one key head": replace(CONFIG, n_kv_heads=1, tied_embeddings=True),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_logits_are_those_of_the_model(config):
    model = random_model(config)
    with torch.no_grad():
        whole = model(torch.tensor([TOKENS]))[0]
    logits = PlainRunner(model, 6).prefill(TOKENS, 0, [5, 0, 3, 1], all_logits=True)
    torch.testing.assert_close(logits, whole, atol=1e-5, rtol=1e-5)


def test_the_last_row_is_what_prefill_gives_without_every(model):
    runner = PlainRunner(model, 4)
    last = runner.prefill(TOKENS, 0, [0, 1, 2, 3])
    assert torch.equal(last, runner.prefill(TOKENS, 0, [0, 1, 2, 3], all_logits=True)[-1])


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
@settings(max_examples=5, deadline=None)
@given(sizes=st.lists(st.sampled_from([1, 2, 3, 5, 17, 64, 100]), max_size=40))
def test_bits_do_not_depend_on_how_tokens_are_cut_into_calls(compute, sizes):
    require_bits_of_one_call(compute, sizes)


def test_nor_do_they_with_two_threads():
    torch.set_num_threads(2)
    require_bits_of_one_call(torch.float32, [70, 1, 9, 2, 1])


def require_bits_of_one_call(compute: torch.dtype, sizes: list[int]) -> None:
    runner = PlainRunner(random_model(compute=compute), 12)
    assert runner.prefill_is_decode  # of this machine's matrix library, tried out
    whole = runner.prefill(TOKENS, 0, [7, 2, 9, 4], all_logits=True)
    rows, at, table = [], 0, [0, 11, 5, 8]
    for size in [*sizes, len(TOKENS)]:
        if part := TOKENS[at : at + size]:
            rows.append(runner.prefill(part, at, table, all_logits=True))
            at += size
    assert torch.equal(torch.cat(rows), whole)


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_a_row_of_a_batch_has_the_bits_that_it_has_alone(compute):
    runner = PlainRunner(random_model(compute=compute), 12)
    lengths, tables = [3, 64, 65, 130, 11], [[0], [1], [2, 3], [4, 5, 6], [7]]
    tables[1] = [1, 8]
    for length, table in zip(lengths, tables, strict=True):
        runner.prefill(TOKENS[:length], 0, table)
    together = runner.decode(TOKENS[:5], lengths, tables)
    for row in range(5):
        alone = runner.decode([TOKENS[row]], [lengths[row]], [tables[row]])
        assert torch.equal(alone[0], together[row])


def test_without_rows_alike_the_batch_is_still_independent(monkeypatch):
    """As on a machine whose matrix library rounds by the number of rows."""
    monkeypatch.setattr(PlainRunner, "prefill_is_decode", False)
    runner = PlainRunner(random_model(), 6)
    for block in range(6):
        runner.prefill(TOKENS[: 10 + block], 0, [block])
    positions, tables = [10, 11, 12, 13, 14, 15], [[block] for block in range(6)]
    together = runner.decode(TOKENS[:6], positions, tables)
    for row in range(6):
        assert torch.equal(runner.decode([TOKENS[row]], [10 + row], [[row]])[0], together[row])


@pytest.mark.parametrize("left", [float("nan"), float("inf")])
def test_what_another_sequence_left_in_a_block_is_never_seen(model, left):
    runner = PlainRunner(model, 4)
    expected = runner.prefill(TOKENS[:70], 0, [0, 1], all_logits=True)
    for tensor in (runner.cache.keys, runner.cache.values):
        tensor[:, 2:] = left
    assert torch.equal(runner.prefill(TOKENS[:70], 0, [2, 3], all_logits=True), expected)


@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 0.3), (torch.float16, 0.05)])
def test_a_cache_of_half_precision_is_near(model, dtype, error):
    exact = PlainRunner(model, 4).prefill(TOKENS, 0, range(4), all_logits=True)
    half = PlainRunner(model, 4, dtype).prefill(TOKENS, 0, range(4), all_logits=True)
    assert 0 < (half - exact).abs().max() < error


def test_a_block_holds_what_it_is_said_to(model):
    from puna.generate.runners.cache import BlockCache, block_bytes

    cache = BlockCache(CONFIG, 3, torch.bfloat16)
    held = sum(tensor.numel() * tensor.itemsize for tensor in (cache.keys, cache.values))
    assert held == 3 * block_bytes(CONFIG, torch.bfloat16)
    assert BLOCK == 64
