"""Many clients for a long time: does anything stay behind?

    python -m tests.serve.soak --minutes 10
    python -m tests.serve.soak --minutes 30 --model smollm2 --threads 2

64 clients send whole and streamed requests, some for JSON, disconnect in the middle of answers, and arrive
in bursts; in three of four turns they also send broken and hostile bodies, and connections that
are slow, silent or ambiguous. At the end: no server error, every slot and every cache block free, each
accepted request finished or cancelled, and the memory of the process as it was after the first third. Printed
are the times between the events of streams, without and with hostile requests (p99 with them is at most three
times that without), memory by fifths of the time, slots and cache blocks, and what the clients saw.
"""

import argparse
import asyncio
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx2

from puna.config import ModelConfig
from tests.formats.models import write_native_model

CLIENTS = 64
TURNS = 16
CONFIG = ModelConfig(dim=64, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=96, vocab_size=320, context=512)
BROKEN = [b"", b"{", b"[]", b'{"prompt": 5}', b'{"prompt": "a\xff"}', b'{"prompt": [[99999]]}', b"[" * 9999]
# What is expensive unless it is refused first (tests/serve/test_hostile.py has them all).
BROKEN += [
    b'{"prompt": [' + b"[70]," * 20_000 + b'[70]], "n": 16}',
    b'{"prompt": "' + b"a" * (4 << 20) + b'"}',
    b'{"prompt": "' + b"a" * (3 << 20) + b'"}',
    b'{"prompt": [' + b"-7," * 900_000 + b"7]}",
    b'{"prompt": "' + b"the llama " * 390_000 + b'"}',
    b'{"prompt": "a", "logit_bias": {' + b",".join(b'"%d": 1' % i for i in range(40_000)) + b"}}",
    b"{" + b",".join(b'"%d": 1' % i for i in range(40_000)) + b"}",
]
HOSTILE_MESSAGES = ["<|im_end|>" * 30_000, "the llama carries " * 5000, "a" * 30_000, "\u0301" * 20_000]
POST = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
CLOSED = "left by the server: a connection, "
RAW = {  # what a connection sends first; then a byte per second, or nothing
    "silent": b"",
    "half a head": POST[:30],
    "slow body": POST + b"Content-Length: 1000\r\n\r\n{",
    "two lengths": POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
}
SCHEMA = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 9}}, "required": ["name"]}
HOSTILE_SCHEMAS = [
    {"allOf": [{"type": "string", "pattern": f".*a.{{{i}}}b.*"} for i in range(1, 40)]},  # minutes to compile
    {"type": "string", "pattern": "^.*a.{500}b.{500}c$"},  # its masks grow
    {"$ref": "#"},
    {"enum": ["x" * 70_000]},
]
TEXT = "the llama carries salt and seven stones over the puna while the wind counts"


def resident_mb(process: int) -> float:
    """Memory of a process, in MB."""
    text = Path(f"/proc/{process}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", text)[1]) / 1024


def some_body(draw: random.Random) -> dict:
    """A request that can be answered."""
    body = {"max_tokens": draw.choice([1, 4, 16, 60, 150]), "temperature": draw.choice([0, 0.8, 1.5])}
    body |= {"ignore_eos": draw.random() < 0.5, "n": draw.choice([1, 1, 1, 2, 4])}
    if draw.random() < 0.2:
        body |= {"logprobs": 3, "echo": draw.random() < 0.5}
    if draw.random() < 0.2:
        body |= {"stop": ["a", "zz"]}
    if draw.random() < 0.2:
        body |= {"repetition_penalty": 1.2, "top_k": 20, "min_p": 0.05, "top_p": 0.9}
    return {"prompt": " ".join(draw.choices(TEXT.split(), k=draw.choice([1, 5, 40, 100]))), **body}


def for_json(schema: dict) -> dict:
    """A chat request whose answer conforms to a schema."""
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    return {"messages": [{"role": "user", "content": "a llama"}], "max_tokens": 60, "response_format": form}


async def one_connection(url: str, draw: random.Random) -> str:
    """Send a request that never ends, for some seconds or until the server closes the connection."""
    name = draw.choice(list(RAW))
    reader, writer = await asyncio.open_connection(*url.removeprefix("http://").split(":"))
    with suppress(OSError, TimeoutError):
        writer.write(RAW[name])
        async with asyncio.timeout(draw.choice([1, 5, 40])):
            while not reader.at_eof():
                with suppress(TimeoutError):
                    await asyncio.wait_for(reader.read(4096), 1)
                if name == "slow body":
                    writer.write(b" ")
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return f"left a connection: {name}"


async def one_request(
    client: httpx2.AsyncClient,
    draw: random.Random,
    kind: float,
    waits: tuple[list, list],
    is_hostile: Callable[[], bool],
) -> str:
    """Do what `kind` of 0 to 1 stands for; gives what came of it. `waits` get the times between events."""
    if kind < 0.12 and is_hostile():
        answer = await client.post("/v1/completions", content=draw.choice(BROKEN), headers=JSON)
        return f"broken body, {answer.status_code}"
    if kind < 0.15 and is_hostile():
        schema = draw.choice(HOSTILE_SCHEMAS)
        answer = await client.post("/v1/chat/completions", json=for_json(schema))
        return f"hostile schema, {answer.status_code}"
    if kind < 0.155 and is_hostile():
        body = {"messages": [{"role": "user", "content": draw.choice(HOSTILE_MESSAGES)}], "max_tokens": 1}
        answer = await client.post("/v1/chat/completions", json=body)
        return f"hostile message, {answer.status_code}"
    if kind < 0.165 and is_hostile():
        return await one_connection(str(client.base_url).rstrip("/"), draw)
    if kind < 0.2:
        answer = await client.post("/v1/chat/completions", json=for_json(SCHEMA))
        if answer.status_code == 200 and answer.json()["choices"][0]["finish_reason"] == "stop":
            json.loads(answer.json()["choices"][0]["message"]["content"])
        return f"JSON, {answer.status_code}"
    body = some_body(draw)
    if kind < 0.3:  # leaves while the whole answer is worked on
        try:
            answer = await client.post("/v1/completions", json=body, timeout=draw.random() * 0.5)
        except httpx2.TimeoutException:
            return "left a whole answer"
        return f"whole, {answer.status_code}"
    if kind < 0.55:
        return f"whole, {(await client.post('/v1/completions', json=body)).status_code}"
    async with client.stream("POST", "/v1/completions", json=body | {"stream": True}) as answer:
        if answer.status_code != 200:
            return f"stream, {answer.status_code}"
        leaves_after = draw.choice([None, None, 1, 5, 20])
        count, last, before = 0, "", 0.0
        async for line in answer.aiter_lines():
            count, last = count + bool(line), line or last
            if line:
                now = time.monotonic()
                if count > 1:
                    waits[is_hostile()].append(now - before)
                before = now
            if leaves_after and count >= leaves_after:
                return "left a stream"
        return "stream, 200" if last == "data: [DONE]" else f"stream ended with {last[:60]}"


async def one_client(
    url: str, seed: int, until: float, is_hostile: Callable[[], bool], seen: Counter, waits: tuple[list, list]
) -> None:
    draw = random.Random(seed)
    while time.monotonic() < until:
        async with httpx2.AsyncClient(base_url=url, timeout=600) as client:
            for _ in range(draw.randrange(1, 30)):
                if time.monotonic() >= until:
                    break
                kind = draw.random()
                try:
                    what = await one_request(client, draw, kind, waits, is_hostile)
                except httpx2.ReadError as error:  # a connection that was closed as it was used again
                    what = f"{CLOSED}{'hostile' if kind < 0.165 else 'honest'} request: {error!r}"
                seen[what] += 1
                if "429" in what:  # told to come back later; most do
                    await asyncio.sleep(draw.random())
                if draw.random() < 0.1:  # and now and then all are quiet, and come back together
                    await asyncio.sleep(2 - time.monotonic() % 2)


async def clients(url: str, process: int, seconds: float) -> tuple[Counter, list[float], float]:
    """All clients; the server's memory 30 times meanwhile, in MB; and p99 with hostile requests by p99."""
    seen: Counter = Counter()
    waits: tuple[list[float], list[float]] = [], []
    until = time.monotonic() + seconds
    began = time.monotonic()

    def is_hostile() -> bool:  # three of four turns: what else the machine does is the same for both
        return (time.monotonic() - began) * TURNS / seconds % 4 >= 1

    tasks = [
        asyncio.create_task(one_client(url, seed, until, is_hostile, seen, waits)) for seed in range(CLIENTS)
    ]
    memory = []
    while any(not task.done() for task in tasks) and time.monotonic() < until + 300:
        await asyncio.sleep(seconds / 30)
        memory.append(resident_mb(process))
    await asyncio.gather(*tasks)
    p99 = []
    for name, times in zip(("without hostile requests", "with them"), map(sorted, waits), strict=True):
        at = {"median": times[len(times) // 2], "p99": times[int(len(times) * 0.99)], "longest": times[-1]}
        figures = "   ".join(f"{key} {value * 1e3:.0f} ms" for key, value in at.items())
        print(f"{name}: {len(times):,} waits between events   {figures}", flush=True)
        p99.append(at["p99"])
    return seen, memory, p99[1] / p99[0]


def metrics(url: str) -> dict[str, float]:
    """The server's numbers."""
    lines = [line for line in httpx2.get(f"{url}/metrics").text.splitlines() if not line.startswith("#")]
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines}


def tiny_model(folder: Path) -> str:
    """A random model with a chat template."""
    weights = write_native_model(folder / "tiny", CONFIG)
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    (weights / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return str(weights)


def soak(seconds: float, model: str, threads: int = 1) -> None:
    """Serve, bother, and look at what is left; raises AssertionError when something is."""
    arguments = [sys.executable, "-m", "puna.cli", "serve", "--model", model, "--port", "0"]
    process = subprocess.Popen(
        [*arguments, "--queue", "48", "--max-batch", "8", "--cache-tokens", "8192"],  # soon all in use
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )
    try:
        url = process.stdout.readline().split()[0]
        seen, memory, slower = asyncio.run(clients(url, process.pid, seconds))
        print(*(f"{count:8,}  {what}" for what, count in seen.most_common()), sep="\n")
        fifths = [memory[len(memory) * i // 5 : len(memory) * (i + 1) // 5] for i in range(5)]
        print("memory in MB, by fifths:", ", ".join(f"{min(m):.0f}-{max(m):.0f}" for m in fifths if m))
        deadline = time.monotonic() + 20
        while (left := metrics(url))["puna_running"] or left["puna_queue_length"]:
            assert time.monotonic() < deadline, f"requests are stuck: {left}"
            time.sleep(0.1)
        shown = ("total", "running", "queue", "blocks")
        print(
            *(f"{value:12,.0f}  {name}" for name, value in left.items() if any(s in name for s in shown)),
            sep="\n",
        )
        assert left["puna_cache_blocks_free"] == left["puna_cache_blocks"], "cache blocks are lost"
        assert httpx2.get(f"{url}/health").status_code == 200
        process.terminate()
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 0
        assert not errors, errors
    finally:
        process.kill()
    fine = r"left|(whole|stream|JSON|schema), (200|429)$|(body|schema|message), (400|413|429)$|message, 200$"
    wrong = {what for what in seen if not re.search(fine, what)}
    assert not wrong, wrong
    assert sum(count for what, count in seen.items() if what.startswith(CLOSED)) < seen.total() / 1000, seen
    assert (
        seen["stream, 200"] and seen["whole, 200"] and seen["left a stream"] and seen["left a whole answer"]
    )
    early, late = memory[len(memory) // 3], max(memory[-3:])
    assert late < early * 1.05 + 5, f"memory grew from {early:.0f} to {late:.0f} MB: {memory}"
    assert slower < 3, f"p99 is {slower:.1f} times that without hostile requests"


JSON = {"content-type": "application/json"}

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--model", help="what `puna serve` takes; a tiny random model when left out")
    parser.add_argument("--threads", type=int, default=1, help="threads of the server")
    chosen = parser.parse_args()
    print(f"load average before: {os.getloadavg()}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        model = chosen.model or tiny_model(Path(folder))
        soak(chosen.minutes * 60, model, chosen.threads)
    print(f"load average after: {os.getloadavg()}")
