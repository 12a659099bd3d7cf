"""The verb serve: a model over HTTP."""

import os
import sys
from pathlib import Path
from typing import Annotated

from puna.cli.common import Many, Model

KEYS = "PUNA_API_KEYS"


def serve(
    *,
    model: Model,
    host: str = "127.0.0.1",
    port: int = 8000,
    name: str | None = None,
    max_batch: int = 16,
    queue: int = 64,
    max_tokens: int = 4096,
    max_body: int = 4 << 20,
    cache_tokens: int | None = None,
    api_key: Annotated[tuple[str, ...], Many] = (),
    api_key_file: Path | None = None,
    cors_origin: Annotated[tuple[str, ...], Many] = (),
    no_auth: bool = False,
    grace: float = 30.0,
) -> int:
    """Serve a model over HTTP: OpenAI-compatible API and a chat page.

    Parameters
    ----------
    host
        Address to listen on; 0.0.0.0 listens on all interfaces.
    port
        Port to listen on; 0 picks a free port.
    name
        Model name that clients send; defaults to the name of the model's file or directory.
    max_batch
        Maximum number of requests that are answered concurrently.
    queue
        Maximum number of queued requests; further ones get status 429.
    max_tokens
        Maximum number of tokens per answer.
    max_body
        Maximum size of a request body, in bytes.
    cache_tokens
        Size of the KV cache in tokens. Default: max_batch times the context, at most 2 GiB.
    api_key
        API key that clients must send; may be given several times. Other users of this machine can read it
        from the list of processes; --api-key-file and the variable PUNA_API_KEYS avoid that.
    api_key_file
        File with one API key per line.
    cors_origin
        Allowed origin of browser requests, such as https://example.org; * allows all.
    no_auth
        Allow listening on a non-loopback address without an API key.
    grace
        Seconds to wait for in-flight requests on shutdown.
    """
    keys = _keys(api_key, api_key_file)
    from puna.serve.run import is_loopback, listen, run

    minima: dict[str, tuple[float, int]] = {"max-batch": (max_batch, 1), "queue": (queue, 0)}
    minima |= {"max-tokens": (max_tokens, 1), "max-body": (max_body, 1), "grace": (grace, 0)}
    for option, (value, minimum) in minima.items():
        if not value >= minimum:  # also refuses NaN
            raise ValueError(f"{option} is {value}; it must be at least {minimum}")
    if not (is_loopback(host) or keys or no_auth):
        raise ValueError(
            f"refusing to listen on {host} without an API key; give --api-key-file FILE, or --no-auth to "
            "allow anyone"
        )
    listening = listen(host, port)  # before the weights are loaded, which takes longer
    from puna.serve.app import Limits, build_app

    engine = model.load(max_batch, cache_tokens)
    path = Path(model.model)
    app = build_app(
        engine,
        name or (path.resolve().name.removesuffix(".gguf") if path.exists() else model.model),
        Limits(queue, max_tokens, max_body),
        keys,
        cors_origin,
        is_loopback(host),
    )
    address = f"[{host}]" if ":" in host else host
    url = f"http://{address}:{listening.getsockname()[1]}"
    page = "chat" if engine.template else "write"
    ready = f"{url}   open it to {page}; the API is at {url}/v1; Ctrl-C stops the server"

    def announce() -> None:
        try:
            print(ready, flush=True)
        except OSError as error:  # nothing else needs it
            print(f"standard output: {error}; {ready}", file=sys.stderr)

    run(app, listening, grace, announce)
    return 0


def _keys(given: tuple[str, ...], file: Path | None) -> tuple[str, ...]:
    """All API keys: from the command line, the environment and the file."""
    keys = [*given, *os.environ.get(KEYS, "").split()]
    if file is not None:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
        found = [line for line in lines if line and not line.startswith("#")]
        if not found:
            raise ValueError(f"{file} holds no key; write one per line")
        keys += found
    for key in keys:
        if not (key.isascii() and key.isprintable() and " " not in key and key):
            raise ValueError("an API key must be printable ASCII without spaces; choose another")
    return tuple(keys)
