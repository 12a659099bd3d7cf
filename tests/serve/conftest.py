"""A real engine with a tiny random model, behind a real server on a free port of this machine."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from puna.config import ModelConfig
from puna.generate.engine import Engine
from puna.generate.runners.pytorch import PlainRunner
from puna.serve.app import build_app
from puna.serve.run import Server, listen
from puna.tokens.chat_template import ChatTemplate
from puna.tokens.tokenizer import Tokenizer
from tests.formats.models import random_model, tokenizer_model

CONFIG = ModelConfig(dim=64, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=96, vocab_size=320, context=512)
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
NAME = "tiny"


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("vocabulary") / "tokenizer.model"
    path.write_bytes(tokenizer_model())
    return path


def tiny_engine(vocabulary: Path, template: bool = True, max_batch: int = 4, blocks: int = 64) -> Engine:
    tokenizer = Tokenizer(vocabulary)
    runner = PlainRunner(random_model(CONFIG).eval(), blocks)
    return Engine(runner, tokenizer, max_batch, ChatTemplate(TEMPLATE, tokenizer) if template else None)


def slowed(engine: Engine, seconds: float) -> Engine:
    """The same engine, so slow that a test can act in the middle of an answer."""
    step = engine.step

    def slow_step() -> Any:
        time.sleep(seconds)
        return step()

    engine.step = slow_step  # type: ignore[method-assign]
    return engine


@dataclass
class Live:
    """A server that runs."""

    url: str
    app: Any
    engine: Engine
    server: Server

    def post(self, path: str, body: Any, **more: Any) -> httpx2.Response:
        return httpx2.post(self.url + path, json=body, timeout=60, **more)

    def complete(self, **body: Any) -> dict[str, Any]:
        answer = self.post("/v1/completions", {"ignore_eos": True, "temperature": 0, **body})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def metric(self, name: str) -> float:
        lines = httpx2.get(f"{self.url}/metrics").text.splitlines()
        return float(next(line.split()[-1] for line in lines if line.startswith(name)))

    def wait_until_running(self, count: int, seconds: float = 20) -> None:
        """Until so many requests are answered at once: the figures follow a step, and may be one behind."""
        deadline = time.monotonic() + seconds
        while self.app.state.worker.stats["running"] != count:
            assert time.monotonic() < deadline, self.app.state.worker.stats
            time.sleep(0.01)

    def wait_until_free(self, seconds: float = 20) -> None:
        """Until the engine holds nothing and every slot is free."""
        deadline = time.monotonic() + seconds
        while self.app.state.worker.open or self.app.state.worker.stats["running"]:
            assert time.monotonic() < deadline, self.app.state.worker.stats
            time.sleep(0.01)
        stats = self.app.state.worker.stats
        assert (stats["running"], stats["waiting"]) == (0, 0)
        assert stats["free_blocks"] == stats["blocks"]


@contextmanager
def live(engine: Engine, grace: float = 5.0, **options: Any) -> Iterator[Live]:
    """Serve an engine from a thread."""
    app = build_app(engine, NAME, **options)
    listening = listen("127.0.0.1", 0)
    ready = threading.Event()
    server = Server(app, grace, ready.set)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        assert ready.wait(30)
        yield Live(f"http://127.0.0.1:{listening.getsockname()[1]}", app, engine, server)
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def served(vocabulary) -> Iterator[Live]:
    """One server for the tests that leave it as it was."""
    with live(tiny_engine(vocabulary)) as one:
        yield one
        one.wait_until_free()
