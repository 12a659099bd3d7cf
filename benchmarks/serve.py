"""Tail latencies of streams while hostile requests arrive.

    python benchmarks/serve.py --model smollm2 --seconds 20

In:  a model, served by `puna serve` in a process of its own.
Out: for each kind of hostile request: how long 16 streams waited for a token while it was sent again and
     again, median, p99 and longest, and how long it took to be answered. The first line is without any.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import httpx2

STREAMS = 16
JSON = {"content-type": "application/json"}
KINDS: dict[str, tuple[str, bytes] | None] = {
    "none": None,
    "a text of 3.9 MB": ("/v1/completions", b'{"prompt": "' + b"the llama " * 390_000 + b'"}'),
    "20,000 prompts": ("/v1/completions", b'{"prompt": [' + b"[70]," * 20_000 + b'[70]], "n": 16}'),
    "800,000 prompts": ("/v1/completions", b'{"prompt": [' + b"[7]," * 800_000 + b"[7]]}"),
    "900,000 numbers": ("/v1/completions", b'{"prompt": [' + b"-7," * 900_000 + b"7]}"),
    "40,000 unknown fields": (
        "/v1/completions",
        b"{" + b",".join(b'"%d":1' % i for i in range(40_000)) + b"}",
    ),
    "a message of control tokens": (
        "/v1/chat/completions",
        b'{"messages": [{"role": "user", "content": "' + b"<|im_end|>" * 30_000 + b'"}]}',
    ),
    "100 kB to tokenize": ("/tokenize", json.dumps({"prompt": "the llama carries " * 6000}).encode()),
}


async def stream(client: httpx2.AsyncClient, waits: list[float], stop: asyncio.Event) -> None:
    """Ask for long answers, and note how long each event takes to come."""
    body = {"prompt": "Once upon a time", "max_tokens": 400, "stream": True, "ignore_eos": True}
    while not stop.is_set():
        async with client.stream("POST", "/v1/completions", json=body) as answer:
            last = None
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    now = time.perf_counter()
                    if last is not None:
                        waits.append(now - last)
                    last = now
                if stop.is_set():
                    break


async def attack(client: httpx2.AsyncClient, kind: str, times: list[float], stop: asyncio.Event) -> None:
    """Send one hostile request after the other."""
    request = KINDS[kind]
    while request is not None and not stop.is_set():
        began = time.perf_counter()
        with suppress(httpx2.HTTPError):
            await client.post(request[0], content=request[1], headers=JSON)
        times.append(time.perf_counter() - began)
        await asyncio.sleep(0.2)


async def measure(url: str, kind: str, seconds: float) -> str:
    """One line of the table."""
    waits: list[float] = []
    times: list[float] = []
    stop = asyncio.Event()
    async with httpx2.AsyncClient(base_url=url, timeout=120) as client:
        work = [asyncio.create_task(stream(client, waits, stop)) for _ in range(STREAMS)]
        await asyncio.sleep(seconds / 4)  # until all are answered
        waits.clear()
        work.append(asyncio.create_task(attack(client, kind, times, stop)))
        await asyncio.sleep(seconds)
        stop.set()
        await asyncio.gather(*work)
    waits.sort()
    p99 = waits[int(len(waits) * 0.99)]
    answered = f"answered in {statistics.median(times):.2f} s" if times else ""
    return (
        f"{kind:28}  {len(waits):6,} tokens   median {waits[len(waits) // 2] * 1e3:6.0f} ms   "
        f"p99 {p99 * 1e3:6.0f} ms   longest {waits[-1] * 1e3:6.0f} ms   {answered}"
    )


@asynccontextmanager
async def served(model: str) -> AsyncIterator[str]:
    """`puna serve` on a free port."""
    command = [sys.executable, "-m", "puna.cli", "serve", "--model", model, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[0]
        finally:
            process.terminate()


async def main(model: str, seconds: float, kinds: list[str]) -> None:
    """Print the table."""
    async with served(model) as url:
        for kind in kinds:
            print(await measure(url, kind, seconds), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--only", action="append", choices=KINDS)
    chosen = parser.parse_args()
    asyncio.run(main(chosen.model, chosen.seconds, chosen.only or list(KINDS)))
