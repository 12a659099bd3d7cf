"""OpenAI's own client, unmodified, is the oracle of the API's form."""

import math

import openai
import pytest

from puna.config import Sampling
from tests.generate.conftest import generated
from tests.serve.conftest import CONFIG, NAME, live, tiny_engine

GREEDY = Sampling(temperature=0)
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "the llama"}]


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def reference(vocabulary):
    """The same engine, asked without a server."""
    return tiny_engine(vocabulary)


def test_the_model_is_listed_with_its_limits(client):
    (model,) = client.models.list().data
    assert (model.id, model.context, model.chat) == (NAME, CONFIG.context, True)
    assert client.models.retrieve(NAME).id == NAME


def test_a_completion_is_what_the_engine_generates(client, reference):
    answer = client.completions.create(model=NAME, prompt="the salt", max_tokens=12, temperature=0)
    assert answer.choices[0].text == generated(reference, "the salt", GREEDY, 12)
    assert answer.usage.prompt_tokens == len(reference.encode("the salt"))
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_streamed_completion_joins_to_the_whole(client):
    options = {"model": NAME, "prompt": "seven stones", "max_tokens": 20, "seed": 5}
    whole = client.completions.create(**options)
    chunks = list(client.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    assert len(chunks) > 3
    assert "".join(c.choices[0].text for c in chunks[:-1]) == whole.choices[0].text
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert (chunks[-1].choices, chunks[-1].usage) == ([], whole.usage)


def test_a_conversation_goes_through_the_models_template(client, reference):
    answer = client.chat.completions.create(model=NAME, messages=MESSAGES, max_tokens=12, temperature=0)
    ids = reference.template.encode(MESSAGES)
    assert answer.choices[0].message.content == generated(reference, ids, GREEDY, 12)
    assert answer.choices[0].message.role == "assistant"
    assert answer.usage.prompt_tokens == len(ids)


def test_a_streamed_conversation_joins_to_the_whole(client):
    options = {"model": NAME, "messages": MESSAGES, "max_completion_tokens": 20, "seed": 9}
    whole = client.chat.completions.create(**options)
    chunks = list(
        client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True})
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage


def test_parts_of_text_are_one_text(client):
    parts = [
        {"role": "user", "content": [{"type": "text", "text": "the "}, {"type": "text", "text": "llama"}]}
    ]
    answers = [
        client.chat.completions.create(model=NAME, messages=messages, max_tokens=8, temperature=0)
        for messages in (parts, [{"role": "user", "content": "the llama"}])
    ]
    assert answers[0].choices[0].message == answers[1].choices[0].message


def test_an_answer_can_be_sent_back_as_it_came(client):
    first = client.chat.completions.create(model=NAME, messages=MESSAGES, max_tokens=4).choices[0].message
    again = [*MESSAGES, first.model_dump(), {"role": "user", "content": "and then"}]
    assert client.chat.completions.create(model=NAME, messages=again, max_tokens=4).choices


def test_the_seed_decides_and_without_it_answers_differ(client):
    def draw(**options):
        return client.completions.create(model=NAME, prompt="wind", max_tokens=24, **options).choices[0].text

    assert draw(seed=3) == draw(seed=3)
    assert len({draw() for _ in range(4)}) > 1


def test_n_gives_answers_that_differ_and_the_first_is_the_one_alone(client):
    options = {"model": NAME, "prompt": ["wind", "salt"], "max_tokens": 16, "seed": 3}
    alone = client.completions.create(**options)
    three = client.completions.create(**options, n=3)
    assert [choice.index for choice in three.choices] == list(range(6))
    assert [three.choices[i].text for i in (0, 3)] == [choice.text for choice in alone.choices]
    assert len({choice.text for choice in three.choices}) > 2
    assert three.usage.prompt_tokens == alone.usage.prompt_tokens


def test_token_ids_are_a_prompt_too(client, reference):
    ids = reference.encode("the river")
    answers = [
        client.completions.create(model=NAME, prompt=prompt, max_tokens=8, temperature=0).choices[0].text
        for prompt in (ids, [ids], "the river")
    ]
    assert len(set(answers)) == 1


def test_stop_strings_end_the_answer_before_them(client):
    options = {"model": NAME, "prompt": "the wind", "max_tokens": 40, "temperature": 0}
    whole = client.completions.create(**options).choices[0].text
    stop = whole[8:11]
    answer = client.completions.create(**options, stop=[stop]).choices[0]
    assert answer.text == whole[: whole.index(stop)]
    assert answer.finish_reason == "stop"


def test_logprobs_are_those_of_the_distribution(client):
    answer = client.completions.create(model=NAME, prompt="salt", max_tokens=6, logprobs=3, temperature=0)
    logprobs = answer.choices[0].logprobs
    assert b"".join(map(spelled, logprobs.tokens)).decode("utf-8", "replace") == answer.choices[0].text
    for chosen, top in zip(logprobs.token_logprobs, logprobs.top_logprobs, strict=True):
        assert chosen == max(top.values())
        assert 3 <= len(top) <= 4
        assert sum(map(math.exp, top.values())) <= 1 + 1e-5
    # Each token's offset is where it stands in the text.
    for token, at in zip(logprobs.tokens, logprobs.text_offset, strict=True):
        assert token.startswith("bytes:") or answer.choices[0].text.startswith(token, at)


def spelled(token: str) -> bytes:
    """A token's bytes: those that are no text alone are written bytes:\\xe2."""
    if token.startswith("bytes:"):
        return bytes.fromhex(token.removeprefix("bytes:").replace("\\x", ""))
    return token.encode()


def test_logprobs_of_a_conversation_stand_with_each_token(client):
    options = {"model": NAME, "messages": MESSAGES, "max_tokens": 6, "logprobs": True, "top_logprobs": 2}
    whole = client.chat.completions.create(**options, temperature=0).choices[0]
    spelled = b"".join(bytes(token.bytes) for token in whole.logprobs.content)
    assert spelled.decode("utf-8", "replace") == whole.message.content
    assert all(token.logprob == token.top_logprobs[0].logprob for token in whole.logprobs.content)
    chunks = client.chat.completions.create(**options, temperature=0, stream=True)
    streamed = [t for c in chunks if c.choices[0].logprobs for t in c.choices[0].logprobs.content]
    assert streamed == whole.logprobs.content


def test_echo_gives_the_prompt_back_with_its_logprobs(client, reference):
    options = {"model": NAME, "prompt": "the llama carries", "echo": True, "logprobs": 1}
    alone = client.completions.create(**options, max_tokens=0).choices[0]
    assert alone.text == "the llama carries"
    assert len(alone.logprobs.tokens) == len(reference.tokenizer.encode("the llama carries"))
    longer = client.completions.create(**options, max_tokens=5, temperature=0).choices[0]
    assert longer.text.startswith(alone.text)
    assert longer.logprobs.token_logprobs[: len(alone.logprobs.tokens)] == alone.logprobs.token_logprobs
    streamed = client.completions.create(**options, max_tokens=5, temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == longer.text


def test_lookup_changes_nothing_but_the_speed(client):
    options = {"model": NAME, "prompt": "seven stones seven stones", "max_tokens": 30, "temperature": 0}
    plain = client.completions.create(**options).choices[0].text
    assert client.completions.create(**options, extra_body={"lookup": 4}).choices[0].text == plain
    with pytest.raises(openai.BadRequestError, match="lookup is exact only for greedy"):
        client.completions.create(**(options | {"temperature": 1}), extra_body={"lookup": 4})


def test_refusals_are_the_clients_exceptions(client, served):
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model=NAME, prompt="a " * 600, max_tokens=5)
    assert refused.value.code == "context_length_exceeded"
    assert refused.value.param == "prompt"
    with pytest.raises(openai.NotFoundError, match=r"there is no model 'gpt'.*'tiny'"):
        client.completions.create(model="gpt", prompt="a")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt")
    with pytest.raises(openai.BadRequestError, match="best_of is not supported"):
        client.completions.create(model=NAME, prompt="a", best_of=3)
    tools = [{"type": "function", "function": {"name": "now", "parameters": {}}}]
    with pytest.raises(openai.BadRequestError, match="tools is not supported"):
        client.chat.completions.create(model=NAME, messages=MESSAGES, tools=tools)
    picture = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
    with pytest.raises(openai.BadRequestError, match="content must be a string"):
        client.chat.completions.create(model=NAME, messages=picture)


def test_a_model_without_a_template_says_so(vocabulary):
    with live(tiny_engine(vocabulary, template=False)) as base:
        client = openai.OpenAI(base_url=f"{base.url}/v1", api_key="none", max_retries=0)
        assert client.models.list().data[0].chat is False
        with pytest.raises(openai.BadRequestError, match=r"no chat template.*/v1/completions"):
            client.chat.completions.create(model=NAME, messages=MESSAGES)
        assert client.completions.create(model=NAME, prompt="a", max_tokens=2).choices


def test_keys_are_asked_for(vocabulary):
    with live(tiny_engine(vocabulary), api_keys=("first-key", "second-key")) as locked:
        for key in ("first-key", "second-key"):
            assert openai.OpenAI(base_url=f"{locked.url}/v1", api_key=key).models.list().data
        for key in ("first-ke", "third-key", "first-key2"):
            with pytest.raises(openai.AuthenticationError, match="missing or unknown API key"):
                openai.OpenAI(base_url=f"{locked.url}/v1", api_key=key, max_retries=0).models.list()
