"""What stands before the application: who may come in, and how large a body may be.

In:  an HTTP request, before its body is read.
Out: the request, handed on; or a refusal in OpenAI's form. Every answer leaves with its security headers, and
     is counted.

    counted ─> one length ─> host name ─> (CORS) ─> API key ─> size and time of the body ─> application
"""

import asyncio
import hmac
import ipaddress
from collections.abc import Mapping, Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from puna.serve.errors import ServeError
from puna.serve.metrics import Metrics

OPEN_PATHS = frozenset({"/", "/health", "/openapi.json"})
BODY_SECONDS = 30.0


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address: localhost, 127.x.y.z, ::1 however it is written."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host.lower() == "localhost"
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


class HeadIsGet:
    """Answers HEAD as GET; the HTTP layer leaves the body out."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        await self.app(scope, receive, send)


class Counted:
    """The outermost: counts answers by path and status, and adds headers to each."""

    def __init__(
        self, app: ASGIApp, metrics: Metrics, paths: frozenset[str], headers: Mapping[str, str]
    ) -> None:
        self.app, self.metrics, self.paths, self.headers = app, metrics, paths, headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        status = 500

        async def counted_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in self.headers.items():
                    headers.setdefault(name, value)
            await send(message)

        path = scope["path"] if scope["path"] in self.paths else "other"  # other paths are unbounded
        try:
            await self.app(scope, receive, counted_send)
        finally:
            self.metrics.requests.labels(path, str(status)).inc()


class OneLength:
    """Refuses a body whose length is given twice, and closes the connection.

    A proxy may believe one of Content-Length and Transfer-Encoding and the server the other, and what one
    takes for the rest of a body is a request of somebody else to the other.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            if "content-length" in headers and "transfer-encoding" in headers:
                message = "Content-Length and Transfer-Encoding are both given; send one of them"
                refusal = ServeError(400, message, "two_lengths", headers={"Connection": "close"})
                return await refusal.response()(scope, receive, send)
        await self.app(scope, receive, send)


class KnownHost:
    """Takes requests for loopback names alone.

    A page anywhere can have its own host name resolve to 127.0.0.1 and then read what a server there
    answers; its requests still carry that name.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            host = Headers(scope=scope).get("host", "")
            name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
            if not is_loopback(name.strip("[]")):
                message = "this server answers to localhost alone; behind a proxy, start it with --api-key"
                return await ServeError(403, message, "unknown_host").response()(scope, receive, send)
        await self.app(scope, receive, send)


class ApiKeys:
    """Asks for a key, but for the page, which holds nothing, and the health."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self.app, self.keys = app, [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS and not self._knows(scope):
            message = "no API key that this server knows; send it as: Authorization: Bearer KEY"
            refusal = ServeError(401, message, "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
            return await refusal.response()(scope, receive, send)
        await self.app(scope, receive, send)

    def _knows(self, scope: Scope) -> bool:
        kind, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
        data = given.strip().encode("latin-1")
        # Every key is compared, and each in constant time: how long it takes says nothing.
        found = [hmac.compare_digest(data, key) for key in self.keys]
        return kind.lower() == "bearer" and any(found)


class LimitedBody:
    """Refuses a body that is too large, as soon as that is known, or that does not come."""

    def __init__(self, app: ASGIApp, limit: int, seconds: float | None = None) -> None:
        self.app, self.limit, self.seconds = app, limit, seconds or BODY_SECONDS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > self.limit:
            return await of_size(self.limit).response()(scope, receive, send)
        size, is_whole = 0, False
        deadline = asyncio.get_running_loop().time() + self.seconds

        async def limited_receive() -> Message:
            nonlocal size, is_whole
            if is_whole:
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):  # of the whole: it may come a byte at a time
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, f"the body did not come within {self.seconds:g} seconds") from None
            size += len(message.get("body", b""))
            is_whole = message["type"] == "http.disconnect" or not message.get("more_body", False)
            if size > self.limit:
                raise HTTPException(413, of_size(self.limit).message)
            return message

        await self.app(scope, limited_receive, send)


def of_size(limit: int) -> ServeError:
    """The refusal of a large body."""
    return ServeError(413, f"the body is larger than {limit:,} bytes; send less at once", "body_too_large")
