"""POST /v1/chat/completions: the next message of a conversation, in the model's own chat template.

In:  messages of text.
Out: n assistant messages, whole or as events.
"""

from collections.abc import Sequence
from functools import partial

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from puna.generate.request import Chunk, Request
from puna.serve.answers import (
    AnswerMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatLogprobs,
    Delta,
)
from puna.serve.logprobs import chat_logprobs
from puna.serve.respond import Form, respond
from puna.serve.schemas import ChatRequest
from puna.serve.service import Service

FORM = Form("chatcmpl", ChatChunk, "chat.completion.chunk", ChatCompletion, "chat.completion")


async def complete_chat(service: Service, http: HttpRequest, body: ChatRequest) -> Response:
    """Answer one request."""
    service.require_model(body.model)
    service.worker.require_room(body.n or 1)
    ids = await service.encode_chat([(message.role, message.text) for message in body.messages])
    grammar = await service.grammar(body.response_format)
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    max_tokens = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    requests: list[Request] = []
    service.add_requests(requests, body, ids, max_tokens, logprobs, grammar=grammar)
    work = service.worker.submit(requests)

    def part(index: int, chunk: Chunk) -> ChatChunkChoice | None:
        found = None
        if logprobs is not None and chunk.tokens:
            found = chat_logprobs(chunk.tokens, service.engine.tokenizer.piece)
        if not (chunk.text or chunk.finish or found):
            return None
        delta = Delta(content=chunk.text) if chunk.text else Delta()
        return ChatChunkChoice(index=index, delta=delta, logprobs=found, finish_reason=chunk.finish)

    opening = Delta(role="assistant", content="")
    first = [
        ChatChunkChoice(index=index, delta=opening, logprobs=None, finish_reason=None)
        for index in range(body.n or 1)
    ]
    whole = partial(_whole, has_logprobs=logprobs is not None)
    return await respond(service, http, body, work, part, whole, FORM, first)


def _whole(parts: Sequence[ChatChunkChoice], has_logprobs: bool) -> ChatChoice:
    """The parts of one message, the last of which has the reason of its end, as a whole one."""
    tokens = [token for part in parts if part.logprobs for token in part.logprobs.content]
    finish = parts[-1].finish_reason
    assert finish is not None
    return ChatChoice(
        index=parts[0].index,
        message=AnswerMessage(role="assistant", content="".join(part.delta.content or "" for part in parts)),
        logprobs=ChatLogprobs(content=tokens) if has_logprobs else None,
        finish_reason=finish,
    )
