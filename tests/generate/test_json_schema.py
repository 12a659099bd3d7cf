"""Answers that conform to a JSON schema; the oracle is the package jsonschema."""

import json
import sys
import time
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from puna.config import Sampling
from puna.extras import MissingExtra
from puna.generate.engine import Engine
from puna.generate.language_model import LanguageModel
from puna.generate.request import Request
from puna.generate.schema_check import CPU_SECONDS, MAX_CHARACTERS
from tests.generate.conftest import GREEDY

HERD = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "count": {"type": "integer", "minimum": 1, "maximum": 99},
        "kind": {"enum": ["llama", "alpaca", None]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
    },
    "required": ["name", "count", "kind", "tags"],
    "additionalProperties": False,
}
TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "is": {"type": "boolean"},
                "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]},
            },
            "required": ["is", "next"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}


def answers(engine: Engine, *requests: Request) -> list[tuple[str, str]]:
    """Text and reason to finish of each request, answered together."""
    found = [("", "")] * len(requests)
    for index, chunk in engine.answers(requests):
        found[index] = found[index][0] + chunk.text, chunk.finish or ""
    return found


def asked(engine: Engine, schema: Any, sampling: Sampling = GREEDY, **more: Any) -> Request:
    more = {"max_tokens": 200, "prompt": (1, 5, 6), **more}
    return Request(sampling=sampling, grammar=engine.grammars.compile(json.dumps(schema)), **more)


names = st.text("abc", min_size=1, max_size=3)
leaves = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.builds(lambda a, b: {"type": "integer", "minimum": a, "maximum": a + b}, *[st.integers(0, 99)] * 2),
    st.builds(lambda a: {"type": "number", "minimum": -a, "exclusiveMaximum": a}, st.integers(1, 50)),
    st.builds(lambda a, b: {"type": "string", "minLength": a, "maxLength": a + b}, *[st.integers(0, 3)] * 2),
    st.sampled_from(["^[a-c]{2,3}$", r"^\d\d$"]).map(lambda pattern: {"type": "string", "pattern": pattern}),
    st.sampled_from(["date", "ipv4"]).map(lambda form: {"type": "string", "format": form}),
    st.lists(st.one_of(st.integers(), st.text(max_size=3)), min_size=1, max_size=4).map(
        lambda v: {"enum": v}
    ),
    st.text(max_size=4).map(lambda value: {"const": value}),
)


def compound(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def as_object(properties: dict[str, Any], is_required: bool, more: bool) -> dict[str, Any]:
        required = sorted(properties)[: None if is_required else 1]
        others = {"type": "integer", "maximum": 9, "minimum": 0} if more else False
        return {
            "type": "object", "properties": properties, "required": required, "additionalProperties": others,
        }  # fmt: skip

    return st.one_of(
        st.builds(as_object, st.dictionaries(names, inner, max_size=3), st.booleans(), st.booleans()),
        st.builds(
            lambda items, a, b: {"type": "array", "items": items, "minItems": a, "maxItems": a + b},
            inner, st.integers(0, 2), st.integers(0, 2),
        ),
        st.lists(inner, min_size=1, max_size=3).map(lambda several: {"anyOf": several}),
        st.lists(inner, min_size=1, max_size=2).map(
            lambda several: {
                "type": "array", "prefixItems": several, "items": False, "minItems": len(several),
            }
        ),
    )  # fmt: skip


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    schema=st.recursive(leaves, compound, max_leaves=5),
    temperature=st.sampled_from([0.0, 1.0, 1.5]),
    seed=st.integers(0, 9),
)
def test_an_answer_that_ends_conforms_to_its_schema(engine, schema, temperature, seed):
    sampling = Sampling(temperature=temperature, seed=seed, top_p=0.98 if seed % 2 else 1)
    ((text, finish),) = answers(engine, asked(engine, schema, sampling))
    assume(finish == "stop")
    jsonschema.validate(json.loads(text), schema, jsonschema.Draft202012Validator)


@pytest.mark.parametrize("schema", [HERD, TREE], ids=["herd", "tree"])
@pytest.mark.parametrize("temperature", [0, 0.7, 1.5])
def test_schemas_of_objects_and_recursive_ones_are_followed(engine, schema, temperature):
    several = [asked(engine, schema, Sampling(temperature=temperature, seed=seed)) for seed in range(4)]
    found = answers(engine, *several)
    assert sum(finish == "stop" for _, finish in found) >= 2
    for text, finish in found:
        if finish == "stop":
            jsonschema.validate(json.loads(text), schema)


def test_an_answer_that_max_tokens_ends_says_so(engine):
    ((text, finish),) = answers(engine, asked(engine, HERD, max_tokens=6))
    assert finish == "length"
    with pytest.raises(ValueError):
        json.loads(text)


def test_other_answers_are_bitwise_what_they_are_alone(engine):
    plain = [Request((1, 7 + i), Sampling(temperature=i % 2, seed=i), 30, logprobs=3) for i in range(3)]
    bound = [asked(engine, HERD, Sampling(temperature=i % 2, seed=i), logprobs=3) for i in range(3)]

    def tokens(*requests: Request) -> list[list[Any]]:
        found: list[list[Any]] = [[] for _ in requests]
        for index, chunk in engine.answers(requests):
            found[index] += chunk.tokens
        return found

    alone = [tokens(request)[0] for request in (*plain, *bound)]
    assert tokens(*plain, *bound) == alone


def test_prompt_lookup_gives_the_same_answer(engine):
    plain = asked(engine, HERD)
    looked_up = asked(engine, HERD, lookup=4)
    assert answers(engine, plain) == answers(engine, looked_up)


def test_a_model_in_python_takes_a_schema(engine):
    text = LanguageModel(engine).generate("the", schema=HERD, max_tokens=400, temperature=0.5)
    assert text.lstrip().startswith("{")
    with pytest.raises(ValueError, match="uniqueItems"):
        LanguageModel(engine).generate("the", schema={"type": "array", "uniqueItems": True})


def test_ignoring_the_end_of_text_is_refused(engine):
    with pytest.raises(ValueError, match="ignore_eos"):
        engine.check(asked(engine, HERD, ignore_eos=True))


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "text"}, "Invalid type: text"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "string", "pattern": "(?<=a)b"}, "look-around"),
        ({"$ref": "https://example.com/schema.json"}, "example.com"),
        ({"$ref": "#"}, "no JSON text conforms to it"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"x-guidance": {"lenient": True}}, "x-guidance"),
        ({"enum": ["x" * MAX_CHARACTERS]}, "the maximum is 65,536"),
        ([], "expected an object"),
    ],
)
def test_a_schema_that_is_not_supported_is_refused_in_one_line(engine, schema, said):
    with pytest.raises(ValueError, match=said) as error:
        engine.grammars.compile(json.dumps(schema))
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [{"type": "string", "pattern": f".*a.{{{i}}}b.*"} for i in range(1, 40)]},
        {"type": "integer", "multipleOf": 999983},
    ],
    ids=["patterns", "multiple"],
)
def test_a_schema_that_would_take_minutes_to_compile_is_refused(engine, schema):
    began = time.monotonic()
    with pytest.raises(ValueError, match=f"too expensive to compile: more than {CPU_SECONDS:g} s"):
        engine.grammars.compile(json.dumps(schema))
    assert time.monotonic() - began < 30


def test_a_schema_that_becomes_too_expensive_ends_its_own_answer_alone(engine):
    """The pattern's states multiply with every `a`, which a bias forces."""
    a = next(id for id in range(engine.tokenizer.vocab_size) if engine.tokenizer.piece(id) == b"a")
    hostile = asked(
        engine, {"type": "string", "pattern": "^.*a.{500}b.{500}c$"}, logit_bias=((a, 100.0),), max_tokens=600
    )
    other = Request((1, 7), GREEDY, 200)
    (expected,) = answers(engine, other)
    ids = {engine.submit(hostile): "hostile", engine.submit(other): "other"}
    found, errors = "", []
    while not engine.idle:
        for id, chunk in engine.step():
            found += chunk.text * (ids[id] == "other")
            errors += [chunk.error] * (chunk.error is not None)
    assert found == expected[0]
    (error,) = errors
    assert "the JSON schema cannot be followed further" in error and "\n" not in error
    with pytest.raises(ValueError, match="cannot be followed further"):
        answers(engine, hostile)


def test_a_missing_package_is_named_with_its_extra(engine, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    engine = Engine(engine.runner, engine.tokenizer)
    with pytest.raises(MissingExtra, match=r'pip install "puna\[json\]"'):
        _ = engine.grammars
