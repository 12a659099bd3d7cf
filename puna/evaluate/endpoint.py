"""A model behind an OpenAI-compatible endpoint: it can only generate, so tasks with options are not for it.

prompt ──POST URL/completions──> text      retried on 429, on errors of the server, on broken connections
"""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import httpx2
import numpy as np

from puna.evaluate.model import Generated, Progress, Prompt, unseen
from puna.generate.likelihood import Row, Scored, Tokens
from puna.retry import TryAgain, retry

ATTEMPTS = 6
TIMEOUT = 300.0
CONCURRENT = 8


class Unanswered(ValueError):
    """A request that failed for good."""


def post(client: httpx2.Client, url: str, body: dict[str, Any], attempts: int = ATTEMPTS) -> Any:
    """POST JSON and give the JSON of the reply; wait and try again on 429 and on errors of the server.

    Raises:
        Unanswered: naming the address and the last error, when no attempt succeeds.
    """

    def attempt() -> Any:
        try:
            reply = client.post(url, json=body)
        except httpx2.HTTPError as error:
            raise TryAgain(f"{type(error).__name__}: {error}") from error
        if reply.status_code == 200:
            return reply.json()
        why = f"status {reply.status_code}: {' '.join(reply.text.split())[:200]}"
        if reply.status_code < 500 and reply.status_code != 429:
            raise ValueError(why)
        after = reply.headers.get("retry-after", "")
        raise TryAgain(why, min(60.0, float(after)) if after.replace(".", "").isdigit() else 0.0)

    try:
        return retry(attempt, [2.0**n for n in range(attempts - 1)])
    except (TryAgain, ValueError) as error:
        raise Unanswered(
            f"{url} does not answer ({error}); check it, then the same command resumes"
        ) from error


class Endpoint:
    """See Model. `url` ends with /v1, as OpenAI's; the API key is sent where there is one."""

    begins_with_bos = False  # what the server does with a prompt is not known
    context = 1 << 30

    def __init__(self, url: str, model: str = "", key: str = "") -> None:
        """Connect.

        Raises:
            ValueError: when the endpoint does not answer or names no model.
        """
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self._url = url.rstrip("/")
        self._client = httpx2.Client(headers=headers, timeout=TIMEOUT)
        if not model:
            try:
                reply = self._client.get(f"{self._url}/models")
                reply.raise_for_status()
                model = reply.json()["data"][0]["id"]
            except (httpx2.HTTPError, ValueError, LookupError) as error:
                raise ValueError(
                    f"{self._url}/models does not answer ({error}); start the server, or fix the address"
                ) from error
        self.name = model
        self.digest = hashlib.sha256(f"{self._url} {model}".encode()).hexdigest()[:32]

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        """The texts' bytes: an endpoint does not tell its tokens."""
        return [np.frombuffer(text.encode(), np.uint8).astype(np.uint32) for text in texts]

    def score(self, rows: Sequence[Row], progress: Progress = unseen) -> list[Scored]:
        """Not supported."""
        raise ValueError(f"{self._url} can only generate; choose tasks without options, or a local model")

    def complete(self, prompt: str, max_tokens: int) -> str:
        """The greedy continuation of one prompt."""
        body = {"model": self.name, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0}
        return str(post(self._client, f"{self._url}/completions", body)["choices"][0]["text"])

    def generate(
        self, prompts: Sequence[Prompt], progress: Progress = unseen
    ) -> Iterator[tuple[int, Generated]]:
        """See Model. At most four stop strings are sent; all are applied here as well."""
        with ThreadPoolExecutor(CONCURRENT) as pool:
            futures = {pool.submit(self._one, prompt): index for index, prompt in enumerate(prompts)}
            try:
                for future in as_completed(futures):
                    generated = future.result()
                    progress(generated.tokens)
                    yield futures[future], generated
            finally:
                for future in futures:
                    future.cancel()

    def _one(self, prompt: Prompt) -> Generated:
        body = {
            "model": self.name,
            "prompt": prompt.text,
            "max_tokens": prompt.max_tokens,
            "temperature": prompt.sampling.temperature,
            "top_p": prompt.sampling.top_p,
            "seed": prompt.sampling.seed % (1 << 31),
        }
        if prompt.stop:
            body["stop"] = list(prompt.stop[:4])
        reply = post(self._client, f"{self._url}/completions", body)
        choice = reply["choices"][0]
        text, finish = choice["text"], choice.get("finish_reason") or "stop"
        ends = [at for stop in prompt.stop if (at := text.find(stop)) >= 0]
        if ends:
            text, finish = text[: min(ends)], "stop"
        tokens = (reply.get("usage") or {}).get("completion_tokens") or 0
        return Generated(text, tokens, finish)
