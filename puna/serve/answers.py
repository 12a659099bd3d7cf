"""The API's answers: /openapi.json describes these types, and every answer is built from them.

In:  the fields of an answer.
Out: JSON. Optional fields (`usage` of a chunk, parts of a delta) are sent only where they were set.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Finish = Literal["stop", "length"]


class Answer(BaseModel):
    """An answer, or an object in one."""

    model_config = ConfigDict(extra="forbid")

    def to_json(self) -> str:
        """The JSON text, without fields that were never set."""
        return self.model_dump_json(exclude_unset=True)


class ErrorBody(Answer):
    """What went wrong; `message` says how to fix it."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(Answer):
    """An error, in OpenAI's form."""

    error: ErrorBody


class Usage(Answer):
    """Token counts of an answer."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Head(Answer):
    """What answers and their events begin with."""

    id: str
    created: int
    model: str


# ---- POST /v1/completions


class CompletionLogprobs(Answer):
    """Log-probabilities of a completion: parallel lists, one entry per token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(Answer):
    """One completion, or a chunk of one."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Finish | None


class Completion(Head):
    """A finished completion."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    usage: Usage


class CompletionChunk(Head):
    """One event of a streamed completion."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    usage: Usage | None = None


# ---- POST /v1/chat/completions


class TokenLogprob(Answer):
    """A token and its log-probability."""

    token: str
    logprob: float
    bytes: list[int]


class ChosenLogprob(TokenLogprob):
    """A generated token, its log-probability, and the most likely alternatives."""

    top_logprobs: list[TokenLogprob]


class ChatLogprobs(Answer):
    """Log-probabilities of a message."""

    content: list[ChosenLogprob]


class AnswerMessage(Answer):
    """The assistant's message."""

    role: Literal["assistant"]
    content: str


class ChatChoice(Answer):
    """One message."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Finish


class ChatCompletion(Head):
    """A finished message."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: Usage


class Delta(Answer):
    """What an event adds to a message."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(Answer):
    """A chunk of one message."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: Finish | None


class ChatChunk(Head):
    """One event of a streamed message."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


# ---- the other paths


class ModelCard(Answer):
    """The served model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    context: int = Field(description="Maximum number of tokens of prompt and answer together.")
    max_tokens: int = Field(description="Maximum number of tokens per answer.")
    chat: bool = Field(description="Whether the model has a chat template.")


class ModelList(Answer):
    """The served models: one."""

    object: Literal["list"]
    data: list[ModelCard]


class Tokenized(Answer):
    """Token ids of a text."""

    tokens: list[int]
    count: int
    max_model_len: int


class Detokenized(Answer):
    """Text of token ids."""

    prompt: str


class TokenizerInfo(Answer):
    """What a client that tokenizes locally needs to know."""

    tokenizer_class: str
    bos_token: str
    eos_token: str
    chat_template: str | None


class Health(Answer):
    """The engine runs."""

    status: Literal["ok"]
