"""The application: an engine and its limits in, OpenAI's API and the chat page out.

GET  /                    the chat page           POST /v1/completions       texts go on
GET  /v1/models           what is served          POST /v1/chat/completions  conversations go on
GET  /health  /metrics    for monitors            POST /tokenize /detokenize  GET /tokenizer_info
GET  /openapi.json        all of this, as a machine reads it
"""

import base64
import hashlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from puna import __version__
from puna.generate.engine import Engine
from puna.serve import schemas
from puna.serve.api.chat import converse
from puna.serve.api.completions import complete
from puna.serve.body import BoundedRoute
from puna.serve.errors import ServeError, answer_error, of_http, of_validation
from puna.serve.metrics import CONTENT_TYPE_LATEST, Metrics
from puna.serve.middleware import OPEN_PATHS, ApiKeys, Counted, HeadIsGet, KnownHost, LimitedBody, OneLength
from puna.serve.service import Service, answer
from puna.serve.worker import BROKEN, Worker

PAGE = Path(__file__).with_name("page.html")


@dataclass(frozen=True)
class Limits:
    """What one server grants."""

    queue: int = 64
    """Requests that may wait, beyond those that run."""
    max_tokens: int = 4096
    """The longest answer."""
    body_bytes: int = 4 << 20
    """The largest request body."""


def build_app(
    engine: Engine,
    name: str,
    limits: Limits = Limits(),
    api_keys: tuple[str, ...] = (),
    cors_origins: tuple[str, ...] = (),
    loopback_only: bool = True,
) -> FastAPI:
    """An ASGI application; `app.state.worker` is the engine's thread, which starts and stops with it."""
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
        description="OpenAI's API, for one model.",
        lifespan=lifespan,
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
    )
    app.router.route_class = BoundedRoute
    app.state.worker = worker
    app.add_exception_handler(ServeError, answer_error)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(Exception, _answer_bug)
    _add_api(app, service)
    _add_plain(app, service, metrics)
    _watch(metrics, worker)

    paths = frozenset(app.openapi()["paths"]) | {"/", "/openapi.json"}
    app.openapi_schema = _honest(app.openapi(), service, bool(api_keys))
    # The last added stands outermost.
    app.add_middleware(LimitedBody, limit=limits.body_bytes)
    if api_keys:
        app.add_middleware(ApiKeys, keys=api_keys)
    if cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=cors_origins,
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=["*"],  # OpenAI's JavaScript client sends x-stainless-… of its own
            expose_headers=["retry-after"],
        )
    if loopback_only and not api_keys:
        app.add_middleware(KnownHost)
    headers = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
    app.add_middleware(OneLength)
    app.add_middleware(HeadIsGet)
    app.add_middleware(Counted, metrics=metrics, paths=paths, headers=headers)
    return app


# ---- the API ------------------------------------------------------------------------------------

REFUSALS = {
    400: "Invalid request; the message names the field and how to fix it.",
    404: "There is no such model.",
    408: "The body did not come in time.",
    413: "The body is too large.",
    429: "The queue is full; Retry-After says when to try again.",
    500: "The engine failed.",
    503: "The engine has failed, or the server is stopping.",
}


def _responses(*statuses: int, **ok: Any) -> dict[int | str, dict[str, Any]]:
    described: dict[int | str, dict[str, Any]] = {200: {"description": "The answer.", **ok}} if ok else {}
    for status in statuses:
        described[status] = {"model": schemas.Error, "description": REFUSALS[status]}
    if 429 in described:
        described[429]["headers"] = {
            "Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}, "required": True}
        }
    return described


def _stream(model: type, description: str) -> dict[str, Any]:
    events = {"text/event-stream": {"schema": {"type": "string", "description": description}}}
    return {"model": model, "content": events}


def _add_api(app: FastAPI, service: Service) -> None:
    generates = (400, 404, 408, 413, 429, 500, 503)
    events = "With stream: `data: {…}` a chunk, then `data: [DONE]`."

    @app.post("/v1/completions", responses=_responses(*generates, **_stream(schemas.Completion, events)))
    async def completions(http: HttpRequest, body: schemas.CompletionRequest) -> Response:
        """Continue texts."""
        return await complete(service, http, body)

    @app.post(
        "/v1/chat/completions", responses=_responses(*generates, **_stream(schemas.ChatCompletion, events))
    )
    async def chat_completions(http: HttpRequest, body: schemas.ChatRequest) -> Response:
        """Continue a conversation. A model without a chat template refuses."""
        return await converse(service, http, body)

    @app.post("/tokenize", responses=_responses(400, 404, 408, 413, model=schemas.Tokenized))
    async def tokenize(body: schemas.TokenizeRequest) -> Response:
        """The token ids of a text."""
        service.require_model(body.model)
        tokenizer = service.engine.tokenizer
        special = dict(_special(service).values())
        if body.prompt in special:
            ids = [special[body.prompt]]
        else:
            special_too = bool(service.engine.template) if body.parse_special is None else body.parse_special
            ids = await service.encode(
                body.prompt, body.add_special_tokens and tokenizer.adds_bos, special_too
            )
        return answer({"tokens": ids, "count": len(ids), "max_model_len": service.context})

    @app.post("/detokenize", responses=_responses(400, 404, 408, 413, model=schemas.Detokenized))
    async def detokenize(body: schemas.DetokenizeRequest) -> Response:
        """The text of token ids."""
        service.require_model(body.model)
        try:
            text = await service.decode(body.tokens)
        except ValueError as error:
            raise ServeError(400, str(error), "invalid_value", "tokens") from error
        return answer({"prompt": text})

    @app.get("/tokenizer_info", response_model=schemas.TokenizerInfo)
    async def tokenizer_info() -> dict[str, Any]:
        """What a client that encodes for itself has to know."""
        special = _special(service)
        template = service.engine.template
        return {
            "tokenizer_class": "puna",
            "bos_token": special["bos_token"][0],
            "eos_token": special["eos_token"][0],
            "chat_template": template.source if template else None,
        }

    def card() -> dict[str, Any]:
        known: dict[str, Any] = {"id": service.name, "object": "model", "created": service.created}
        return known | {
            "owned_by": "puna",
            "context": service.context,
            "max_tokens": service.max_tokens,
            "chat": service.engine.template is not None,
        }

    @app.get("/v1/models", response_model=schemas.ModelList)
    async def models() -> dict[str, Any]:
        """The model that is served."""
        return {"object": "list", "data": [card()]}

    # Names may hold slashes, as on hubs.
    @app.get("/v1/models/{model:path}", response_model=schemas.ModelCard, responses=_responses(404))
    async def model(model: str) -> dict[str, Any]:
        """One model, by its name."""
        service.require_model(model)
        return card()


def _special(service: Service) -> dict[str, tuple[str, int]]:
    """How the tokens that separate texts are written, and their ids."""
    tokenizer = service.engine.tokenizer
    ids = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id}
    return {name: (tokenizer.control_text(id), id) for name, id in ids.items()}


def _add_plain(app: FastAPI, service: Service, metrics: Metrics) -> None:
    page = PAGE.read_text(encoding="utf-8")
    policy = content_policy(page)

    @app.get("/health", response_model=schemas.Health, responses=_responses(503))
    async def health() -> dict[str, str]:
        """Whether the engine runs."""
        if service.worker.broken:
            raise ServeError(503, BROKEN, "engine_failed")
        return {"status": "ok"}

    text = {"content": {"text/plain": {"schema": {"type": "string"}}}}

    @app.get(
        "/metrics", response_class=Response, responses={200: {"description": "Prometheus' text.", **text}}
    )
    async def metrics_text() -> Response:
        """Requests, queue, tokens, latencies, cache."""
        return Response(metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    @app.get("/", include_in_schema=False)
    async def chat_page() -> Response:
        headers = {"Content-Security-Policy": policy, "Cache-Control": "no-cache"}
        return Response(page, headers=headers, media_type="text/html")


def content_policy(page: str) -> str:
    """Let a browser run the page's own script and style, known by their digests, and nothing else."""

    def digests(tag: str) -> str:
        parts = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        hashes = [base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in parts]
        return " ".join(f"'sha256-{digest}'" for digest in hashes)

    return (
        f"default-src 'none'; script-src {digests('script')}; style-src {digests('style')}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _watch(metrics: Metrics, worker: Worker) -> None:
    def stat(key: str) -> Any:
        return lambda: float(worker.stats[key])

    metrics.watch("queue_length", "Accepted requests that wait for a place.", stat("waiting"))
    metrics.watch("running", "Requests that the engine works on.", stat("running"))
    metrics.watch("cache_blocks", "Blocks of the key-value cache.", stat("blocks"))
    metrics.watch("cache_blocks_free", "Blocks that a request may take.", stat("free_blocks"))


# ---- the errors of the framework, in OpenAI's form ------------------------------------------------


async def _answer_invalid(_: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return of_validation(error).response()


async def _answer_http(_: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return of_http(error.status_code, error.detail, error.headers).response()


async def _answer_bug(_: HttpRequest, error: Exception) -> Response:
    return ServeError(500, "a bug of this server; its log has the details", "bug").response()


def _honest(schema: dict[str, Any], service: Service, needs_key: bool) -> dict[str, Any]:
    """The API's description, with what only this server knows, and without what is not so."""
    parts = schema["components"]["schemas"]
    for name in ("CompletionRequest", "ChatRequest", "TokenizeRequest", "DetokenizeRequest"):
        fields = parts[name]["properties"]
        fields["model"]["anyOf"][0]["enum"] = [service.name]
        for field in ("max_tokens", "max_completion_tokens"):
            if field in fields:
                _bound(fields[field]["anyOf"][0], service.max_tokens)
    last_id = service.engine.tokenizer.vocab_size - 1
    ids, many = parts["CompletionRequest"]["properties"]["prompt"]["oneOf"][2:]
    for form in (ids, many["items"], parts["DetokenizeRequest"]["properties"]["tokens"]):
        _bound(form["items"], last_id)
    parts.pop("HTTPValidationError", None)
    parts.pop("ValidationError", None)
    for path, methods in schema["paths"].items():
        for operation in methods.values():
            operation["responses"].pop("422", None)  # the framework's; ours is 400
            if needs_key and path not in OPEN_PATHS:
                operation["security"] = [{"key": []}]
                error = {"schema": {"$ref": "#/components/schemas/Error"}}
                refusal = {"description": "No key, or a wrong one.", "content": {"application/json": error}}
                operation["responses"]["401"] = refusal
    if needs_key:
        schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return schema


def _bound(schema: dict[str, Any], largest: int) -> None:
    schema.pop("exclusiveMaximum")
    schema["maximum"] = largest
