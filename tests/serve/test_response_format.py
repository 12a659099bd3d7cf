"""response_format through the server: JSON mode, JSON schemas, and what is refused."""

import json
import sys
import threading
import time
from typing import Literal

import httpx2
import openai
import pytest
from pydantic import BaseModel

from puna.serve.body import MAX_CONTAINERS
from tests.serve.conftest import NAME, live, tiny_engine
from tests.serve.test_limits import JSON, refusal

TALK = [{"role": "user", "content": "a llama, as JSON"}]
PATTERNS = {"allOf": [{"type": "string", "pattern": f".*a.{{{i}}}b.*"} for i in range(1, 40)]}


class Llama(BaseModel):
    """What OpenAI's client asks for and reads."""

    kind: Literal["llama", "alpaca"]
    is_loaded: bool


def form(schema: object) -> dict[str, object]:
    return {"type": "json_schema", "json_schema": {"name": "llama", "schema": schema, "strict": True}}


def chat(live, schema, **more):
    body = {"messages": TALK, "max_tokens": 300, "seed": 1, "response_format": form(schema)}
    return live.post("/v1/chat/completions", body | more)


def post(live, body: str) -> httpx2.Response:
    return httpx2.post(f"{live.url}/v1/chat/completions", content=body, headers=JSON, timeout=60)


@pytest.fixture
def client(served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


@pytest.mark.parametrize("temperature", [0, 1])
def test_openais_client_parses_the_answer(client, temperature):
    answer = client.chat.completions.parse(
        model=NAME, messages=TALK, response_format=Llama, temperature=temperature, seed=3, max_tokens=400
    )
    assert answer.choices[0].finish_reason == "stop"
    assert isinstance(answer.choices[0].message.parsed, Llama)


def test_a_streamed_answer_is_the_whole_one(client):
    asked = {"model": NAME, "messages": TALK, "seed": 5, "max_tokens": 400}
    whole = client.chat.completions.parse(response_format=Llama, **asked)
    with client.chat.completions.stream(response_format=Llama, **asked) as events:
        streamed = events.get_final_completion()
    assert streamed.choices[0].message.content == whole.choices[0].message.content
    assert isinstance(streamed.choices[0].message.parsed, Llama)


def test_json_mode_writes_an_object(client, served):
    end = next(id for id in range(320) if served.engine.tokenizer.piece(id) == b"}")
    answer = client.chat.completions.create(
        model=NAME, messages=TALK, response_format={"type": "json_object"}, max_tokens=400,
        temperature=0, logit_bias={str(end): 100},
    )  # fmt: skip
    assert answer.choices[0].finish_reason == "stop"
    assert json.loads(answer.choices[0].message.content) == {}


def test_an_answer_that_max_tokens_ends_says_so(served):
    choice = chat(served, {"type": "object"}, max_tokens=2).json()["choices"][0]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["content"].startswith("{")


def test_several_answers_conform(served):
    answer = chat(served, Llama.model_json_schema(), n=2).json()
    assert len(answer["choices"]) == 2
    for choice in answer["choices"]:
        if choice["finish_reason"] == "stop":
            Llama.model_validate_json(choice["message"]["content"])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"type": "json_schema"}, "json_schema"),
        ({"type": "json_object", "json_schema": {"name": "a"}}, "json_schema"),
        ({"type": "xml"}, "response_format"),
        (form({"type": "array", "uniqueItems": True}), "uniqueItems"),
        (form({"$ref": "file:///etc/passwd"}), "passwd"),
        (form(PATTERNS), "too expensive to compile"),
        (form({"enum": ["x" * 70_000]}), "maximum"),
        (form({"const": "\ud800"}), "schema"),
        ({"type": "json_schema", "json_schema": {"name": "a", "shcema": {}}}, "shcema"),
    ],
)  # fmt: skip
def test_what_cannot_be_followed_is_refused_by_name(served, given, said):
    assert said in refusal(post(served, json.dumps({"messages": TALK, "response_format": given})), 400)


@pytest.mark.parametrize("depth", [500, 2000, MAX_CONTAINERS // 2])
def test_a_deep_schema_is_refused(served, depth):
    """Beyond what a recursive reader of JSON stands."""
    schema = '{"items": ' * depth + "{}" + "}" * depth
    body = f'{{"messages": {json.dumps(TALK)}, "response_format": {json.dumps(form(0))}}}'
    body = body.replace('"schema": 0', f'"schema": {schema}')
    refusal(post(served, body), 400)


def test_other_streams_run_on_while_a_hostile_schema_compiles(vocabulary):
    with live(tiny_engine(vocabulary)) as one:
        hostile = threading.Thread(target=chat, args=(one, PATTERNS))
        hostile.start()
        began, answers = time.monotonic(), 0
        while hostile.is_alive() and time.monotonic() < began + 60:
            one.complete(prompt="the llama", max_tokens=2)
            answers += 1
        hostile.join()
        assert answers >= 5
        one.wait_until_free()


def test_a_server_without_the_extra_names_it(vocabulary, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with live(tiny_engine(vocabulary)) as one:
        assert 'pip install "puna[json]"' in refusal(chat(one, {"type": "object"}), 400)
        assert one.complete(prompt="a", max_tokens=1)
