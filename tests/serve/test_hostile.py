"""Hostile clients: what they send is refused soon, what they hold is taken from them, others are served."""

import contextlib
import json
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

from puna.serve.app import Limits
from puna.serve.body import MAX_CONTAINERS, MAX_NUMBERS, MAX_STRINGS
from puna.tokens.chat_template import ChatTemplate
from tests.serve.conftest import live, tiny_engine
from tests.serve.test_limits import JSON, refusal

FOUR_MB = (4 << 20) - 100
HEAD = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
COSTLY = {
    "20,000 prompts with 16 answers each": b'{"prompt": [' + b"[70]," * 20_000 + b'[70]], "n": 16}',
    "800,000 prompts": b'{"prompt": [' + b"[7]," * (FOUR_MB // 4) + b"[7]]}",
    "lists of nothing": b'{"prompt": [' + b"[]," * (FOUR_MB // 3) + b"[]]}",
    "lists in lists": b"[" * FOUR_MB,
    "empty strings": b'{"prompt": [' + b'"",' * (FOUR_MB // 3) + b'""]}',
    "two million numbers": b'{"prompt": [' + b"7," * (FOUR_MB // 2) + b"7]}",
    "a million wrong numbers": b'{"prompt": [' + b"-7," * (FOUR_MB // 4) + b"7]}",
    "a long text": b'{"prompt": "' + b"a" * FOUR_MB + b'"}',
    "a long text of escapes": b'{"prompt": "' + b'\\"' * (FOUR_MB // 2) + b'"}',
    "unknown fields": b"{" + b",".join(b'"%d": 1' % i for i in range(40_000)) + b"}",
    "messages": b'{"messages": [' + b'{"role":"user","content":"a"},' * 15_000 + b"1]}",
    "wrong messages": b'{"messages": [' + b"{}," * 15_000 + b"1]}",
    "parts": b'{"messages": [{"role": "user", "content": [' + b"1," * 900_000 + b"1]}]}",
    "a long message": b'{"messages": [{"role": "user", "content": "' + b"<s>" * (FOUR_MB // 3 - 50) + b'"}]}',
    "stops": b'{"prompt": "a", "stop": [' + b'"a",' * 40_000 + b'"a"]}',
    "a bias": b'{"prompt": "a", "logit_bias": {' + b",".join(b'"%d": 1' % i for i in range(40_000)) + b"}}",
    "a long number": b'{"prompt": "a", "seed": ' + b"9" * FOUR_MB + b"}",
}


@pytest.mark.parametrize("name", COSTLY)
def test_a_costly_body_is_refused_before_it_costs(served, name):
    """The work is bounded, which time would show only on a quiet machine: nothing reaches the engine."""
    path = "/v1/chat/completions" if b'"messages"' in COSTLY[name][:20] else "/v1/completions"
    began, waits, stop = time.monotonic(), [], threading.Event()

    def watch():
        while not stop.is_set():
            start = time.monotonic()
            assert httpx2.get(f"{served.url}/health", timeout=30).status_code == 200
            waits.append(time.monotonic() - start)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        answer = httpx2.post(served.url + path, content=COSTLY[name], headers=JSON, timeout=60)
    finally:
        stop.set()
        watcher.join()
    print(f"{name}: {time.monotonic() - began:.2f} s, longest wait for /health {max(waits):.2f} s")
    refusal(answer, 400)
    assert len(answer.content) < 1000
    # It took minutes. What the machine's other work adds is allowed for.
    assert time.monotonic() - began < 20


def test_limits_of_a_body_are_beyond_what_requests_need(served):
    assert served.engine.context * 64 <= MAX_NUMBERS
    assert min(MAX_CONTAINERS, MAX_STRINGS / 4) >= 2048 * 2  # messages in parts
    code = 'def f(x):\n    return {"a": [x, "b"], "c": [[], {}]}  # \\ "quoted" \\" \n' * 40
    assert served.complete(prompt=code[:400], max_tokens=1)
    turns = [{"role": "user", "content": [{"type": "text", "text": "a, [b] {c}"}]}] * 30
    body = {"messages": turns, "max_tokens": 1}
    assert served.post("/v1/chat/completions", body).status_code == 200


def test_brackets_in_a_text_are_no_structure(served):
    many = "[" * 30_000 + '"' * 60_000 + "\\" * 7 + "," * 9
    answer = served.post("/v1/completions", {"prompt": many})
    assert "bytes, but the context holds 512 tokens of at most" in refusal(answer, 400)


def test_a_text_that_cannot_fit_is_not_encoded(served, monkeypatch):
    longest = served.engine.tokenizer.longest_piece
    monkeypatch.setattr(served.engine.tokenizer, "encode", None)
    text = "é" * (512 * longest // 2 + 1)
    for path, body in (
        ("/v1/completions", {"prompt": text}),
        ("/v1/completions", {"prompt": ["a" * (512 * longest + 1)]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": text}]}),
    ):
        answer = served.post(path, body)
        assert f"tokens of at most {longest}" in refusal(answer, 400)
        assert answer.json()["error"]["code"] == "context_length_exceeded"


# ---- slow clients


def connect(url: str) -> socket.socket:
    address = urlsplit(url)
    return socket.create_connection((address.hostname, address.port), timeout=20)


def test_a_body_that_comes_a_byte_at_a_time_is_cut(vocabulary, monkeypatch):
    monkeypatch.setattr("puna.serve.middleware.BODY_SECONDS", 0.8)
    monkeypatch.setattr("puna.serve.connection.LINGER_SECONDS", 0.5)
    with live(tiny_engine(vocabulary)) as one, connect(one.url) as slow:
        slow.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        )
        slow.sendall(b"Content-Length: 1000\r\n\r\n")
        began = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() - began < 10:
                slow.sendall(b" ")
                time.sleep(0.1)
        assert time.monotonic() - began < 10
        assert not one.server.server_state.connections


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET /hea", HEAD, HEAD + b"\r\nGET /"],
    ids=["nothing", "half a line", "half a head", "half of the next head"],
)  # fmt: skip
def test_a_head_that_does_not_come_whole_is_not_waited_for(vocabulary, monkeypatch, sent):
    monkeypatch.setattr("puna.serve.connection.HEAD_SECONDS", 0.5)
    with live(tiny_engine(vocabulary)) as one, connect(one.url) as slow:
        slow.sendall(sent)
        began = time.monotonic()
        with contextlib.suppress(ConnectionResetError):
            while slow.recv(4096):
                pass
        assert time.monotonic() - began < 10
        assert httpx2.get(f"{one.url}/health").status_code == 200


def test_an_answer_that_nobody_reads_is_dropped(vocabulary, monkeypatch):
    monkeypatch.setattr("puna.serve.connection.WRITE_SECONDS", 0.5)
    with live(tiny_engine(vocabulary)) as one, connect(one.url) as deaf:
        ask = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
        with contextlib.suppress(OSError):
            deaf.settimeout(2)
            for _ in range(3000):
                deaf.sendall(ask)
        deadline = time.monotonic() + 20
        while one.server.server_state.connections and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not one.server.server_state.connections


def test_a_client_that_sends_on_reads_the_refusal(vocabulary):
    with live(tiny_engine(vocabulary), limits=Limits(body_bytes=1000)) as one, connect(one.url) as raw:
        raw.sendall(POST + b"Content-Length: 4000000\r\n\r\n")
        for _ in range(40):  # closed meanwhile, the connection would be reset, and the answer lost
            raw.sendall(b" " * 100_000)
            time.sleep(0.01)
        assert raw.recv(100).startswith(b"HTTP/1.1 413")


def test_more_log_probabilities_than_fit_are_refused(served, monkeypatch):
    monkeypatch.setattr("puna.serve.service.MAX_LOGPROBS", 3 * (400 + 1) * 6)
    body = {"prompt": [[5] * 400] * 3, "max_tokens": 1, "echo": True, "logprobs": 5}
    assert served.post("/v1/completions", body).status_code == 200
    message = refusal(served.post("/v1/completions", body | {"n": 2}), 400)
    assert "the answers may hold more than 7,218 log-probabilities" in message
    talk = {"messages": [{"role": "user", "content": "a"}], "logprobs": True, "top_logprobs": 20}
    assert "log-probabilities" in refusal(served.post("/v1/chat/completions", talk), 400)


def test_a_client_that_disconnects_within_its_body_is_no_error(vocabulary, caplog):
    with live(tiny_engine(vocabulary)) as one:
        with connect(one.url) as raw:
            raw.sendall(POST + b'Content-Length: 1000\r\n\r\n{"prompt"')
        deadline = time.monotonic() + 20
        while 'status="499"' not in (text := httpx2.get(f"{one.url}/metrics").text):
            assert time.monotonic() < deadline, text
            time.sleep(0.05)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_two_lengths_close_the_connection(served):
    with connect(served.url) as raw:
        body = b"0\r\n\r\nGET /health HTTP/1.1\r\n"
        raw.sendall(POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n" + body)
        raw.sendall(b"Host: localhost\r\n\r\n")
        data = b""
        with contextlib.suppress(ConnectionResetError):
            while block := raw.recv(4096):
                data += block
    assert data.startswith(b"HTTP/1.1 400")
    assert data.count(b"HTTP/1.1 ") == 1


SERVER = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
from tests.serve.conftest import tiny_engine
from puna.serve.app import build_app
from puna.serve.run import listen, run
listening = listen("127.0.0.1", 0)
app = build_app(tiny_engine(Path(sys.argv[1])), "tiny")
run(app, listening, 1, lambda: print(listening.getsockname()[1], flush=True))
"""


@pytest.mark.skipif(resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 600, reason="needs 400 sockets here")
def test_silent_sockets_do_not_keep_others_out(vocabulary):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", SERVER, str(vocabulary)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        try:
            url = f"http://127.0.0.1:{int(process.stdout.readline())}"
            with contextlib.ExitStack() as stack:
                for _ in range(400):
                    stack.enter_context(connect(url))
                assert httpx2.get(f"{url}/health", timeout=8).status_code == 200
        finally:
            process.terminate()


# ---- templates


@pytest.mark.parametrize("source", ["{{ 10 ** (10 ** 10) }}", "{{ messages.x.y }}", "{% for %}"])
def test_a_models_template_that_fails_is_a_refusal_and_texts_are_continued(vocabulary, source):
    engine = tiny_engine(vocabulary)
    engine.template = ChatTemplate(source, engine.tokenizer, strict=False)
    with live(engine) as one:
        body = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
        for _ in range(2):
            message = refusal(one.post("/v1/chat/completions", body), 400)
            assert message.startswith("the chat template ")
        assert one.complete(prompt="a", max_tokens=1)


def test_json_is_json_whatever_the_numbers_are(vocabulary):
    engine = tiny_engine(vocabulary)
    decode = engine.runner.decode

    def strange(*arguments):
        logits = decode(*arguments)
        logits[:, 5:200:3], logits[:, 6:200:3] = float("nan"), float("inf")
        return logits

    engine.runner.decode = strange
    with live(engine) as one:
        body = {"prompt": "a", "max_tokens": 4, "logprobs": 5, "ignore_eos": True}
        text = one.post("/v1/completions", body).text
        json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
        body = {"messages": [{"role": "user", "content": "a"}], "logprobs": True, "top_logprobs": 5}
        text = one.post("/v1/chat/completions", body | {"max_tokens": 4}).text
        json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
