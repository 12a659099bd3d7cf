"""Middleware: allowed hosts, authentication, and limits on the body.

In:  an HTTP request, before its body is read.
Out: the request, passed on, or an error in OpenAI's form. Responses get security headers and are counted.

    counted ─> one length ─> host name ─> (CORS) ─> API key ─> size and time of the body ─> application
"""

import asyncio
import hmac
import ipaddress
from collections.abc import Callable, Mapping, Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from puna.serve.errors import ServeError
from puna.serve.metrics import Metrics

OPEN_PATHS = frozenset({"/", "/health", "/openapi.json"})
BODY_SECONDS = 30.0


def is_loopback(host: str) -> bool:
    """Whether an address is loopback: localhost, 127.x.y.z, ::1 in any notation."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host.lower() == "localhost"
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


class HeadIsGet:
    """Treats HEAD as GET; the HTTP layer omits the body."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        await self.app(scope, receive, send)


class Counted:
    """Counts responses by path and status, and adds the security headers; the outermost middleware."""

    def __init__(
        self, app: ASGIApp, metrics: Metrics, paths: frozenset[str], headers: Mapping[str, str]
    ) -> None:
        self.app, self.metrics, self.paths, self.headers = app, metrics, paths, headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102
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

        path = (
            scope["path"] if scope["path"] in self.paths else "other"
        )  # unknown paths: one label for all of them
        try:
            await self.app(scope, receive, counted_send)
        finally:
            self.metrics.requests.labels(path, str(status)).inc()


class Refusing:
    """Answers a request with an error if a check finds one; otherwise passes it on."""

    def __init__(self, app: ASGIApp, check: Callable[[Scope], ServeError | None]) -> None:
        self.app, self.check = app, check

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102
        if scope["type"] == "http" and (error := self.check(scope)):
            return await error.response()(scope, receive, send)
        await self.app(scope, receive, send)


def one_length(scope: Scope) -> ServeError | None:
    """Refuses a request with both Content-Length and Transfer-Encoding, and closes the connection.

    A proxy may use one of them and the server the other; then the rest of a body is read as another request
    (request smuggling).
    """
    headers = Headers(scope=scope)
    if not ("content-length" in headers and "transfer-encoding" in headers):
        return None
    message = "both Content-Length and Transfer-Encoding are present; send only one of them"
    return ServeError(400, message, "two_lengths", headers={"Connection": "close"})


def known_host(scope: Scope) -> ServeError | None:
    """Refuses a request whose Host is not a loopback name, as a defence against DNS rebinding.

    A web page can make its own host name resolve to 127.0.0.1 and then read the responses of a server there;
    its requests still carry that name. Starlette's TrustedHostMiddleware compares with a list of names: it
    cannot allow all of 127.0.0.0/8 or ::1 in any notation, and its error is plain text.
    """
    host = Headers(scope=scope).get("host", "")
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    if is_loopback(name.strip("[]")):
        return None
    message = "this server accepts only requests for localhost; behind a proxy, use --api-key-file"
    return ServeError(403, message, "unknown_host")


def api_key(keys: Sequence[str]) -> Callable[[Scope], ServeError | None]:
    """A check for one of these API keys, except for the page, /health and /openapi.json."""
    known = [key.encode() for key in keys]

    def check(scope: Scope) -> ServeError | None:
        kind, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
        data = given.strip().encode("latin-1")
        # All keys are compared, in constant time, so that the time taken reveals nothing.
        found = [hmac.compare_digest(data, key) for key in known]
        if scope["path"] in OPEN_PATHS or (kind.lower() == "bearer" and any(found)):
            return None
        message = "missing or unknown API key; send it as: Authorization: Bearer KEY"
        return ServeError(401, message, "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    return check


class LimitedBody:
    """Rejects a body that is too large, as soon as that is known, or too slow."""

    def __init__(self, app: ASGIApp, limit: int, seconds: float | None = None) -> None:
        self.app, self.limit, self.seconds = app, limit, seconds or BODY_SECONDS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > self.limit:
            return await body_too_large(self.limit).response()(scope, receive, send)
        size, is_whole = 0, False
        deadline = asyncio.get_running_loop().time() + self.seconds

        async def limited_receive() -> Message:
            nonlocal size, is_whole
            if is_whole:
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):  # for the whole body, however slowly it arrives
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, f"the body did not arrive within {self.seconds:g} seconds") from None
            size += len(message.get("body", b""))
            is_whole = message["type"] == "http.disconnect" or not message.get("more_body", False)
            if size > self.limit:
                raise HTTPException(413, body_too_large(self.limit).message)
            return message

        await self.app(scope, limited_receive, send)


def body_too_large(limit: int) -> ServeError:
    """The error for a large body."""
    return ServeError(413, f"the body is larger than {limit:,} bytes; split the request", "body_too_large")
