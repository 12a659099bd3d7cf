"""POST /v1/chat/completions: the next message of a conversation, in the model's own chat template.

In:  messages of text.
Out: n assistant messages, whole or as events.
"""

import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from puna.generate.request import Chunk, Token
from puna.serve.answers import (
    AnswerMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatLogprobs,
    Delta,
)
from puna.serve.errors import CLIENT_GONE
from puna.serve.logprobs import chat_logprobs
from puna.serve.schemas import ChatRequest
from puna.serve.service import (
    EventStream,
    Service,
    collect,
    json_response_by_choice,
    new_id,
    usage,
)


async def complete_chat(service: Service, http: HttpRequest, body: ChatRequest) -> Response:
    """Answer one request."""
    service.require_model(body.model)
    n = body.n or 1
    service.worker.require_room(n)
    ids = await service.encode_chat([(message.role, message.text) for message in body.messages])
    grammar = await service.grammar(body.response_format)
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    max_tokens = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    requests = service.requests(body, [ids], max_tokens, logprobs, grammar=grammar)
    work = service.worker.submit(requests)
    head: dict[str, Any] = {"id": new_id("chatcmpl"), "created": int(time.time()), "model": service.name}
    generated = 0

    def logprobs_of(tokens: tuple[Token, ...]) -> ChatLogprobs | None:
        return None if logprobs is None else chat_logprobs(tokens, service.engine.tokenizer.piece)

    if body.stream:
        head |= {"object": "chat.completion.chunk"}
        with_usage = bool(body.stream_options and body.stream_options.include_usage)
        no_usage: dict[str, Any] = {"usage": None} if with_usage else {}

        def event(index: int, delta: Delta, chunk: Chunk | None = None) -> ChatChunk:
            choice = ChatChunkChoice(
                index=index,
                delta=delta,
                finish_reason=chunk.finish if chunk else None,
                logprobs=logprobs_of(chunk.tokens) if chunk and chunk.tokens else None,
            )
            return ChatChunk(**head, choices=[choice], **no_usage)

        async def events() -> AsyncIterator[ChatChunk]:
            nonlocal generated
            for index in range(n):
                yield event(index, Delta(role="assistant", content=""))
            async for index, chunk in work.chunks():
                generated += len(chunk.tokens)
                if chunk.text or chunk.finish or (logprobs is not None and chunk.tokens):
                    yield event(index, Delta(content=chunk.text) if chunk.text else Delta(), chunk)
            if with_usage:
                yield ChatChunk(**head, choices=[], usage=usage(work, n, generated))

        return EventStream(work, events())

    chunks: list[list[Chunk]] = [[] for _ in range(n)]

    async def sort_chunks() -> None:
        async for index, chunk in work.chunks():
            chunks[index].append(chunk)

    if not await collect(http, work, sort_chunks()):
        return Response(status_code=CLIENT_GONE)
    choices = []
    for index, of_one in enumerate(chunks):
        tokens = tuple(token for chunk in of_one for token in chunk.tokens)
        generated += len(tokens)
        message = AnswerMessage(role="assistant", content="".join(chunk.text for chunk in of_one))
        finish = of_one[-1].finish
        assert finish is not None
        choices.append(
            ChatChoice(index=index, message=message, logprobs=logprobs_of(tokens), finish_reason=finish)
        )
    head |= {"object": "chat.completion", "usage": usage(work, n, generated)}
    return await json_response_by_choice(ChatCompletion(**head, choices=choices))
