"""Limits on the number of JSON values, checked before a body is parsed.

In:  the bytes of a request body.
Out: nothing, or ServeError 400 for a body that would take too long to parse.

A body of 4 MB can hold one text or a million lists: the first is parsed in milliseconds, the second in
seconds, in one call that blocks all threads. Counting is cheap: strings by their quotes, lists and objects by
their brackets, numbers by their commas, all outside strings.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from puna.serve.errors import CLIENT_GONE, ServeError

MAX_STRINGS = 50_000  # including keys
MAX_CONTAINERS = 20_000
MAX_NUMBERS = 300_000  # 40 ms, in which nothing else runs
_SMALL = 10_000  # bytes; smaller bodies cannot exceed the limits


def require_bounded(body: bytes) -> None:
    """Raise ServeError 400 when a body has more values than any request needs."""
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
        message = f"the body has {count:,} {what} and cannot be read as JSON here; the maximum is {limit:,}"
        raise ServeError(400, f"{message}; split the request", "too_many_values")


class BoundedRoute(APIRoute):
    """A route that checks the body's limits before it is parsed."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The framework's handler, preceded by the check."""
        handler = super().get_route_handler()

        async def bounded(request: Request) -> Response:
            if request.method == "POST":
                try:
                    body = await request.body()
                except ClientDisconnect:
                    return Response(status_code=CLIENT_GONE)
                if len(body) > _SMALL:
                    await asyncio.to_thread(require_bounded, body)
            return await handler(request)

        return bounded
