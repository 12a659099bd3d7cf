"""POST /v1/chat/completions: a conversation goes on, in the model's own template.

In:  messages of text.
Out: the assistant's next message, n of them where asked for, whole or as events.
"""

import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from puna.generate.request import Chunk, Token
from puna.serve.logprobs import chat_logprobs
from puna.serve.schemas import ChatRequest
from puna.serve.service import CLIENT_GONE, EventStream, Service, answer_choices, new_id, usage, whole


async def converse(service: Service, http: HttpRequest, body: ChatRequest) -> Response:
    """Answer one request."""
    service.require_model(body.model)
    service.worker.require_room(body.n or 1)
    ids = await service.encode_chat([(message.role, message.text) for message in body.messages])
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    max_tokens = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    work = service.worker.submit(service.requests(body, [ids], max_tokens, logprobs))
    head: dict[str, Any] = {"id": new_id("chatcmpl"), "created": int(time.time()), "model": service.name}
    n = body.n or 1
    generated = 0

    def logprobs_of(tokens: tuple[Token, ...]) -> dict[str, Any] | None:
        if logprobs is None:
            return None
        return {"content": chat_logprobs(tokens, service.engine.tokenizer.piece)}

    if body.stream:
        head |= {"object": "chat.completion.chunk"}
        with_usage = bool(body.stream_options and body.stream_options.include_usage)
        more = {"usage": None} if with_usage else {}

        def event(index: int, delta: dict[str, str], chunk: Chunk | None = None) -> dict[str, Any]:
            choice = {"index": index, "delta": delta, "finish_reason": chunk.finish if chunk else None}
            choice["logprobs"] = logprobs_of(chunk.tokens) if chunk and chunk.tokens else None
            return head | {"choices": [choice]} | more

        async def events() -> AsyncIterator[dict[str, Any]]:
            nonlocal generated
            for index in range(n):
                yield event(index, {"role": "assistant", "content": ""})
            async for index, chunk in work.chunks():
                generated += len(chunk.tokens)
                if chunk.text or chunk.finish or (logprobs is not None and chunk.tokens):
                    yield event(index, {"content": chunk.text} if chunk.text else {}, chunk)
            if with_usage:
                yield head | {"choices": [], "usage": usage(work, n, generated)}

        return EventStream(work, events())

    chunks: list[list[Chunk]] = [[] for _ in range(n)]

    async def collect() -> None:
        async for index, chunk in work.chunks():
            chunks[index].append(chunk)

    if not await whole(http, work, collect()):
        return Response(status_code=CLIENT_GONE)
    choices = []
    for index, of_one in enumerate(chunks):
        tokens = tuple(token for chunk in of_one for token in chunk.tokens)
        generated += len(tokens)
        message = {"role": "assistant", "content": "".join(chunk.text for chunk in of_one)}
        choice = {"index": index, "message": message, "finish_reason": of_one[-1].finish}
        choices.append(choice | {"logprobs": logprobs_of(tokens)})
    head |= {"object": "chat.completion", "usage": usage(work, n, generated)}
    return await answer_choices(head, choices)
