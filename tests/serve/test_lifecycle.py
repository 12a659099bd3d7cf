"""Clients leave, neighbours stay, engines fail, servers stop: nothing hangs and nothing leaks."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import httpx2
import pytest

from puna.config import ModelConfig
from puna.serve.worker import BROKEN
from tests.formats.models import write_native_model
from tests.serve.conftest import CONFIG, live, slowed, tiny_engine

LONG = {"prompt": "the wind", "max_tokens": 400, "ignore_eos": True, "temperature": 0}


def events(lines):
    """The events of a stream, as they come."""
    for line in lines:
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line.removeprefix("data: "))


@contextmanager
def streaming(url: str, body: dict):
    """A stream whose first event has come."""
    with httpx2.stream("POST", f"{url}/v1/completions", json={**body, "stream": True}, timeout=60) as answer:
        assert answer.status_code == 200
        lines = events(answer.iter_lines())
        next(lines)
        yield lines


def test_a_client_that_leaves_a_stream_frees_its_place(vocabulary):
    engine = slowed(tiny_engine(vocabulary, max_batch=2), 0.01)
    with live(engine) as one:
        with streaming(one.url, LONG), streaming(one.url, LONG):
            one.wait_until_running(2)
        one.wait_until_free(2)
        assert one.metric("puna_generated_tokens_total") < 400


def test_a_client_that_leaves_a_whole_answer_frees_its_place(vocabulary):
    engine = slowed(tiny_engine(vocabulary), 0.01)
    with live(engine) as one:
        with pytest.raises(httpx2.TimeoutException):
            httpx2.post(f"{one.url}/v1/completions", json={**LONG, "n": 3}, timeout=0.5)
        one.wait_until_free(2)
        assert one.metric('puna_requests_total{path="/v1/completions",status="499"}') == 1


def test_neighbours_do_not_notice_who_comes_and_goes(vocabulary):
    with live(slowed(tiny_engine(vocabulary), 0.005)) as one:
        alone = one.complete(prompt="seven stones", max_tokens=100, temperature=1, seed=4)["choices"]
        together = []
        thread = threading.Thread(
            target=lambda: together.append(
                one.complete(prompt="seven stones", max_tokens=100, temperature=1, seed=4)["choices"]
            )
        )
        thread.start()
        while thread.is_alive():
            with streaming(one.url, LONG):
                pass
        thread.join()
        assert together == [alone]
        one.wait_until_free()


def test_a_long_prompt_does_not_stop_the_streams_that_run(vocabulary):
    """The engine computes a prompt in chunks, so a stream goes on between them, at every step."""
    engine = tiny_engine(vocabulary)
    steps = []
    step = engine.step

    def watched_step():
        time.sleep(0.01)  # a step of which much can happen meanwhile
        chunks = step()
        steps.append([id for id, _ in chunks])
        return chunks

    engine.step = watched_step
    with live(engine) as one, streaming(one.url, LONG):
        (first,) = {id for ids in steps for id in ids}
        before = len(steps)
        one.complete(prompt=[7] * (CONFIG.context - 10), max_tokens=1)
        during = steps[before:]
        assert len(during) >= 2  # 502 tokens, at most 256 a step
        assert all(first in ids for ids in during)


def test_a_failing_engine_fails_its_requests_and_says_that_it_is_unwell(vocabulary, caplog):
    engine = slowed(tiny_engine(vocabulary), 0.01)
    with live(engine) as one:
        answers = []
        waiting = threading.Thread(target=lambda: answers.append(one.post("/v1/completions", LONG)))
        waiting.start()
        deadline = time.monotonic() + 20
        while engine.idle and time.monotonic() < deadline:  # a request that comes later is refused with 503
            time.sleep(0.01)
        with streaming(one.url, LONG) as lines:

            def broken_step():
                raise RuntimeError("out of memory")

            engine.step = broken_step
            last = list(lines)[-1]
        assert last["error"]["message"] == BROKEN
        waiting.join(20)
        assert (answers[0].status_code, answers[0].json()["error"]["code"]) == (500, "engine_failed")
        assert "out of memory" in caplog.text
        for answer in (httpx2.get(f"{one.url}/health"), one.post("/v1/completions", {"prompt": "a"})):
            assert (answer.status_code, answer.json()["error"]["message"]) == (503, BROKEN)
        assert not one.app.state.worker.open


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    config = ModelConfig(dim=32, n_layers=1, n_heads=2, ffn_dim=48, vocab_size=320, context=4096)
    return write_native_model(tmp_path_factory.mktemp("weights") / "small", config)


@contextmanager
def command(weights, *options: str):
    """`puna serve` as a process, and its address."""
    arguments = [sys.executable, "-m", "puna.cli", "serve", "--model", str(weights), "--port", "0", *options]
    environment = {**os.environ, "PUNA_API_KEYS": ""}
    process = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        ready = process.stdout.readline()
        assert ready.startswith("http://127.0.0.1:"), process.stderr.read()
        yield process, ready.split()[0]
    finally:
        process.kill()
        process.communicate()


def test_sigterm_lets_an_answer_finish_and_takes_no_more(weights):
    with command(weights) as (process, url):
        assert httpx2.get(f"{url}/v1/models").json()["data"][0]["id"] == "small"
        with streaming(url, {**LONG, "max_tokens": 200}) as lines:
            process.send_signal(signal.SIGTERM)
            rest = list(lines)
        assert rest[-1]["choices"][0]["finish_reason"] == "length"
        assert process.wait(20) == 0
        with pytest.raises(httpx2.ConnectError):
            httpx2.get(f"{url}/health")
        assert process.stderr.read() == ""


def test_what_does_not_finish_in_the_grace_is_told_so(weights):
    with command(weights, "--grace", "0.05") as (process, url):
        with streaming(url, {**LONG, "max_tokens": 4000}) as lines:
            process.send_signal(signal.SIGTERM)
            last = list(lines)[-1]
        assert "the server is stopping" in last["error"]["message"]
        assert process.wait(20) == 0
