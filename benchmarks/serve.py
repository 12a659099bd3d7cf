"""Tail latencies of streams while hostile and honest requests arrive.

    python benchmarks/serve.py --model smollm2 --seconds 10
    python benchmarks/serve.py --quick         a second of each kind: whether everything runs

In:  a model, served by `puna serve` in a process of its own, with a slot for each of 16 streams and one more.
Out: for each kind of request: how long 16 streams waited for a token while it was sent again and again:
     median, p99 and longest; and how long it took to be answered. The first line is without any.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import cycle

import httpx2

STREAMS = 16
QUEUE = 64
JSON = {"content-type": "application/json"}
COMPLETIONS, CHAT, TOKENIZE = "/v1/completions", "/v1/chat/completions", "/tokenize"


def ids(number: int, length: int) -> list[int]:
    """A prompt of `length` tokens that no other number begins with, so that none is in the prefix cache."""
    return [5 + (number * 7919 + 31 * place) % 40_000 for place in range(length)]


def many(number: int, length: int) -> list[list[int]]:
    """32 prompts of so many tokens."""
    return [ids(32 * number + index, length) for index in range(32)]


def whole(**body: object) -> bytes:
    """A request as JSON."""
    return json.dumps({"max_tokens": 1, **body}).encode()


# Path and body of the request of a number, for a model with this context.
KINDS: dict[str, Callable[[int, int], tuple[str, bytes]] | None] = {
    "none": None,
    "a prompt as long as the context": lambda i, n: (COMPLETIONS, whole(prompt=ids(i, n - 1))),
    "its log-probabilities": lambda i, n: (
        COMPLETIONS,
        whole(prompt=ids(i, n - 1), echo=True, logprobs=20),
    ),
    "32 prompts as long": lambda i, n: (COMPLETIONS, whole(prompt=many(i, n - 1))),
    "32 texts as long": lambda i, n: (
        COMPLETIONS,
        whole(prompt=[f"{i} {j} " + "the llama " * (n // 6) for j in range(32)]),
    ),
    "32 short prompts": lambda i, n: (COMPLETIONS, whole(prompt=many(i, 40))),
    "a conversation of 600 messages": lambda i, n: (
        CHAT,
        whole(messages=[{"role": "user", "content": f"{i} {j}"} for j in range(600)]),
    ),
    "a text of 3.9 MB": lambda i, n: (COMPLETIONS, whole(prompt="the llama " * 390_000)),
    "20,000 prompts": lambda i, n: (COMPLETIONS, whole(prompt=[[70]] * 20_000, n=16)),
    "800,000 prompts": lambda i, n: (COMPLETIONS, b'{"prompt": [' + b"[7]," * 800_000 + b"[7]]}"),
    "900,000 numbers": lambda i, n: (COMPLETIONS, b'{"prompt": [' + b"-7," * 900_000 + b"7]}"),
    "40,000 unknown fields": lambda i, n: (COMPLETIONS, whole(**{str(j): 1 for j in range(40_000)})),
    "a message of control tokens": lambda i, n: (
        CHAT,
        whole(messages=[{"role": "user", "content": "<|im_end|>" * 30_000}]),
    ),
    "100 kB to tokenize": lambda i, n: (
        TOKENIZE,
        json.dumps({"prompt": "the llama carries " * 6000}).encode(),
    ),
}


async def stream(client: httpx2.AsyncClient, waits: list[float]) -> None:
    """Ask for long answers, and note how long each event takes to come."""
    body = {"prompt": "Once upon a time", "max_tokens": 400, "stream": True, "ignore_eos": True}
    body["logprobs"] = 0  # an event per token: without, a part of a character has none
    while True:
        async with client.stream("POST", COMPLETIONS, json=body) as answer:
            last = None
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    now = time.perf_counter()
                    if last is not None:
                        waits.append(now - last)
                    last = now


async def attack(
    client: httpx2.AsyncClient, requests: Sequence[tuple[str, bytes]], times: list[float]
) -> None:
    """Send one request after the other."""
    for path, body in cycle(requests):
        began = time.perf_counter()
        with suppress(httpx2.HTTPError):
            await client.post(path, content=body, headers=JSON)
        times.append(time.perf_counter() - began)
        await asyncio.sleep(0.2)


async def measure(url: str, kind: str, seconds: float) -> str:
    """One line of the table."""
    waits: list[float] = []
    times: list[float] = []
    async with httpx2.AsyncClient(base_url=url, timeout=120) as client:
        context = (await client.get("/v1/models")).json()["data"][0]["context"]
        make, first = KINDS[kind], time.time_ns() // 10**9
        requests = [make(first + number, context) for number in range(3)] if make else []
        work = [asyncio.create_task(stream(client, waits)) for _ in range(STREAMS)]
        await asyncio.sleep(seconds / 4)  # until all are answered
        waits.clear()
        work.append(asyncio.create_task(attack(client, requests, times)))
        await asyncio.sleep(seconds)
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)
    waits.sort()
    if not waits:
        return f"{kind:33}  no token within {seconds:g} s"
    p99 = waits[int(len(waits) * 0.99)]
    answered = f"answered in {statistics.median(times):.2f} s" if times else ""
    return (
        f"{kind:33}  {len(waits):6,} tokens   median {waits[len(waits) // 2] * 1e3:4.0f} ms   "
        f"p99 {p99 * 1e3:4.0f} ms   longest {waits[-1] * 1e3:5.0f} ms   {answered}"
    )


@asynccontextmanager
async def served(model: str) -> AsyncIterator[str]:
    """`puna serve` on a free port."""
    command = [sys.executable, "-m", "puna.cli", "serve", "--model", model, "--port", "0"]
    command += ["--max-batch", str(STREAMS + 1), "--queue", str(QUEUE)]
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
    parser.add_argument("--quick", action="store_true")
    chosen = parser.parse_args()
    seconds = 1 if chosen.quick else chosen.seconds
    asyncio.run(main(chosen.model, seconds, chosen.only or list(KINDS)))
