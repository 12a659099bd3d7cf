"""The verb that puts a model behind an address."""

import os
from pathlib import Path
from typing import Annotated, Literal

from puna.cli.common import Many
from puna.devices import DeviceName

KEYS = "PUNA_API_KEYS"


def serve(
    *,
    model: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    name: str | None = None,
    weights: Literal["bf16", "int8", "int4", "fp32"] | None = None,
    device: DeviceName = "auto",
    max_batch: int = 16,
    queue: int = 64,
    max_tokens: int = 4096,
    max_body: int = 4 << 20,
    cache_tokens: int | None = None,
    api_key: Annotated[tuple[str, ...], Many] = (),
    api_key_file: Path | None = None,
    cors_origin: Annotated[tuple[str, ...], Many] = (),
    without_keys: bool = False,
    grace: float = 30.0,
) -> int:
    """Serve a model over HTTP: OpenAI-compatible API and a chat page.

    Parameters
    ----------
    model
        A run directory, one that `puna convert --to puna` wrote, a .gguf file, or smollm2.
    host
        Address to listen on; 0.0.0.0 listens on all interfaces.
    port
        Port to listen on; 0 picks a free port.
    name
        Model name that clients send; defaults to the directory's name.
    weights
        Precision of the weights in memory; defaults to the precision of training.
    device
        Where to compute; auto is a CUDA device where there is one, else the CPU.
    max_batch
        Maximum number of requests that run concurrently.
    queue
        Maximum number of queued requests; further ones get status 429.
    max_tokens
        Maximum number of tokens per answer.
    max_body
        Maximum size of a request body, in bytes.
    cache_tokens
        Size of the KV cache, in tokens; defaults to what max_batch needs.
    api_key
        A key that clients must send; several may be given. Others on this machine can read it from the list
        of processes: --api-key-file and the variable PUNA_API_KEYS they cannot.
    api_key_file
        File with one API key per line.
    cors_origin
        Allowed origin for browser requests, such as https://example.org; * allows all.
    without_keys
        Allow listening on a non-loopback address without an API key.
    grace
        Seconds to wait for in-flight requests on shutdown.
    """
    keys = _keys(api_key, api_key_file)
    from puna.serve.run import is_loopback, listen, run

    least_of: dict[str, tuple[float, int]] = {"max-batch": (max_batch, 1), "queue": (queue, 0)}
    least_of |= {"max-tokens": (max_tokens, 1), "max-body": (max_body, 1), "grace": (grace, 0)}
    for option, (value, least) in least_of.items():
        if not value >= least:
            raise ValueError(f"{option} is {value}; it must be at least {least}")
    if not (is_loopback(host) or keys or without_keys):
        raise ValueError(
            f"{host} is open to others, and there is no key; give --api-key-file FILE, or mean it with "
            "--without-keys"
        )
    listening = listen(host, port)  # before the weights, which take their time
    from puna.cli.models import model_path
    from puna.generate.load import load_engine
    from puna.serve.app import Limits, build_app

    path = model_path(model)
    engine = load_engine(path, weights=weights, cache_tokens=cache_tokens, max_batch=max_batch, device=device)
    app = build_app(
        engine,
        name or (Path(model).resolve().name.removesuffix(".gguf") if Path(model).exists() else model),
        Limits(queue, max_tokens, max_body),
        keys,
        cors_origin,
        is_loopback(host),
    )
    place = f"[{host}]" if ":" in host else host
    url = f"http://{place}:{listening.getsockname()[1]}"
    page = "chat" if engine.template else "write"
    ready = f"{url}   open it to {page}; the API is at {url}/v1; Ctrl-C stops"
    run(app, listening, grace, lambda: print(ready, flush=True))
    return 0


def _keys(given: tuple[str, ...], file: Path | None) -> tuple[str, ...]:
    """All keys: of the command line, the file, the environment."""
    keys = [*given, *os.environ.get(KEYS, "").split()]
    if file is not None:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
        found = [line for line in lines if line and not line.startswith("#")]
        if not found:
            raise ValueError(f"{file} holds no key; write one a line")
        keys += found
    for key in keys:
        if not (key.isascii() and key.isprintable() and " " not in key and key):
            raise ValueError("an API key must be printable ASCII without spaces; choose another")
    return tuple(keys)
