"""What a client may ask and what it gets: OpenAI's bodies, as types that document themselves.

In:  JSON bodies. A field that OpenAI has and puna has not is taken at the value that does nothing, and
     refused by name otherwise; a field that nobody knows is refused, for it may be a typing error.
Out: the types of the requests, and of the answers as /openapi.json describes them.

Beyond OpenAI's fields: top_k, min_p, repetition_penalty, ignore_eos, lookup.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator
from pydantic_core import PydanticCustomError

MOST = 2048  # entries of a list of prompts or messages, as OpenAI has it
# What is refused, and what to do instead.
NOT_OFFERED = {
    "audio": "leave it out",
    "metadata": "leave it out; nothing is stored",
    "moderation": "leave it out",
    "prediction": "leave it out; lookup guesses from the text before",
    "reasoning_effort": 'leave it out, or "none"',
    "service_tier": 'leave it out, or "auto"',
    "store": "leave it out, or false",
    "modalities": 'only ["text"] is',
    "verbosity": 'leave it out, or "medium"',
    "web_search_options": "leave it out",
    "prompt_cache_options": "leave it out",
    "suffix": "leave it out",
    "tools": "leave it out; describe what you want in a message",
    "tool_choice": 'leave it out, or "none"',
    "functions": "leave it out; describe what you want in a message",
    "function_call": 'leave it out, or "none"',
    "response_format": 'only {"type": "text"} is',
}
MAX_BIAS = 1024
# What a field with several forms takes.
EXPECTED = {
    "prompt": "a string, a list of strings, a list of token ids, or a list of such lists; not empty, "
    f"and at most {MOST} texts or lists",
    "stop": "a string, or a list of at most 16; none of them empty",
    "content": 'a string, or a list of {"type": "text", "text": "…"}',
}

Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Stop = Annotated[str, Field(min_length=1, max_length=256)]
TokenId = Annotated[int, Field(ge=0, lt=2**32)]
Ids = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]
Bias = Annotated[float, Field(ge=-100, le=100)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Nothing = Annotated[list[Any], Field(max_length=0)]


class Asked(BaseModel):
    """A request body: no coercion, no unknown field, no infinite number."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _one_unknown_field_is_enough(cls, body: Any) -> Any:
        """Name the first unknown field: the framework would make a record of each."""
        if isinstance(body, dict) and (unknown := next((k for k in body if k not in cls.model_fields), None)):
            try:
                name = unknown.encode()[:60].decode(errors="ignore")
            except UnicodeEncodeError:
                raise PydanticCustomError("string_unicode", "a field's name is not Unicode") from None
            raise PydanticCustomError("extra_forbidden", "unknown field", {"field": name})
        return body


class StreamOptions(Asked):
    include_usage: bool | None = Field(None, description="End with an event that counts the tokens.")
    include_obfuscation: Literal[False] | None = None


class Generation(Asked):
    """The fields that completions and chat have in common."""

    model: str | None = Field(None, description="The served model; not needed, for there is one.")
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(
        None, description="0 is greedy; 1, the default, is the model's own distribution."
    )
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, lt=2**31)] | None = Field(None, description="0 is all.")
    min_p: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="Drop tokens below this share of the likeliest one's probability."
    )
    repetition_penalty: Annotated[float, Field(ge=0.1, le=10)] | None = None
    seed: Seed | None = Field(None, description="The same seed gives the same answer; the nth answer has +n.")
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = Field(None, description="Answers to each prompt.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool | None = Field(None, description="Go on past the end of the text; for benchmarks.")
    lookup: Annotated[int, Field(ge=0, le=64)] | None = Field(
        None, description="Guess this many tokens at once from the text so far; greedy only, the same answer."
    )
    user: str | None = Field(None, description="Taken, and not used.")
    presence_penalty: Penalty | None = Field(None, description="Of each token that the answer holds.")
    frequency_penalty: Penalty | None = Field(None, description="Of each time that the answer holds a token.")
    logit_bias: Annotated[dict[str, Bias], Field(max_length=MAX_BIAS)] | None = Field(
        None, description="Added to the logits of tokens, by their ids; -100 bans, 100 forces."
    )

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings, as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def biases(self) -> tuple[tuple[int, float], ...]:
        """logit_bias by id."""
        return tuple((int(id), bias) for id, bias in (self.logit_bias or {}).items())

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _ids_are_numbers(cls, bias: Any) -> Any:
        if isinstance(bias, dict):
            if len(bias) > MAX_BIAS:
                raise ValueError(f"it names {len(bias):,} tokens; {MAX_BIAS} are the most")
            for id in bias:
                if not (id.isascii() and id.isdecimal() and len(id) < 10):
                    raise ValueError("its keys must be token ids")
        return bias

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> "Generation":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is for streams; leave it out, or set stream to true")
        return self


def _prompt_form(value: Any) -> str | None:
    """Which form a prompt has, by its first entry: only that one is checked."""
    if isinstance(value, str):
        return "text"
    if not isinstance(value, list) or not value:
        return None
    return "texts" if isinstance(value[0], str) else "lists" if isinstance(value[0], list) else "ids"


class CompletionRequest(Generation):
    prompt: Annotated[
        Annotated[str, Tag("text")]
        | Annotated[list[str], Field(min_length=1, max_length=MOST, fail_fast=True), Tag("texts")]
        | Annotated[Ids, Tag("ids")]
        | Annotated[list[Ids], Field(min_length=1, max_length=MOST, fail_fast=True), Tag("lists")],
        Discriminator(_prompt_form),
    ] = Field(description="Texts, which begin behind BOS, or token ids, which are taken as they are.")
    max_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = Field(
        None, description="16 when not given; 0 only with echo."
    )
    parse_special: bool | None = Field(
        None,
        description="Whether control tokens written in texts are those tokens, for a conversation that the "
        "client laid out; they are text by default.",
    )
    echo: bool | None = Field(None, description="Give the prompt back before its continuation.")
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = Field(
        None, description="Log-probabilities of each token, and of this many likeliest ones."
    )
    best_of: int | None = Field(None, description="As many as n, if it is given.")
    suffix: Literal[""] | None = None

    @model_validator(mode="after")
    def _something_is_asked(self) -> "CompletionRequest":
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens is 0, which asks for nothing without echo; set it to 1 or more")
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError("best_of is not offered: leave it out; n gives several answers")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """One entry a prompt."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)


class TextPart(Asked):
    type: Literal["text"]
    text: str


class Message(Asked):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1, max_length=MOST, fail_fast=True)]
    name: str | None = Field(None, description="Taken, and not used.")
    # An answer that a client sends back as it got it has these.
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


class ResponseFormat(Asked):
    type: Literal["text"]


class ChatRequest(Generation):
    messages: Annotated[list[Message], Field(min_length=1, max_length=MOST, fail_fast=True)]
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = Field(
        None, description="What there is room for when not given. The old name of max_completion_tokens."
    )
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
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
    safety_identifier: str | None = Field(None, description="Taken, and not used.")
    prompt_cache_key: str | None = Field(None, description="Taken, and not used: prefixes are found anyway.")
    prompt_cache_retention: Literal["in_memory", "in-memory", "24h"] | None = None
    prompt_cache_options: None = None
    audio: None = None
    moderation: None = None
    prediction: None = None
    web_search_options: None = None

    @model_validator(mode="after")
    def _fields_agree(self) -> "ChatRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs; set logprobs to true")
        if None not in (self.max_tokens, self.max_completion_tokens):
            raise ValueError("max_tokens is the old name of max_completion_tokens; give one of them")
        return self


class TokenizeRequest(Asked):
    prompt: str = Field(
        description="A text; exactly the text of bos_token or eos_token (/tokenizer_info) is that token."
    )
    add_special_tokens: bool = Field(True, description="Begin with BOS.")
    parse_special: bool | None = Field(
        None,
        description="Whether control tokens written in the text are those tokens; by default they are if the "
        "model has a chat template, for clients lay conversations out with it (/tokenizer_info).",
    )
    model: str | None = None


class DetokenizeRequest(Asked):
    tokens: Annotated[list[TokenId], Field(fail_fast=True)]
    model: str | None = None


# ---- answers ------------------------------------------------------------------------------------


class ErrorBody(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class Error(BaseModel):
    """OpenAI's form of an error."""

    error: ErrorBody


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionLogprobs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class Completion(BaseModel):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class TokenLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class ChosenLogprob(TokenLogprob):
    top_logprobs: list[TokenLogprob]


class ChatLogprobs(BaseModel):
    content: list[ChosenLogprob]


class AnswerMessage(BaseModel):
    role: Literal["assistant"]
    content: str


class ChatChoice(BaseModel):
    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class ModelCard(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    context: int = Field(description="Tokens of prompt and answer together.")
    max_tokens: int = Field(description="The longest answer that may be asked for.")
    chat: bool = Field(description="Whether it has a chat template; else it continues texts.")


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[ModelCard]


class Tokenized(BaseModel):
    tokens: list[int]
    count: int
    max_model_len: int


class Detokenized(BaseModel):
    prompt: str


class TokenizerInfo(BaseModel):
    tokenizer_class: str
    bos_token: str
    eos_token: str
    chat_template: str | None


class Health(BaseModel):
    status: Literal["ok"]
