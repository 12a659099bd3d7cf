"""Many clients for a long time: does anything stay behind?

    python -m tests.serve.soak --minutes 10

64 clients send whole and streamed requests, some for JSON, leave in the middle of answers, and come in
bursts; after the first quarter of the time they also send broken and hostile bodies. At the end: no server
error, every slot and every cache block free, each accepted request finished or cancelled, and the memory of
the process as it was after the first third. The times between the events of streams are printed, without
and with hostile bodies.
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
from pathlib import Path

import httpx2

from puna.config import ModelConfig
from tests.formats.models import write_native_model

CLIENTS = 64
CONFIG = ModelConfig(dim=64, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=96, vocab_size=320, context=512)
BROKEN = [b"", b"{", b"[]", b'{"prompt": 5}', b'{"prompt": "a\xff"}', b'{"prompt": [[99999]]}', b"[" * 9999]
# What is expensive unless it is refused first (tests/serve/test_hostile.py has them all).
BROKEN += [
    b'{"prompt": [' + b"[70]," * 20_000 + b'[70]], "n": 16}',
    b'{"prompt": "' + b"a" * (4 << 20) + b'"}',
    b'{"prompt": "' + b"a" * (3 << 20) + b'"}',
    b'{"prompt": [' + b"-7," * 900_000 + b"7]}",
]
SCHEMA = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 9}}, "required": ["name"]}
HOSTILE_SCHEMAS = [
    {"allOf": [{"type": "string", "pattern": f".*a.{{{i}}}b.*"} for i in range(1, 40)]},  # minutes to compile
    {"type": "string", "pattern": "^.*a.{500}b.{500}c$"},  # its masks grow
    {"$ref": "#"},
    {"enum": ["x" * 70_000]},
]
WORDS = [
    "the",
    "llama",
    "carries",
    "salt",
    "and",
    "seven",
    "stones",
    "over",
    "the",
    "puna",
    "while",
    "the",
    "wind",
    "counts",
]


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
    return {"prompt": " ".join(draw.choices(WORDS, k=draw.choice([1, 5, 40, 100]))), **body}


def for_json(schema: dict) -> dict:
    """A chat request whose answer conforms to a schema."""
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    return {"messages": [{"role": "user", "content": "a llama"}], "max_tokens": 60, "response_format": form}


async def one_request(
    client: httpx2.AsyncClient, draw: random.Random, waits: list[float], is_hostile: bool
) -> str:
    """Do one thing that clients do; gives what came of it. `waits` gets the times between events."""
    kind = draw.random()
    if kind < 0.12 and is_hostile:
        answer = await client.post("/v1/completions", content=draw.choice(BROKEN), headers=JSON)
        return f"broken body, {answer.status_code}"
    if kind < 0.15 and is_hostile:
        schema = draw.choice(HOSTILE_SCHEMAS)
        answer = await client.post("/v1/chat/completions", json=for_json(schema))
        return f"hostile schema, {answer.status_code}"
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
                waits += [now - before] * (count > 1)
                before = now
            if leaves_after and count >= leaves_after:
                return "left a stream"
        return "stream, 200" if last == "data: [DONE]" else f"stream ended with {last[:60]}"


async def one_client(
    url: str, seed: int, until: float, hostile_from: float, seen: Counter, waits: tuple[list, list]
) -> None:
    draw = random.Random(seed)
    while time.monotonic() < until:
        async with httpx2.AsyncClient(base_url=url, timeout=120) as client:
            for _ in range(draw.randrange(1, 30)):
                if time.monotonic() >= until:
                    break
                is_hostile = time.monotonic() > hostile_from
                what = await one_request(client, draw, waits[is_hostile], is_hostile)
                seen[what] += 1
                if "429" in what:  # told to come back later; most do
                    await asyncio.sleep(draw.random())
                if draw.random() < 0.1:  # and now and then all are quiet, and come back together
                    await asyncio.sleep(2 - time.monotonic() % 2)


async def clients(url: str, process: int, seconds: float) -> tuple[Counter, list[float]]:
    """All clients, and the server's memory 30 times meanwhile, in MB."""
    seen: Counter = Counter()
    waits: tuple[list[float], list[float]] = [], []
    until = time.monotonic() + seconds
    hostile_from = until - 0.75 * seconds
    tasks = [
        asyncio.create_task(one_client(url, seed, until, hostile_from, seen, waits))
        for seed in range(CLIENTS)
    ]
    memory = []
    while any(not task.done() for task in tasks) and time.monotonic() < until + 120:
        await asyncio.sleep(seconds / 30)
        memory.append(resident_mb(process))
    await asyncio.gather(*tasks)
    for name, times in zip(("without hostile bodies", "with them"), map(sorted, waits), strict=True):
        at = {"median": times[len(times) // 2], "p99": times[int(len(times) * 0.99)], "longest": times[-1]}
        figures = "   ".join(f"{key} {value * 1e3:.0f} ms" for key, value in at.items())
        print(f"{name}: {len(times):,} waits between events   {figures}", flush=True)
    return seen, memory


def metrics(url: str) -> dict[str, float]:
    """The server's numbers."""
    lines = [line for line in httpx2.get(f"{url}/metrics").text.splitlines() if not line.startswith("#")]
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines}


def soak(seconds: float, folder: Path) -> tuple[Counter, list[float], dict[str, float]]:
    """Serve, bother, and look at what is left; raises AssertionError when something is."""
    weights = write_native_model(folder / "tiny", CONFIG)
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    (weights / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    arguments = [sys.executable, "-m", "puna.cli", "serve", "--model", str(weights), "--port", "0"]
    process = subprocess.Popen(
        [*arguments, "--queue", "48", "--max-batch", "8"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # the model is too small to share among threads
    )
    try:
        url = process.stdout.readline().split()[0]
        seen, memory = asyncio.run(clients(url, process.pid, seconds))
        deadline = time.monotonic() + 20
        while (left := metrics(url))["puna_running"] or left["puna_queue_length"]:
            assert time.monotonic() < deadline, f"requests are stuck: {left}"
            time.sleep(0.1)
        assert left["puna_cache_blocks_free"] == left["puna_cache_blocks"], "cache blocks are lost"
        assert httpx2.get(f"{url}/health").status_code == 200
        process.terminate()
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 0
        assert not errors, errors
    finally:
        process.kill()
    fine = r"left|(whole|stream|JSON|schema), (200|429)$|(body|schema), (400|413|429)$"
    wrong = {what for what in seen if not re.search(fine, what)}
    assert not wrong, wrong
    assert (
        seen["stream, 200"] and seen["whole, 200"] and seen["left a stream"] and seen["left a whole answer"]
    )
    early, late = memory[len(memory) // 3], max(memory[-3:])
    assert late < early * 1.05 + 5, f"memory grew from {early:.0f} to {late:.0f} MB: {memory}"
    return seen, memory, left


JSON = {"content-type": "application/json"}

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=10)
    with tempfile.TemporaryDirectory() as folder:
        seen, memory, left = soak(parser.parse_args().minutes * 60, Path(folder))
    print(*(f"{count:8,}  {what}" for what, count in seen.most_common()), sep="\n")
    print("memory in MB:", " ".join(f"{value:.0f}" for value in memory))
    print(*(f"{value:12,.0f}  {name}" for name, value in left.items() if "total" in name), sep="\n")
