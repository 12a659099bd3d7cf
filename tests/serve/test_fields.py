"""OpenAI's fields, all of them: taken at the value that does nothing, refused by name otherwise."""

import typing
from dataclasses import replace

import httpx2
import openai
import pytest
import torch
from openai.types.chat import completion_create_params as of_chat
from openai.types.completion_create_params import CompletionCreateParamsBase as OfCompletions

from puna.config import Sampling
from puna.generate.request import Request
from puna.serve.schemas import ChatRequest, CompletionRequest
from puna.tokens.chat_template import ChatTemplate
from tests.serve.conftest import NAME, live, tiny_engine
from tests.serve.test_limits import refusal

OF_CHAT = of_chat.CompletionCreateParamsBase
TALK = {"messages": [{"role": "user", "content": "the llama"}], "max_tokens": 1}
# Besides null: what OpenAI documents as the default, or what changes nothing here.
NEUTRAL = {
    "best_of": [1], "echo": [False], "frequency_penalty": [0, 0.0], "function_call": ["auto", "none"],
    "functions": [[]], "logit_bias": [{}], "logprobs": [False], "metadata": [{}], "modalities": [["text"]],
    "n": [1], "parallel_tool_calls": [True, False], "presence_penalty": [0, -2, 2],
    "prompt_cache_key": ["k"], "prompt_cache_retention": ["in_memory"], "reasoning_effort": ["none"],
    "response_format": [{"type": "text"}], "safety_identifier": ["s"], "seed": [-1, 0, 2**63 - 1],
    "service_tier": ["auto", "default"], "stop": ["x", ["x"] * 4], "store": [False], "suffix": [""],
    "temperature": [0, 2], "tool_choice": ["auto", "none"], "tools": [[]], "top_logprobs": [0],
    "top_p": [0, 1], "user": ["u"], "verbosity": ["medium"],
}  # fmt: skip
OTHERWISE = {
    "audio": {"voice": "ash", "format": "wav"}, "best_of": 2, "metadata": {"a": "b"},
    "modalities": ["text", "audio"], "prediction": {"type": "content", "content": "x"},
    "reasoning_effort": "high", "response_format": {"type": "xml"}, "service_tier": "flex",
    "store": True, "suffix": "x", "tools": [{"type": "function", "function": {"name": "f"}}],
    "verbosity": "low", "web_search_options": {"search_context_size": "low"}, "moderation": {"model": "m"},
    "prompt_cache_options": {"a": 1}, "functions": [{"name": "f"}],
}  # fmt: skip


@pytest.mark.parametrize(("theirs", "ours"), [(OfCompletions, CompletionRequest), (OF_CHAT, ChatRequest)])
def test_every_field_of_openais_own_types_is_known(theirs, ours):
    assert theirs.__annotations__.keys() <= ours.model_fields.keys()


@pytest.mark.parametrize(
    "name", sorted(OF_CHAT.__annotations__.keys() - {"messages", "model", "stream_options"})
)
def test_fields_of_chat_are_taken_at_their_neutral_values(served, name):
    for value in (None, *NEUTRAL.get(name, [])):
        answer = served.post("/v1/chat/completions", TALK | {name: value})
        assert answer.status_code == 200, answer.text
    if name in OTHERWISE:
        answer = served.post("/v1/chat/completions", TALK | {name: OTHERWISE[name]})
        assert name in refusal(answer, 400)


@pytest.mark.parametrize(
    "name", sorted(OfCompletions.__annotations__.keys() - {"prompt", "model", "stream_options"})
)
def test_fields_of_completions_are_taken_at_their_neutral_values(served, name):
    values = [0, 5] if name == "logprobs" else NEUTRAL.get(name, [])
    for value in (None, *values):
        body = {"prompt": "the", "max_tokens": 1, name: value}
        assert served.post("/v1/completions", body).status_code == 200, (name, value)
    if name in OTHERWISE:
        answer = served.post("/v1/completions", {"prompt": "the", name: OTHERWISE[name]})
        assert name in refusal(answer, 400)


def test_a_message_may_have_a_name(served):
    named = [{"role": "user", "content": "the llama", "name": "Ada"}]
    assert served.post("/v1/chat/completions", TALK | {"messages": named}).status_code == 200


# ---- penalties and biases


def test_a_bias_forces_and_bans(served):
    body = {"prompt": "the", "max_tokens": 6, "temperature": 0, "ignore_eos": True, "logprobs": 0}
    forced = served.complete(**body, logit_bias={"70": 100})
    assert forced["choices"][0]["logprobs"]["tokens"] == [served.engine.tokenizer.piece(70).decode()] * 6
    plain = served.complete(**body)
    first = plain["choices"][0]["logprobs"]["tokens"][0]
    ids = [id for id in range(320) if served.engine.tokenizer.piece(id).decode(errors="ignore") == first]
    banned = served.complete(**body, logit_bias=dict.fromkeys(map(str, ids), -100))
    assert first not in banned["choices"][0]["logprobs"]["tokens"]
    for bias, said in (
        ({"320": 1}, "320"),
        ({"a": 1}, "logit_bias"),
        ({"5": 101}, "logit_bias"),
        ({"05": 1}, "logit_bias"),
    ):
        assert said in refusal(served.post("/v1/completions", {"prompt": "a", "logit_bias": bias}), 400)


def test_penalties_are_those_of_openais_formula(vocabulary):
    """Each token is the likeliest under logit - presence * (count > 0) - frequency * count."""
    engine, ids, counts = tiny_engine(vocabulary), [5, 6, 7], torch.zeros(320)
    for _ in range(12):
        with torch.no_grad():
            logits = engine.runner.model(torch.tensor([ids]))[0, -1].detach().clone()
        logits[9] += 3.0
        ids.append(int((logits - 1.5 * (counts > 0) - 0.7 * counts).argmax()))
        counts[ids[-1]] += 1
    asked = Request(
        (5, 6, 7), Sampling(temperature=0), 12, ignore_eos=True,
        presence_penalty=1.5, frequency_penalty=0.7, logit_bias=((9, 3.0),),
    )  # fmt: skip
    found: dict[int, list[int]] = {0: [], 1: [], 2: []}
    others = replace(asked, prompt=(8, 9), presence_penalty=-2.0)
    for index, chunk in engine.answers([asked, others, asked]):  # whoever else is answered
        found[index] += [token.id for token in chunk.tokens]
    assert found[0] == found[2] == ids[3:]


# ---- the ends of things


def test_a_text_as_long_as_the_context_can_be_scored(served):
    ids = [5 + i % 200 for i in range(512)]
    answer = served.complete(prompt=ids, max_tokens=0, echo=True, logprobs=1)
    logprobs = answer["choices"][0]["logprobs"]["token_logprobs"]
    assert len(logprobs) == 512 and all(value < 0 for value in logprobs[1:])
    shorter = served.complete(prompt=ids[:300], max_tokens=0, echo=True, logprobs=1)
    assert logprobs[:300] == pytest.approx(shorter["choices"][0]["logprobs"]["token_logprobs"], abs=1e-4)
    refusal(served.post("/v1/completions", {"prompt": [*ids, 5], "max_tokens": 0, "echo": True}), 400)


def test_head_is_answered_where_get_is(served):
    for path in (
        "/",
        "/health",
        "/metrics",
        "/v1/models",
        f"/v1/models/{NAME}",
        "/openapi.json",
        "/tokenizer_info",
    ):
        head, get = httpx2.head(served.url + path), httpx2.get(served.url + path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"] == get.headers["content-type"]
    assert httpx2.head(f"{served.url}/v1/completions").status_code == 405


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.5:8000", "127.255.255.254", "[::1]:80", "[0:0::1]"],
)
def test_every_loopback_address_is_known(served, host):
    assert httpx2.get(f"{served.url}/v1/models", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["", "128.0.0.1", "localhost.evil.example", "127.0.0.1.example", "[::2]", "0.0.0.0"]
)
def test_other_hosts_are_not(served, host):
    assert httpx2.get(f"{served.url}/v1/models", headers={"host": host}).status_code == 403


def test_the_preflight_of_the_javascript_client_passes(vocabulary):
    stainless = (
        "arch",
        "lang",
        "os",
        "package-version",
        "retry-count",
        "runtime",
        "runtime-version",
        "timeout",
    )
    headers = {
        "origin": "https://page.example",
        "access-control-request-method": "POST",
        "access-control-request-private-network": "true",
        "access-control-request-headers": ",".join(
            ["authorization", "content-type", *(f"x-stainless-{name}" for name in stainless)]
        ),
    }
    with live(tiny_engine(vocabulary), cors_origins=("https://page.example",)) as shared:
        answer = httpx2.options(f"{shared.url}/v1/chat/completions", headers=headers)
        assert answer.status_code == 200, answer.text
        other = httpx2.options(f"{shared.url}/v1/models", headers={**headers, "origin": "https://x.example"})
        assert other.status_code == 400


def test_an_empty_answer_has_log_probabilities_where_they_are_asked_for(served):
    end = {str(served.engine.tokenizer.eos_id): 100}
    body = TALK | {"logprobs": True, "logit_bias": end, "temperature": 0}
    choice = served.post("/v1/chat/completions", body).json()["choices"][0]
    assert (choice["message"]["content"], choice["logprobs"]) == ("", {"content": []})


def test_openais_client_sends_a_bias(served):
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
    answer = client.completions.create(
        model=NAME, prompt="a", max_tokens=2, logit_bias={"70": 100}, temperature=0
    )
    assert answer.choices[0].text == served.engine.tokenizer.piece(70).decode() * 2
    assert typing.cast(int, answer.usage.completion_tokens) == 2


def test_an_answer_that_ends_at_once_keeps_the_scores_of_the_prompt(served):
    """Harnesses ask for one token and drop the last entry: the token that ends the answer must be one."""
    ids = served.engine.tokenizer.encode("the llama carries")
    options = {"prompt": ids, "max_tokens": 1, "echo": True, "logprobs": 2, "temperature": 0,
               "ignore_eos": False}  # fmt: skip
    goes_on = served.complete(**options)["choices"][0]
    eos = str(served.engine.tokenizer.eos_id)
    ends = served.complete(**options, logit_bias={eos: 100})["choices"][0]
    assert (goes_on["finish_reason"], ends["finish_reason"]) == ("length", "stop")
    for choice in (goes_on, ends):
        assert {len(values) for values in choice["logprobs"].values()} == {len(ids) + 1}
    assert ends["logprobs"]["token_logprobs"][:-1] == goes_on["logprobs"]["token_logprobs"][:-1]
    assert ends["text"] == "the llama carries"


def test_a_conversation_that_the_client_laid_out_has_the_ids_of_our_own(vocabulary):
    """As lm-eval does with --apply_chat_template: the template of /tokenizer_info, then /tokenize."""
    engine = tiny_engine(vocabulary)
    source = "{{ bos_token }}{% for m in messages %}{{ m.role + ': ' + m.content + eos_token }}{% endfor %}"
    engine.template = ChatTemplate(source, engine.tokenizer)
    talk = [{"role": "user", "content": "the llama"}, {"role": "assistant", "content": "salt"}]
    laid_out = "<s>user: the llama</s>assistant: salt</s>"
    with live(engine) as one:
        ids = engine.template.encode(talk)
        for bos in (True, False):
            body = {"prompt": laid_out, "add_special_tokens": bos}
            assert one.post("/tokenize", body).json()["tokens"] == ids
        plain = one.post("/tokenize", {"prompt": laid_out, "parse_special": False}).json()["tokens"]
        assert engine.tokenizer.decode(plain) == laid_out
        spoken = one.complete(prompt=laid_out, max_tokens=1, parse_special=True)
        assert spoken["usage"]["prompt_tokens"] == len(ids)
        assert one.complete(prompt=laid_out, max_tokens=1)["usage"]["prompt_tokens"] == len(plain)
