"""Bodies are judged before they become objects: count, then parse.

In:  the bytes of a request's body.
Out: nothing; or a refusal of what would take long to parse, whatever it is then found to be.

A body of 4 MB can hold one text, or a million lists: the first is parsed in milliseconds, the second in
seconds, within one call that lets no other thread run. What is counted is cheap to count: strings by their
quotes, lists and objects by their brackets, numbers by their commas, all outside strings.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from puna.serve.errors import ServeError

MAX_STRINGS = 50_000  # keys, too
MAX_CONTAINERS = 20_000
MAX_NUMBERS = 1_000_000
_SMALL = 10_000  # bytes that cannot hold enough to matter


def require_bounded(body: bytes) -> None:
    """Raise ServeError 400 when a body holds more values than any request needs."""
    if len(body) <= _SMALL:
        return
    if b"\\" in body:
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    quotes = body.count(b'"')
    _require(quotes // 2, MAX_STRINGS, "strings")
    structure = b"".join(body.split(b'"')[::2])
    _require(structure.count(b"[") + structure.count(b"{"), MAX_CONTAINERS, "lists and objects")
    _require(structure.count(b","), MAX_NUMBERS, "values")


def _require(count: int, limit: int, what: str) -> None:
    if count > limit:
        message = f"the body holds {count:,} {what} and cannot be read as JSON here: {limit:,} is the most"
        raise ServeError(400, f"{message}; send less in a request", "too_many_values")


class BoundedRoute(APIRoute):
    """A route whose body is judged before it is parsed."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The framework's handler, behind the judgement."""
        handler = super().get_route_handler()

        async def bounded(request: Request) -> Response:
            if request.method == "POST":
                body = await request.body()
                if len(body) > _SMALL:
                    await asyncio.to_thread(require_bounded, body)
            return await handler(request)

        return bounded
