"""The engine: what a request gets is its own, whatever runs beside it; memory, prefixes, stops, chunks."""

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from puna.config import Sampling
from puna.generate.engine import CHUNK, Engine
from puna.generate.load import load_engine
from puna.generate.pace import STEP_SECONDS
from puna.generate.request import Chunk, Request
from puna.generate.runners.cache import BLOCK
from puna.generate.runners.pytorch import PlainRunner
from puna.model.llama import Llama
from puna.recipes import recipe
from puna.train.loop import train
from tests.generate.conftest import CONFIG, generated, random_model

GREEDY = Sampling(temperature=0)


def tokens_of(seed: int, count: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(3, 512, (count,), generator=generator).tolist())


def ask(seed: int, count: int, **options) -> Request:
    defaults = {"sampling": GREEDY, "max_tokens": 12, "ignore_eos": True}
    return Request(tokens_of(seed, count), **{**defaults, **options})


def answer(engine: Engine, request: Request) -> list[Chunk]:
    return [chunk for _, chunk in engine.answers([request])]


def ids(chunks: list[Chunk]) -> list[int]:
    return [token.id for chunk in chunks for token in chunk.tokens]


def drain(engine: Engine) -> dict[int, list[Chunk]]:
    chunks: dict[int, list[Chunk]] = {}
    while not engine.idle:
        for id, chunk in engine.step():
            chunks.setdefault(id, []).append(chunk)
    return chunks


# ---- one request


def test_greedy_text_is_the_likeliest_token_each_time(engine, model):
    text = generated(engine, "The llama", GREEDY, max_tokens=12)
    prompt = engine.tokenizer.encode("The llama", bos=True)
    expected = []
    for _ in range(12):
        with torch.no_grad():
            token = int(model(torch.tensor([[*prompt, *expected]]))[0, -1].argmax())
        if token == engine.tokenizer.eos_id:
            break
        expected.append(token)
    whole = engine.tokenizer.decode([*prompt, *expected])
    assert engine.tokenizer.decode(prompt) + text == whole


def test_the_seed_decides_the_text(engine):
    texts = [
        generated(engine, "A", Sampling(temperature=1.0, top_p=1.0, seed=seed), 20) for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_generation_stops_where_the_context_is_full(engine):
    chunks = answer(engine, ask(1, 600, max_tokens=10_000))
    assert len(ids(chunks)) == CONFIG.context - 600
    assert chunks[-1].finish == "length"


def test_the_end_of_text_ends_the_answer_and_is_not_in_it(engine):
    request = ask(4, 9, max_tokens=100)
    drawn = ids(answer(engine, request))
    engine.stop_ids = frozenset({drawn[5]})
    short = answer(engine, replace(request, ignore_eos=False))
    assert ids(short) == drawn[: drawn.index(drawn[5])]
    assert short[-1].finish == "stop"
    assert ids(answer(engine, request)) == drawn


def test_the_model_runs_once_a_token(engine, model):
    calls: list[int] = []
    hook = model.blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    answer(engine, ask(1, 5, max_tokens=7))
    hook.remove()
    assert len(calls) == 7


def test_a_prompt_is_computed_in_chunks_between_steps_of_the_others(model, tokenizer):
    runner = PlainRunner(model, 20)
    runner.prefill_is_decode = False  # then chunks end at multiples of their size
    engine = Engine(runner, tokenizer)
    first = engine.submit(ask(1, 5, max_tokens=50))
    engine.step()
    long = engine.submit(ask(2, 2 * CHUNK + 10))
    turns = [[id for id, _ in engine.step()] for _ in range(3)]
    assert turns == [[first], [first], [long, first]]
    assert engine.stats()["prefills"] == 4


class SlowRunner(PlainRunner):
    """In a clock of its own 2 ms per prompt token, 6 ms at position 600; 20 ms per row that is decoded."""

    prefill_is_decode = True
    now = 0.0

    def prefill(self, tokens, start, table, all_logits=False):
        self.now += 0.002 * len(tokens) * (1 + start / 300)
        return super().prefill(tokens, start, table, all_logits)

    def decode(self, tokens, positions, tables):
        self.now += 0.02 * len(tokens)
        return super().decode(tokens, positions, tables)


@pytest.mark.parametrize(("rows", "at_most"), [(1, 30), (4, 60), (12, 100)])
def test_answers_wait_for_a_chunk_no_longer_than_they_must(model, tokenizer, monkeypatch, rows, at_most):
    runner = SlowRunner(model, 80)
    monkeypatch.setattr("puna.generate.pace.time.perf_counter", lambda: runner.now)
    engine = Engine(runner, tokenizer)
    for row in range(rows):
        engine.submit(ask(row, 5, max_tokens=200))
    for _ in range(rows + 2):
        engine.step()
    long = engine.submit(ask(99, 600, max_tokens=1))
    times, seen = [], []
    while long not in seen:
        began = runner.now
        seen += [id for id, _ in engine.step()]
        times.append(runner.now - began)
    floor = 0.02 * rows + 8 * 0.006  # eight tokens at the end of the prompt
    assert max(times[1:]) < max(1.2 * STEP_SECONDS, floor + 1e-6)  # the next tokens cost more
    assert len(times) < at_most  # the time is used


def test_a_short_prompt_does_not_wait_for_a_long_one(engine):
    long = engine.submit(ask(1, 2 * CHUNK + 10))
    engine.step()
    short = engine.submit(ask(2, 5))
    assert [id for _ in range(2) for id, _ in engine.step()] == [short]
    assert long in [id for _ in range(30) for id, _ in engine.step()]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "max-tokens is 0"),
        ({"max_tokens": -5}, "max-tokens is -5"),
        ({"stop": ("a", "")}, "stop holds an empty string"),
        ({"logprobs": -1}, "logprobs is -1"),
        ({"lookup": -1}, "lookup is -1"),
        ({"lookup": 4, "sampling": Sampling()}, "greedy"),
        ({"sampling": Sampling(top_p=0)}, "top-p"),
        ({"prompt": ()}, "the prompt is empty"),
        ({"prompt": (1, 512)}, r"outside 0\.\.511"),
        ({"prompt": (-1,)}, r"outside 0\.\.511"),
        ({"prompt": (1,) * 640}, r"the prompt is 640 tokens long.*model\.context 640.*shorten"),
    ],
)
def test_a_request_that_can_never_run_is_refused(engine, options, message):
    with pytest.raises(ValueError, match=message):
        engine.submit(replace(ask(1, 5), **options))
    assert engine.idle


def test_a_request_larger_than_the_cache_is_refused(model, tokenizer):
    engine = Engine(PlainRunner(model, 2), tokenizer)
    engine.check(ask(1, 100, max_tokens=29))
    with pytest.raises(ValueError, match="need 129 KV-cache positions, and the cache has 128"):
        engine.check(ask(1, 100, max_tokens=30))


# ---- many requests


requests = st.builds(
    ask,
    seed=st.integers(0, 4),
    count=st.sampled_from([1, 3, 60, 64, 65, 130, 300]),
    max_tokens=st.integers(1, 12),
    sampling=st.sampled_from(
        [GREEDY, GREEDY, Sampling(1.0, seed=5), Sampling(0, repetition_penalty=1.3), Sampling(1.2, 40, 0.9)]
    ),
    lookup=st.just(0),
    logprobs=st.sampled_from([None, 0, 2]),
    prompt_logprobs=st.booleans(),
)
actions = st.lists(
    st.one_of(requests, st.integers(1, 3), st.tuples(st.just("cancel"), st.integers(0, 5))), max_size=14
)


@pytest.mark.parametrize("alike", [True, False])
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schedule=actions)
def test_an_answer_does_not_depend_on_what_runs_beside_it(alike, model, tokenizer, schedule):
    """Random admissions and cancels against each request alone in a fresh engine: the same to the bit.

    Once as here, once as on a machine where rows of a product depend on their number.
    """
    runner = PlainRunner(model, 14)
    runner.prefill_is_decode = alike
    engine = Engine(runner, tokenizer, max_batch=4)
    asked: dict[int, Request] = {}
    got: dict[int, list[Chunk]] = {}
    cancelled = set()
    for action in schedule:
        if isinstance(action, Request):
            asked[engine.submit(action)] = action
        elif isinstance(action, int):
            for _ in range(action):
                for id, chunk in engine.step():
                    got.setdefault(id, []).append(chunk)
        elif asked:
            id = list(asked)[action[1] % len(asked)]
            engine.cancel(id)
            cancelled.add(id)
    for id, chunks in drain(engine).items():
        got.setdefault(id, []).extend(chunks)
    assert engine.stats()["free_blocks"] == 14
    for id, request in asked.items():
        alone = PlainRunner(model, 14)
        alone.prefill_is_decode = alike
        expected = answer(Engine(alone, tokenizer), request)
        assert got.get(id, []) == (expected[: len(got.get(id, []))] if id in cancelled else expected)


def test_requests_wait_for_memory_in_order(model, tokenizer):
    engine = Engine(PlainRunner(model, 3), tokenizer)
    first = engine.submit(ask(1, 120, max_tokens=9))
    second = engine.submit(ask(2, 120, max_tokens=9))
    third = engine.submit(ask(3, 3, max_tokens=9))
    engine.step()
    stats = engine.stats()
    assert (stats["running"], stats["waiting"]) == (1, 2)  # the third would fit, but nobody overtakes
    finished = [id for id, chunks in drain(engine).items() if chunks[-1].finish]
    assert finished == [first, second, third]


def test_no_more_run_at_once_than_max_batch(model, tokenizer):
    engine = Engine(PlainRunner(model, 40), tokenizer, max_batch=2)
    for seed in range(5):
        engine.submit(ask(seed, 4))
    seen = []
    while not engine.idle:
        engine.step()
        seen.append(engine.stats()["running"])
    assert max(seen) == 2


def test_cancelling_frees_the_place_and_the_blocks(engine):
    running, waiting = engine.submit(ask(1, 300)), engine.submit(ask(2, 300))
    engine.step()
    engine.cancel(waiting)
    engine.cancel(running)
    engine.cancel(running)  # again: nothing
    assert engine.idle
    assert engine.stats()["used_blocks"] == 0
    assert engine.step() == []


def test_a_stream_that_is_left_leaves_nothing_behind(engine):
    stream = engine.answers([Request(tuple(engine.encode("The llama")), GREEDY, 50)])
    next(stream)
    stream.close()
    assert engine.idle
    assert engine.stats()["used_blocks"] == 0


def test_answers_name_the_request_that_they_belong_to(engine):
    asked = [ask(seed, 10 * seed + 1) for seed in range(4)]
    together: dict[int, list[int]] = {}
    for index, chunk in engine.answers(asked):
        together.setdefault(index, []).extend(token.id for token in chunk.tokens)
    assert together == {index: ids(answer(engine, request)) for index, request in enumerate(asked)}


# ---- prefixes


def test_a_text_that_comes_again_is_computed_from_where_it_is_new(engine):
    first = ask(1, 300)
    expected = answer(engine, first)
    before = engine.stats()
    assert answer(engine, first) == expected
    after = engine.stats()
    assert after["prefix_tokens"] - before["prefix_tokens"] == 300 // BLOCK * BLOCK
    assert after["prefills"] - before["prefills"] == 1


def test_an_answer_is_found_again_as_part_of_the_next_prompt(engine):
    drawn = ids(answer(engine, ask(1, 100, max_tokens=60)))
    talk = (*tokens_of(1, 100), *drawn, 5, 6)
    request = Request(talk, GREEDY, 8, ignore_eos=True)
    found = engine.stats()["prefix_tokens"]
    again = answer(engine, request)
    assert engine.stats()["prefix_tokens"] - found == 128  # decoded tokens too
    assert again == answer(Engine(PlainRunner(engine.runner.model, 8), engine.tokenizer), request)


def test_where_rows_are_not_alike_only_whole_chunks_of_prompts_are_found(model, tokenizer):
    runner = PlainRunner(model, 10)
    runner.prefill_is_decode = False
    engine = Engine(runner, tokenizer)

    def found(request: Request) -> int:
        before = engine.stats()["prefix_tokens"]
        answer(engine, request)
        return engine.stats()["prefix_tokens"] - before

    first = ask(1, CHUNK + 100, max_tokens=200)
    drawn = ids(answer(engine, first))
    assert found(first) == CHUNK
    # What was decoded, and the chunk that it completes, were computed in other calls than a prompt's.
    assert found(Request((*first.prompt, *drawn), GREEDY, 4, ignore_eos=True)) == CHUNK
    answer(engine, ask(2, 400, max_tokens=2))  # takes 7 of 10 blocks: one of the chunk's too
    assert found(first) == 0


def test_the_last_token_of_a_prompt_is_always_computed(engine):
    request = ask(1, 2 * BLOCK)
    assert answer(engine, request) == answer(engine, request)
    assert engine.stats()["prefix_tokens"] == BLOCK


def test_another_beginning_is_not_mistaken_for_a_known_one(engine):
    answer(engine, ask(1, 200))
    other = replace(ask(1, 200), prompt=(9, *tokens_of(1, 200)[1:]))
    answer(engine, other)
    assert engine.stats()["prefix_tokens"] == 0


def test_a_block_is_known_only_after_what_stood_before_it(model, tokenizer):
    a, b, x, y = (tokens_of(seed, BLOCK) for seed in range(4))
    engine = Engine(PlainRunner(model, 20), tokenizer)
    for prompt in ((*a, *x, 5), (*b, *y, 5)):
        answer(engine, Request(prompt, GREEDY, 4))
    request = Request((*b, *x, 5), GREEDY, 4, logprobs=0)
    assert answer(engine, request) == answer(Engine(PlainRunner(model, 20), tokenizer), request)
    assert engine.stats()["prefix_tokens"] == BLOCK  # b alone


def test_running_requests_share_the_blocks_of_a_common_beginning(engine):
    begin = tokens_of(1, 200)
    asked = [Request((*begin, seed), GREEDY, 20) for seed in range(3, 8)]
    engine.submit(asked[0])
    while not engine.step():  # until its prompt is computed
        pass
    for request in asked[1:]:
        engine.submit(request)
    engine.step()
    assert engine.stats()["used_blocks"] == 4 + 4  # 3 shared; and the last of each


def test_old_texts_give_way_when_memory_is_wanted(model, tokenizer):
    engine = Engine(PlainRunner(model, 6), tokenizer)
    answer(engine, ask(1, 200))
    assert engine.stats()["cached_blocks"] == 3
    answer(engine, ask(2, 370))
    assert engine.stats()["cached_blocks"] == 5
    found = engine.stats()["prefix_tokens"]
    answer(engine, ask(1, 200))
    assert engine.stats()["prefix_tokens"] == found


# ---- log-probabilities


def test_logprobs_are_the_models_own_whatever_is_sampled(engine, model):
    request = ask(1, 20, sampling=Sampling(0.7, 5, 0.8, 0.1, 1.3), logprobs=3)
    tokens = [token for chunk in answer(engine, request) for token in chunk.tokens]
    whole = [*request.prompt, *(token.id for token in tokens)]
    with torch.no_grad():
        expected = model(torch.tensor([whole]))[0].log_softmax(-1)[19:-1]
    for token, row in zip(tokens, expected, strict=True):
        assert token.logprob == pytest.approx(float(row[token.id]), abs=1e-4)
        assert [value for _, value in token.top] == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)
        assert token.piece == engine.tokenizer.piece(token.id)


@pytest.mark.parametrize("count", [1, 70, CHUNK, CHUNK + 1, 300])
def test_the_prompts_tokens_come_once_with_their_logprobs(engine, model, count):
    request = ask(1, count, prompt_logprobs=True)
    answer(engine, ask(1, count))  # what is in the cache has no logits
    chunks = answer(engine, request)
    assert [bool(chunk.prompt) for chunk in chunks] == [True] + [False] * (len(chunks) - 1)
    prompt = chunks[0].prompt
    assert tuple(token.id for token in prompt) == request.prompt
    with torch.no_grad():
        rows = model(torch.tensor([request.prompt]))[0].log_softmax(-1)
    assert prompt[0].logprob is None
    for token, row in zip(prompt[1:], rows, strict=False):
        assert token.logprob == pytest.approx(float(row[token.id]), abs=1e-4)


# ---- guessing ahead


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 200),
    lookup=st.integers(1, 10),
    alphabet=st.integers(1, 40),
)
def test_guessing_ahead_changes_nothing(model, tokenizer, seed, count, lookup, alphabet):
    prompt = tuple(3 + token % alphabet for token in tokens_of(seed, count))
    sampling = Sampling(0, repetition_penalty=1.1 if seed % 4 == 0 else 1.0)
    request = Request(prompt, sampling, 60, logprobs=1)
    plain = answer(Engine(PlainRunner(model, 8), tokenizer), request)
    ahead = answer(Engine(PlainRunner(model, 8), tokenizer), replace(request, lookup=lookup))
    for field in ("text", "tokens"):
        joined = [getattr(chunks[0], field)[:0] for chunks in (plain, ahead)]
        for place, chunks in enumerate((plain, ahead)):
            for chunk in chunks:
                joined[place] += getattr(chunk, field)
        assert joined[0] == joined[1]
    assert plain[-1].finish == ahead[-1].finish


def test_guesses_that_are_right_save_steps(engine):
    request = ask(1, 5, max_tokens=200)
    drawn = ids(answer(engine, request))
    again = Request((*request.prompt, *drawn, *request.prompt, *drawn[:4]), GREEDY, 100, lookup=8)
    before = engine.stats()
    engine_tokens = ids(answer(engine, again))
    after = engine.stats()
    steps = sum(after[key] - before[key] for key in ("prefills", "decodes"))
    assert after["accepted_tokens"] > 0
    assert steps + after["accepted_tokens"] - 1 <= len(engine_tokens) + 2


def test_guessing_is_refused_where_it_would_not_be_exact(model, tokenizer):
    runner = PlainRunner(model, 4)
    runner.prefill_is_decode = False
    with pytest.raises(ValueError, match="lookup would not be exact"):
        Engine(runner, tokenizer).check(ask(1, 5, lookup=4))


# ---- from files


@pytest.fixture(scope="module")
def run(shards, tmp_path_factory):
    base = recipe("tiny")
    config = replace(
        base,
        data=(str(shards),),
        model=replace(base.model, vocab_size=512),
        schedule=replace(base.schedule, steps=80),
    )
    train(config, tmp_path_factory.mktemp("trained") / "run")
    return next(tmp_path_factory.getbasetemp().glob("trained*/run"))


def test_a_trained_run_answers_in_the_manner_of_its_corpus(run):
    engine = load_engine(run)
    assert "return value" in generated(engine, "def carries_1(value):\n", GREEDY, 40)
    assert "." in generated(engine, "The old train", GREEDY, 40)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"cache_tokens": 63}, "cache-tokens is 63"), ({"max_batch": 0}, "max-batch is 0")],
)
def test_an_engine_that_cannot_be_is_refused(run, options, message):
    with pytest.raises(ValueError, match=message):
        load_engine(run, **options)


def test_a_cache_in_fp16_answers_too(run):
    engine = load_engine(run, weights="fp32", cache_dtype="fp16", cache_tokens=128)
    assert engine.stats()["blocks"] == 2
    assert generated(engine, "The old train", GREEDY, 5)


def test_a_directory_without_a_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds neither config.json"):
        load_engine(tmp_path)


def test_rows_of_the_embedding_without_a_piece_are_never_drawn(tokenizer):
    model = random_model(replace(CONFIG, vocab_size=600))
    with torch.no_grad():
        model.output[512:] *= 50
    engine = Engine(PlainRunner(model, 4), tokenizer)
    assert max(ids(answer(engine, ask(1, 5, sampling=Sampling(2.0, top_p=1.0), max_tokens=60)))) < 512


def test_samples_carry_what_reproduces_them(engine, shards):
    from puna.generate.samples import sampler

    sampling = Sampling(temperature=0.7, seed=5)
    model = engine.runner.model
    assert isinstance(model, Llama)
    records = sampler(shards / "tokenizer.model", ["The", "A"], sampling, 10)(model)
    assert [record["prompt"] for record in records] == ["The", "A"]
    assert records[0]["text"] == generated(engine, "The", sampling, 10)
    assert records[0] | {"text": ""} == {
        "prompt": "The", "text": "", "temperature": 0.7, "top_p": 0.95, "seed": 5
    }  # fmt: skip
