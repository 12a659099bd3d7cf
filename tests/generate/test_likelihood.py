"""Scores of continuations: right, and the same bits in any batch and order."""

import random

import numpy as np
import pytest
import torch

from puna.config import RunConfig, Sampling, to_dict
from puna.files import write_json
from puna.formats.native import NativeSource
from puna.generate.engine import Engine
from puna.generate.likelihood import Row, Scored, score
from puna.generate.request import Request
from puna.generate.runners.packed import PackedRunner, library_for
from puna.generate.runners.pytorch import PlainRunner
from puna.generate.runners.static_decode import StaticDecode
from puna.model.weights import save_weights
from puna.tokens.tokenizer import Tokenizer
from tests.generate.conftest import CONFIG, random_model


def rows_of(seed: int = 0) -> list[Row]:
    """Contexts that share few-shot prefixes, are equal, or share nothing; options of 1 to 70 tokens."""
    rng = random.Random(seed)

    def tokens(n: int) -> list[int]:
        return [rng.randrange(3, 500) for _ in range(n)]

    rows = []
    for size in (0, 63, 64, 150, 300):
        shared = tokens(size)
        for _ in range(3):
            context = [1, *shared, *tokens(rng.choice((1, 5, 62, 100)))]
            first = tokens(1)
            options = [[*first, *tokens(length - 1)] for length in (1, 1, 2, 9, 70)]
            options += [tokens(1), [*options[3][:-1], *tokens(1)]]  # two that differ in the last token alone
            for option in options:
                rows.append(Row(np.array(context, np.uint32), np.array(option, np.uint32)))
    rows += rows[:2]  # equal rows
    return rows


def naive(model, row: Row) -> tuple[float, bool]:
    """One forward pass over the whole row."""
    tokens = torch.tensor(row.tokens.astype(np.int64))[None]
    with torch.no_grad():
        logits = model(tokens)[0]
    start = len(row.context)
    logprobs = logits.float().log_softmax(-1)[start - 1 : -1]
    own = logprobs.gather(1, tokens[0, start:, None])[:, 0]
    return float(own.double().sum()), bool((own == logprobs.max(-1).values).all())


@pytest.fixture(scope="module", params=["plain", "fused", "packed"])
def make_engine(request, tmp_path_factory):
    model = random_model()
    tokenizer = Tokenizer(request.getfixturevalue("shards"))
    directory = tmp_path_factory.mktemp("model")
    write_json(directory / "config.json", to_dict(RunConfig(model=CONFIG)))
    save_weights(model, directory)
    library = library_for(CONFIG)
    if request.param == "packed" and library is None:
        pytest.skip("no C++ compiler")

    def make(n_blocks: int) -> Engine:
        if request.param != "packed":
            runner = PlainRunner(model, n_blocks + 1)
            if request.param == "fused":  # as on a GPU: a token's bits depend on the call
                runner.static_decode = StaticDecode(model, runner.cache, n_blocks, compiled=False)
            runner.n_blocks = n_blocks
            return Engine(runner, tokenizer)
        source = NativeSource(directory)
        return Engine(PackedRunner(source, library, "fp32", n_blocks, torch.float32), tokenizer)

    return model, make


def test_scores_are_those_of_one_pass_over_each_row(make_engine):
    model, make = make_engine
    rows = rows_of()
    counted = []
    engine = make(200)
    found = score(engine, rows, counted.append)
    for row, scored in zip(rows, found, strict=True):
        logprob, greedy = naive(model, row)
        assert scored.logprob == pytest.approx(logprob, abs=2e-4) and scored.greedy == greedy
    unshared = sum(len(row.tokens) for row in rows)
    # Prefixes are computed once, or their whole chunks, where bits depend on the call.
    assert sum(counted) < (0.45 if engine.runner.prefill_is_decode else 0.7) * unshared


@pytest.mark.parametrize("n_blocks", [200, 25, 11])
def test_scores_are_the_same_bits_in_any_batch_order_and_cache(make_engine, n_blocks):
    _, make = make_engine
    rows = rows_of()
    whole = score(make(200), rows)
    engine = make(n_blocks)
    order = list(range(len(rows)))
    random.Random(1).shuffle(order)
    shuffled: list[Scored | None] = [None] * len(rows)
    for place, scored in zip(order, score(engine, [rows[i] for i in order]), strict=True):
        shuffled[place] = scored
    alone = [score(engine, [row])[0] for row in rows]
    assert whole == shuffled == alone


def test_the_prefix_cache_of_generation_survives_scoring(make_engine):
    _, make = make_engine
    engine = make(60)
    prompt = tuple(range(3, 203))
    request = Request(prompt, Sampling(temperature=0, top_p=1), 8)

    def answer() -> list[int]:
        return [token.id for _, chunk in engine.answers([request]) for token in chunk.tokens]

    before = answer()
    score(engine, rows_of())
    assert answer() == before


def test_a_row_that_does_not_fit_is_refused(make_engine):
    _, make = make_engine
    row = Row(np.ones(CONFIG.context, np.uint32), np.ones(1, np.uint32))
    with pytest.raises(ValueError, match=r"641 tokens does not fit into a context of 640"):
        score(make(20), [row])
    with pytest.raises(ValueError, match="cache of 128"):
        score(make(2), [Row(np.ones(300, np.uint32), np.ones(1, np.uint32))])
