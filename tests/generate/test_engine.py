"""Generation: the cache changes nothing, the seed decides, the limits are said."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.config import ModelConfig, Sampling
from puna.generate.cache import KVCache
from puna.generate.chat import chat
from puna.generate.engine import Engine, load_engine
from puna.generate.sampling import draw
from puna.model.llama import Llama
from puna.recipes import recipe
from puna.tokens.tokenizer import Tokenizer
from puna.train.loop import train

CONFIG = ModelConfig(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=64, vocab_size=512, context=64)
GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def engine(shards) -> Engine:
    model = Llama(CONFIG)
    model.init_weights(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return Engine(model, Tokenizer(shards))


@torch.no_grad()
def test_decoding_with_the_cache_gives_the_logits_of_the_whole_text(engine):
    tokens = torch.randint(0, 512, (1, 40), generator=torch.Generator().manual_seed(1))
    whole = engine.model(tokens)
    cache = KVCache(CONFIG, 40, torch.float32)
    steps = [engine.model(tokens[:, :10], cache)]
    steps += [engine.model(tokens[:, t : t + 1], cache) for t in range(10, 40)]
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, atol=1e-4, rtol=1e-4)


def test_greedy_text_is_the_likeliest_token_each_time(engine):
    text = engine.generate("The llama", GREEDY, max_tokens=12)
    ids = engine.tokenizer.encode("The llama", bos=True)
    expected = []
    for _ in range(12):
        token = int(engine.model(torch.tensor([ids]))[0, -1].argmax())
        if token == engine.tokenizer.eos_id:
            break
        ids.append(token)
        expected.append(token)
    prompt = engine.tokenizer.decode(ids[: len(ids) - len(expected)])
    assert prompt + text == engine.tokenizer.decode(ids)


def test_the_seed_decides_the_text(engine):
    texts = [engine.generate("A", Sampling(temperature=1.0, top_p=1.0, seed=seed), 20) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_generation_stops_where_the_context_is_full(engine):
    ids = engine.tokenizer.encode("The llama", bos=True)
    text = engine.generate("The llama", Sampling(temperature=1.0, seed=4), max_tokens=10_000)
    assert text
    assert len(ids) + len(engine.tokenizer.encode(text)) <= 2 * CONFIG.context  # re-encoding may differ


def test_a_prompt_that_fills_the_context_is_refused(engine):
    with pytest.raises(ValueError, match=r"the prompt is \d+ tokens long.*model\.context 64.*shorten"):
        engine.generate("stones " * 100, GREEDY)


@pytest.mark.parametrize("max_tokens", [0, -5])
def test_a_length_that_is_none_is_refused(engine, max_tokens):
    with pytest.raises(ValueError, match="max-tokens"):
        engine.generate("A", GREEDY, max_tokens)


def test_the_model_runs_once_a_token(engine):
    calls: list[int] = []
    hook = engine.model.register_forward_pre_hook(lambda *_: calls.append(1))
    text = engine.generate("A", Sampling(temperature=1.0, seed=3), 7)
    hook.remove()
    assert text
    assert len(calls) == 7


@pytest.mark.parametrize(
    ("options", "name"),
    [({"temperature": -1}, "temperature"), ({"top_k": -2}, "top-k"), ({"top_p": 0}, "top-p")],
)
def test_an_impossible_option_is_named(engine, options, name):
    with pytest.raises(ValueError, match=name):
        engine.generate("A", Sampling(**options))


logits_lists = st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=50)


@given(logits=logits_lists, top_k=st.integers(1, 60), seed=st.integers(0, 99))
def test_top_k_draws_among_the_k_likeliest(logits, top_k, seed):
    logits_V = torch.tensor(logits)
    token = draw(logits_V, Sampling(1.0, top_k, 1.0), torch.Generator().manual_seed(seed))
    assert (logits_V > logits_V[token]).sum() < top_k


@given(logits=logits_lists, top_p=st.floats(0.01, 1), seed=st.integers(0, 99))
def test_top_p_draws_within_the_nucleus(logits, top_p, seed):
    logits_V = torch.tensor(logits)
    token = draw(logits_V, Sampling(1.0, 0, top_p), torch.Generator().manual_seed(seed))
    likelier = logits_V.softmax(0)[logits_V > logits_V[token]].sum()
    assert likelier < top_p + 1e-5


@settings(max_examples=5)
@given(seed=st.integers(0, 1000))
def test_draws_follow_the_distribution(seed):
    probabilities = torch.tensor([0.6, 0.3, 0.1])
    generator = torch.Generator().manual_seed(seed)
    counts = torch.zeros(3)
    for _ in range(3000):
        counts[draw(probabilities.log(), Sampling(1.0, 0, 1.0), generator)] += 1
    # 5 standard deviations of a binomial share, sqrt(p (1 - p) / 3000)
    assert (
        (counts / 3000 - probabilities).abs() < 5 * (probabilities * (1 - probabilities) / 3000).sqrt()
    ).all()


def test_a_trained_run_answers_in_the_manner_of_its_corpus(shards, tmp_path):
    base = recipe("tiny")
    config = replace(
        base,
        data=(str(shards),),
        model=replace(base.model, vocab_size=512),
        train=replace(base.train, steps=80),
    )
    train(config, tmp_path / "run")
    engine = load_engine(tmp_path / "run")
    assert "return value" in engine.generate("def carries_1(value):\n", GREEDY, 40)
    assert "." in engine.generate("The old train", GREEDY, 40)


def test_a_directory_without_a_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no run configuration"):
        load_engine(tmp_path)


def talk(engine: Engine, lines: list[str]) -> str:
    """What chat writes when these lines are typed."""
    typed, written = iter(lines), []

    def read(prompt: str) -> str:
        written.append(prompt)
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    chat(engine, GREEDY, 8, read, written.append)
    return "".join(written)


def test_chat_answers_a_line_as_generate_does(engine):
    answer = engine.generate("The llama", GREEDY, 8)
    assert answer in talk(engine, ["The llama"])


def test_chat_remembers_until_new(engine):
    first = engine.generate("The llama", GREEDY, 8)
    second = engine.generate(f"The llama{first}\nand", GREEDY, 8)
    assert second in talk(engine, ["The llama", "and"])
    assert engine.generate("and", GREEDY, 8) in talk(engine, ["The llama", "/new", "and"])


def test_chat_goes_on_when_the_context_is_full(engine):
    written = talk(engine, ["The river forgets."] * 12 + ["/quit", "never read"])
    assert "tokens" not in written
    assert "never read" not in written


def test_chat_names_an_unknown_command(engine):
    assert "no command /exit; /help lists them" in talk(engine, ["/exit"])


def test_samples_carry_what_reproduces_them(engine, shards):
    from puna.generate.samples import sampler

    sampling = Sampling(temperature=0.7, seed=5)
    records = sampler(shards / "tokenizer.model", ["The", "A"], sampling, 10)(engine.model)
    assert [record["prompt"] for record in records] == ["The", "A"]
    assert records[0]["text"] == engine.generate("The", sampling, 10)
    assert records[0] | {"text": ""} == {
        "prompt": "The", "text": "", "temperature": 0.7, "top_p": 0.95, "seed": 5
    }  # fmt: skip
