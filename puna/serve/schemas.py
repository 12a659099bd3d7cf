"""The request bodies of the API, as types that validate and document themselves.

In:  JSON bodies. A field of OpenAI that puna does not support is accepted at its neutral value, and rejected
     by name otherwise; an unknown field is rejected, because it may be a typing error.
Out: the types of the requests, with the limits of one server (`request_types`).

Beyond OpenAI's fields: top_k, min_p, repetition_penalty, ignore_eos, lookup.
"""

import json
import re
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    WithJsonSchema,
    create_model,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from puna.generate.json_schema import ANY_OBJECT

MAX_ENTRIES = 2048  # of a list of prompts or messages, OpenAI's limit
# Fields that are not supported, and what to do instead.
_ABSENT = ("audio", "moderation", "prompt_cache_options", "suffix", "web_search_options")
NOT_SUPPORTED = dict.fromkeys(_ABSENT, "omit it") | {
    "metadata": "omit it; nothing is stored",
    "prediction": "omit it; lookup speculates from the earlier text",
    "reasoning_effort": 'omit it, or send "none"',
    "service_tier": 'omit it, or send "auto"',
    "store": "omit it, or send false",
    "modalities": 'only ["text"] is supported',
    "verbosity": 'omit it, or send "medium"',
    **dict.fromkeys(("tools", "functions"), "omit it; describe what you want in a message"),
    **dict.fromkeys(("tool_choice", "function_call"), 'omit it, or send "none"'),
}
MAX_BIAS = 1024
# The forms of fields that have several.
EXPECTED = {
    "prompt": "a string, a list of strings, a list of token ids, or a list of such lists; not empty, "
    f"and at most {MAX_ENTRIES} texts or lists",
    "stop": "a string, or a list of at most 16; none of them empty",
    "content": 'a string, or a list of {"type": "text", "text": "…"}',
}

MODEL = "Name of the served model; optional."

Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Stop = Annotated[str, Field(min_length=1, max_length=256)]
Bias = Annotated[float, Field(ge=-100, le=100)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Nothing = Annotated[list[Any], Field(max_length=0)]


class RequestBody(BaseModel):
    """A request body, or an object in one: no coercion, no unknown fields, no infinite numbers."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _report_one_unknown_field(cls, body: Any) -> Any:
        """Report the first unknown field alone: the framework would create a record for each."""
        known = {field.alias or name for name, field in cls.model_fields.items()}
        if isinstance(body, dict) and (unknown := next((k for k in body if k not in known), None)):
            try:
                name = unknown.encode()[:60].decode(errors="ignore")
            except UnicodeEncodeError:
                raise PydanticCustomError("string_unicode", "a field's name is not Unicode") from None
            raise PydanticCustomError("extra_forbidden", "unknown field", {"field": name})
        return body


class StreamOptions(RequestBody):
    """Options of a streamed answer."""

    include_usage: bool | None = Field(None, description="End with an event that has the token counts.")
    include_obfuscation: Literal[False] | None = None


class Generation(RequestBody):
    """The fields that completions and chat have in common."""

    model: str | None = Field(None, description=MODEL)
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(
        None,
        description="Sampling temperature; 0 is greedy, 1 (the default) leaves the distribution unchanged.",
    )
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, lt=2**31)] | None = Field(
        None, description="Sample from the k most likely tokens; 0 disables."
    )
    min_p: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="Drop tokens whose probability is below this fraction of the most likely one's."
    )
    repetition_penalty: Annotated[float, Field(ge=0.1, le=10)] | None = None
    seed: Seed | None = Field(None, description="Random seed; answer k of n uses seed + k - 1.")
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = Field(None, description="Number of answers per prompt.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool | None = Field(None, description="Do not stop at the end-of-text token; for benchmarks.")
    lookup: Annotated[int, Field(ge=0, le=64)] | None = Field(
        None,
        description="Number of tokens to draft from the text so far and verify in one step; greedy only.",
    )
    user: str | None = Field(None, description="Accepted and ignored.")
    presence_penalty: Penalty | None = Field(
        None, description="Penalty for each token already in the answer."
    )
    frequency_penalty: Penalty | None = Field(
        None, description="Penalty per occurrence of a token in the answer."
    )
    logit_bias: Annotated[dict[str, Bias], Field(max_length=MAX_BIAS)] | None = Field(
        None, description="Bias added to the logits, by token id; -100 bans a token, 100 forces it."
    )

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings, as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def biases(self) -> tuple[tuple[int, float], ...]:
        """The pairs of token id and bias."""
        return tuple((int(id), bias) for id, bias in (self.logit_bias or {}).items())

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _require_token_ids(cls, bias: Any) -> Any:
        if isinstance(bias, dict):
            if len(bias) > MAX_BIAS:
                raise ValueError(f"it has {len(bias):,} entries; the maximum is {MAX_BIAS}")
            for id in bias:
                if not re.fullmatch(r"0|[1-9][0-9]{0,8}", id):  # "05" would be another key of token 5
                    raise ValueError("keys must be token ids")
        return bias

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> "Generation":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options requires a stream; omit it, or set stream to true")
        return self


def _prompt_form(value: Any) -> str | None:
    """The form of a prompt, by its first entry, so that only that form is validated."""
    if isinstance(value, str):
        return "text"
    if not isinstance(value, list) or not value:
        return None
    return "texts" if isinstance(value[0], str) else "lists" if isinstance(value[0], list) else "ids"


class CompletionRequest(Generation):
    """Body of POST /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]] = Field(
        description="Texts, which get the model's BOS, or token ids, which are used unchanged."
    )
    max_tokens: int | None = Field(
        None, description="Maximum number of tokens per answer, 16 by default; 0 only with echo."
    )
    parse_special: bool | None = Field(
        None,
        description="Parse control tokens written in the prompt, for a chat that the client rendered; "
        "by default they are text.",
    )
    echo: bool | None = Field(None, description="Return the prompt before its continuation.")
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = Field(
        None,
        description="Return the log-probability of each token, and of this many most likely alternatives.",
    )
    best_of: int | None = Field(None, description="Must equal n.")
    suffix: Literal[""] | None = None

    @model_validator(mode="after")
    def _require_output(self) -> "CompletionRequest":
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens is 0, which returns nothing without echo; set it to 1 or more")
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError("best_of is not supported: omit it; n gives several answers")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, one entry each."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)


class TextPart(RequestBody):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Message(RequestBody):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1, max_length=MAX_ENTRIES, fail_fast=True)]
    name: str | None = Field(None, description="Accepted and ignored.")
    # Present when a client sends an earlier answer back unchanged.
    refusal: None = None
    tool_calls: Nothing | None = None
    function_call: None = None
    audio: None = None
    annotations: Nothing | None = None

    @property
    def text(self) -> str:
        """The content as one text."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class JsonSchema(RequestBody):
    """The JSON schema of an answer; it is always enforced."""

    name: Annotated[str, Field(max_length=64)]
    description: str | None = None
    # The name `schema` belongs to pydantic.
    json_schema: dict[str, Any] | None = Field(None, alias="schema", description="By default any object.")
    strict: bool | None = Field(None, description="Accepted and ignored: a schema is always enforced.")


class ResponseFormat(RequestBody):
    """The form of an answer: text, a JSON object, or JSON that conforms to a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _schema_where_it_belongs(self) -> "ResponseFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError('json_schema goes with {"type": "json_schema"}; send both or neither')
        return self

    @property
    def schema_text(self) -> str | None:
        """The schema as JSON text; None for text."""
        if self.type == "text":
            return None
        schema = self.json_schema and self.json_schema.json_schema
        return ANY_OBJECT if schema is None else json.dumps(schema)


class ChatRequest(Generation):
    """Body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_ENTRIES, fail_fast=True)]
    max_tokens: int | None = Field(None, description="Former name of max_completion_tokens.")
    max_completion_tokens: int | None = Field(
        None, description="Maximum number of tokens per answer; by default as many as fit the context."
    )
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Nothing | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    functions: Nothing | None = None
    function_call: Literal["none", "auto"] | None = None
    response_format: ResponseFormat | None = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None
    reasoning_effort: Literal["none"] | None = None
    verbosity: Literal["medium"] | None = None
    metadata: Annotated[dict[str, Any], Field(max_length=0)] | None = None
    safety_identifier: str | None = Field(None, description="Accepted and ignored.")
    prompt_cache_key: str | None = Field(
        None, description="Accepted and ignored; the prefix cache needs no key."
    )
    prompt_cache_retention: Literal["in_memory", "in-memory", "24h"] | None = None
    prompt_cache_options: None = None
    audio: None = None
    moderation: None = None
    prediction: None = None
    web_search_options: None = None

    @model_validator(mode="after")
    def _fields_agree(self) -> "ChatRequest":
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs requires logprobs; set logprobs to true")
        if None not in (self.max_tokens, self.max_completion_tokens):
            raise ValueError("max_tokens is the former name of max_completion_tokens; send only one of them")
        return self


class TokenizeRequest(RequestBody):
    """Body of POST /tokenize."""

    prompt: str = Field(
        description="Text to encode; the text of bos_token or eos_token alone gives that token."
    )
    add_special_tokens: bool = Field(True, description="Prepend BOS.")
    parse_special: bool | None = Field(
        None,
        description="Parse control tokens written in the text; by default only if the model has a chat "
        "template, with which clients render conversations (/tokenizer_info).",
    )
    model: str | None = Field(None, description=MODEL)


class DetokenizeRequest(RequestBody):
    """Body of POST /detokenize."""

    tokens: list[int]
    model: str | None = Field(None, description=MODEL)


# ---- the limits of one server ---------------------------------------------------------------------


class RequestTypes(NamedTuple):
    """The request bodies that one server accepts."""

    completion: type[CompletionRequest]
    chat: type[ChatRequest]
    tokenize: type[TokenizeRequest]
    detokenize: type[DetokenizeRequest]


Body = TypeVar("Body", bound=RequestBody)


def request_types(model: str, max_tokens: int, vocab_size: int) -> RequestTypes:
    """The request bodies with a server's limits, so that what is described is what is validated.

    Args:
        model: the name that /openapi.json gives; other names are answered with 404, not as invalid.
        max_tokens: the largest number of tokens per answer.
        vocab_size: token ids are below this.
    """
    name = Annotated[str, WithJsonSchema({"type": "string", "enum": [model]})]
    token = Annotated[int, Field(ge=0, le=vocab_size - 1)]
    ids = Annotated[list[token], Field(min_length=1, fail_fast=True)]
    several = Field(min_length=1, max_length=MAX_ENTRIES, fail_fast=True)
    prompt = Annotated[
        Annotated[str, Tag("text")]
        | Annotated[list[str], several, Tag("texts")]
        | Annotated[ids, Tag("ids")]
        | Annotated[list[ids], several, Tag("lists")],
        Discriminator(_prompt_form),
    ]

    def limited(base: type[Body], **types: Any) -> type[Body]:
        fields: dict[str, Any] = {field: (kind, base.model_fields[field]) for field, kind in types.items()}
        return create_model(base.__name__, __base__=base, __doc__=base.__doc__, **fields)

    name_or_none = name | None
    count = Annotated[int, Field(ge=1, le=max_tokens)] | None
    return RequestTypes(
        limited(
            CompletionRequest,
            model=name_or_none,
            prompt=prompt,
            max_tokens=Annotated[int, Field(ge=0, le=max_tokens)] | None,
        ),
        limited(ChatRequest, model=name_or_none, max_tokens=count, max_completion_tokens=count),
        limited(TokenizeRequest, model=name_or_none),
        limited(
            DetokenizeRequest,
            model=name_or_none,
            tokens=Annotated[list[token], Field(fail_fast=True)],
        ),
    )
