"""From the engine's chunks to the response: JSON as a whole, or server-sent events.

In:  the work of one request, and what makes a part of an answer of a chunk, and an answer of its parts.
Out: the response; the work is cancelled when the client disconnects.

    chunk ─ part ─> choice of an event ──stream──> data: {…}
                            └─ whole ─> choice ──> {"choices": […]}
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, NamedTuple, TypeVar

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from puna.generate.request import Chunk
from puna.serve.answers import Answer, ChatChunkChoice, CompletionChoice, Usage
from puna.serve.errors import CLIENT_GONE, ServeError
from puna.serve.schemas import Generation
from puna.serve.service import Service
from puna.serve.worker import Work

Part = TypeVar("Part", CompletionChoice, ChatChunkChoice)
_LONG = 256  # prompt tokens whose log-probabilities are written in a thread, without blocking other requests


class Form(NamedTuple):
    """How an answer is written, and the events of a streamed one."""

    id: str
    """What ids begin with."""
    event: Callable[..., Answer]
    event_name: str
    answer: Callable[..., Answer]
    answer_name: str


async def respond(
    service: Service,
    http: HttpRequest,
    body: Generation,
    work: Work,
    part: Callable[[int, Chunk], Part | None],
    whole: Callable[[Sequence[Part]], Answer],
    form: Form,
    first: Sequence[Part] = (),
) -> Response:
    """Answer one request; `first` are the first choices of a stream."""
    n, generated = body.n or 1, 0
    head: dict[str, Any] = {"id": f"{form.id}-{secrets.token_hex(12)}", "created": int(time.time())}
    head |= {"object": form.event_name if body.stream else form.answer_name, "model": service.name}

    async def parts() -> AsyncIterator[Part]:
        nonlocal generated
        async for index, chunk in work.chunks():
            generated += len(chunk.tokens)
            is_long = len(chunk.prompt) > _LONG
            found = await asyncio.to_thread(part, index, chunk) if is_long else part(index, chunk)
            if found is not None:
                yield found

    def usage() -> Usage:
        """Token counts; a prompt counts once for its n answers."""
        prompt = sum(len(job.request.prompt) for job in work.jobs[::n])
        return Usage(prompt_tokens=prompt, completion_tokens=generated, total_tokens=prompt + generated)

    if body.stream:
        with_usage = bool(body.stream_options and body.stream_options.include_usage)
        no_usage: dict[str, Any] = {"usage": None} if with_usage else {}

        async def events() -> AsyncIterator[Answer]:
            for one in first:
                yield form.event(**head, choices=[one], **no_usage)
            async for one in parts():
                yield form.event(**head, choices=[one], **no_usage)
            if with_usage:
                yield form.event(**head, choices=[], usage=usage())

        return EventStream(work, events())
    by_choice: list[list[Part]] = [[] for _ in work.jobs]

    async def collect() -> None:
        async for one in parts():
            by_choice[one.index].append(one)

    if not await _unless_disconnected(http.receive, work, collect()):
        return Response(status_code=CLIENT_GONE)

    def text() -> str:
        """The answer choice by choice, so that a long one does not hold the interpreter."""
        choices = ",".join(whole(of_one).to_json() for of_one in by_choice)
        answer = form.answer(**head, choices=[], usage=usage())
        return f'{answer.model_dump_json(exclude={"choices"}).removesuffix("}")},"choices":[{choices}]}}'

    return Response(await asyncio.to_thread(text), media_type="application/json")


async def _unless_disconnected(receive: Receive, work: Work, doing: Coroutine[Any, Any, None]) -> bool:
    """Run until done or the client disconnects; in both cases the engine is left without this work."""
    done, disconnect = asyncio.create_task(doing), asyncio.create_task(_until_disconnected(receive))
    try:
        await asyncio.wait({done, disconnect}, return_when=asyncio.FIRST_COMPLETED)
        if done.done():
            done.result()
            return True
        return False
    finally:
        work.cancel()
        done.cancel()
        disconnect.cancel()


async def _until_disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events: `data: {…}` each, then `data: [DONE]`; errors are events too.

    The work is cancelled when the client disconnects or the stream ends for any reason.
    """

    media_type = "text/event-stream"

    def __init__(self, work: Work, events: AsyncIterator[Answer]) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._work, self._events = work, events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events until the end, or until the client disconnects."""
        await _unless_disconnected(receive, self._work, self._send(send))

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})

        async def write(text: str, more: bool = True) -> None:
            body = f"data: {text}\n\n".encode()
            await send({"type": "http.response.body", "body": body, "more_body": more})

        try:
            async for event in self._events:
                await write(event.to_json())
                await asyncio.sleep(0)  # the loop may notice a disconnected client before the next write
        except ServeError as error:
            await write(error.answer().to_json())
        await write("[DONE]", more=False)
