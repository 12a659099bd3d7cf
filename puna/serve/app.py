"""The application: an engine and its limits in, OpenAI's API and the chat page out.

GET  /                    the chat page           POST /v1/completions       continuations of texts
GET  /v1/models           the served model        POST /v1/chat/completions  the next message of a chat
GET  /health  /metrics    for monitoring          POST /tokenize /detokenize  GET /tokenizer_info
GET  /openapi.json        the machine-readable description of all of these
"""

import base64
import hashlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Security
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from puna import __version__
from puna.generate.engine import Engine
from puna.serve import answers
from puna.serve.api.chat import complete_chat
from puna.serve.api.completions import complete
from puna.serve.api.tokenize import decode_ids, describe_tokenizer, encode_text
from puna.serve.body import BoundedRoute
from puna.serve.errors import ServeError, error_response
from puna.serve.metrics import CONTENT_TYPE_LATEST, Metrics
from puna.serve.middleware import (
    Counted,
    HeadIsGet,
    LimitedBody,
    Refusing,
    api_key,
    known_host,
    one_length,
)
from puna.serve.schemas import RequestTypes, request_types
from puna.serve.service import Service
from puna.serve.worker import BROKEN, Worker

PAGE = Path(__file__).with_name("page.html")


@dataclass(frozen=True)
class Limits:
    """The limits of one server."""

    queue: int = 64
    """Maximum number of queued requests, beyond those that run."""
    max_tokens: int = 4096
    """Maximum number of tokens per answer."""
    body_bytes: int = 4 << 20
    """Maximum size of a request body."""


def build_app(
    engine: Engine,
    name: str,
    limits: Limits = Limits(),
    api_keys: tuple[str, ...] = (),
    cors_origins: tuple[str, ...] = (),
    loopback_only: bool = True,
) -> FastAPI:
    """Build the ASGI application; `app.state.worker` is the engine's thread, started and stopped with it."""
    metrics = Metrics()
    worker = Worker(engine, limits.queue, metrics)
    service = Service(engine, worker, name, limits.max_tokens)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        worker.start()
        yield
        await worker.stop()

    app = FastAPI(
        title="puna",
        version=__version__,
        description="OpenAI-compatible API of one model.",
        lifespan=lifespan,
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # to the Host of the request: unknown paths are errors
    )
    app.state.worker = worker
    for kind in (ServeError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, error_response)
    with_key = APIRouter(
        route_class=BoundedRoute,
        # For the description alone: a middleware checks the key before the body is read.
        dependencies=[Security(HTTPBearer(auto_error=False, scheme_name="key"))] if api_keys else [],
        responses=_responses(401) if api_keys else {},
    )
    _add_api(with_key, service, request_types(name, service.max_tokens, engine.tokenizer.vocab_size))
    _add_metrics(with_key, metrics)
    app.include_router(with_key)
    _add_open(app, service)
    _watch(metrics, worker)

    paths = frozenset(app.openapi()["paths"]) | {"/", "/openapi.json"}
    # The middleware added last is the outermost.
    app.add_middleware(LimitedBody, limit=limits.body_bytes)
    if api_keys:
        app.add_middleware(Refusing, check=api_key(api_keys))
    if cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=cors_origins,
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=["*"],  # OpenAI's JavaScript client sends x-stainless-… headers
            expose_headers=["retry-after"],
            allow_private_network=True,  # browsers ask this for a server on the user's own machine
        )
    if loopback_only and not api_keys:
        app.add_middleware(Refusing, check=known_host)
    headers = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
    app.add_middleware(Refusing, check=one_length)
    app.add_middleware(HeadIsGet)
    app.add_middleware(Counted, metrics=metrics, paths=paths, headers=headers)
    return app


# ---- paths that need a key, where the server has keys -----------------------------------------------

Responses = dict[int | str, dict[str, Any]]
ERRORS: dict[int | str, str] = {
    400: "Invalid request; the message names the field and how to fix it.",
    401: "Missing or unknown API key.",
    404: "Unknown model.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    429: "The queue is full; Retry-After says when to try again.",
    500: "The engine failed.",
    503: "The engine has failed, or the server is stopping.",
    "default": "Any other error has the same form.",
}


def _responses(*statuses: int | str, **ok: Any) -> Responses:
    described: Responses = {200: {"description": "The answer.", **ok}} if ok else {}
    for status in statuses:
        described[status] = {"model": answers.Error, "description": ERRORS[status]}
    if 429 in described:
        described[429]["headers"] = {
            "Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}, "required": True}
        }
    return described


def _stream(model: type, description: str) -> dict[str, Any]:
    events = {"text/event-stream": {"schema": {"type": "string", "description": description}}}
    return {"model": model, "content": events}


def _add_api(app: APIRouter, service: Service, bodies: RequestTypes) -> None:
    errors = (400, 404, 408, 413, "default")
    generating = (*errors, 429, 500, 503)
    events = "With stream: `data: {…}` per chunk, then `data: [DONE]`."

    @app.post("/v1/completions", responses=_responses(*generating, **_stream(answers.Completion, events)))
    async def completions(http: HttpRequest, body: bodies.completion) -> Response:  # type: ignore[name-defined]
        """Continue texts."""
        return await complete(service, http, body)

    @app.post(
        "/v1/chat/completions", responses=_responses(*generating, **_stream(answers.ChatCompletion, events))
    )
    async def chat_completions(http: HttpRequest, body: bodies.chat) -> Response:  # type: ignore[name-defined]
        """Write the next message of a conversation; needs a model with a chat template."""
        return await complete_chat(service, http, body)

    @app.post("/tokenize", responses=_responses(*errors, model=answers.Tokenized))
    async def tokenize(body: bodies.tokenize) -> Response:  # type: ignore[name-defined]
        """Encode a text into token ids."""
        return await encode_text(service, body)

    @app.post("/detokenize", responses=_responses(*errors, model=answers.Detokenized))
    async def detokenize(body: bodies.detokenize) -> Response:  # type: ignore[name-defined]
        """Decode token ids into text."""
        return await decode_ids(service, body)

    @app.get("/tokenizer_info")
    async def tokenizer_info() -> answers.TokenizerInfo:
        """Describe the tokenizer, for clients that tokenize locally."""
        return describe_tokenizer(service)

    @app.get("/v1/models")
    async def models() -> answers.ModelList:
        """List the served model."""
        return answers.ModelList(object="list", data=[service.card()])

    # Model names may contain slashes.
    @app.get("/v1/models/{model:path}", responses=_responses(404, "default"))
    async def model(model: str) -> answers.ModelCard:
        """Describe one model, by its name."""
        service.require_model(model)
        return service.card()


def _add_metrics(app: APIRouter, metrics: Metrics) -> None:
    text = {"content": {"text/plain": {"schema": {"type": "string"}}}}

    @app.get(
        "/metrics",
        response_class=Response,
        responses={200: {"description": "Prometheus' text format.", **text}},
    )
    async def metrics_text() -> Response:
        """Requests, queue, tokens, latencies, KV cache."""
        return Response(metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _watch(metrics: Metrics, worker: Worker) -> None:
    def stat(key: str) -> Any:
        return lambda: float(worker.stats[key])

    metrics.watch("queue_length", "Accepted requests that wait for a slot.", stat("waiting"))
    metrics.watch("running", "Requests that are being generated.", stat("running"))
    metrics.watch("cache_blocks", "Blocks of the KV cache.", stat("blocks"))
    metrics.watch("cache_blocks_free", "Free blocks of the KV cache.", stat("free_blocks"))


# ---- paths open to all, see middleware.OPEN_PATHS ---------------------------------------------------


def _add_open(app: FastAPI, service: Service) -> None:
    page = PAGE.read_text(encoding="utf-8")
    policy = content_policy(page)

    @app.get("/health", responses=_responses(503))
    async def health() -> answers.Health:
        """Report whether the engine runs."""
        if service.worker.broken:
            raise ServeError(503, BROKEN, "engine_failed")
        return answers.Health(status="ok")

    @app.get("/", include_in_schema=False)
    async def chat_page() -> Response:
        headers = {"Content-Security-Policy": policy, "Cache-Control": "no-cache"}
        return Response(page, headers=headers, media_type="text/html")


def content_policy(page: str) -> str:
    """The Content-Security-Policy that allows only the page's own script and style, by digest."""

    def digests(tag: str) -> str:
        parts = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        hashes = [base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in parts]
        return " ".join(f"'sha256-{digest}'" for digest in hashes)

    return (
        f"default-src 'none'; script-src {digests('script')}; style-src {digests('style')}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
