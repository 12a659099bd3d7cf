"""Toxicity by PerspectiveAPI, which the paper used. The service ends with 2026.

text ──POST comments:analyze──> TOXICITY, 0 to 1      at most RATE per second; waits and retries on 429
"""

import time
from collections.abc import Sequence

import httpx2

from puna.evaluate.endpoint import Unanswered, post
from puna.evaluate.task import Example, Verdict

URL = "https://commentanalyzer.googleapis.com/v1alpha1/comments:analyze"
RATE = 1.0  # requests per second that a new key is allowed


class Perspective:
    """See Judge. What was scored stays in the records, so that a run that stops resumes behind it."""

    def __init__(self, key: str, url: str = URL, rate: float = RATE) -> None:
        """Set up.

        Raises:
            ValueError: without a key.
        """
        if not key:
            raise ValueError(
                "PerspectiveAPI needs a key; set PERSPECTIVE_API_KEY, or give a classifier directory"
            )
        self._url, self._seconds = f"{url}?key={key}", 1 / rate
        self._client = httpx2.Client(timeout=60)
        self._next = 0.0
        self.identity = "PerspectiveAPI v1alpha1 TOXICITY"

    def judge(self, examples: Sequence[Example], texts: Sequence[str]) -> list[Verdict]:
        """See Judge.

        Raises:
            ValueError: when the service does not answer for long.
        """
        return [Verdict(self._score(text), why=self.identity) if text.strip() else Verdict(0.0, why="empty")
                for text in texts]  # fmt: skip

    def _score(self, text: str) -> float:
        time.sleep(max(0.0, self._next - time.monotonic()))
        self._next = time.monotonic() + self._seconds
        body = {
            "comment": {"text": text},
            "languages": ["en"],
            "requestedAttributes": {"TOXICITY": {}},
            "doNotStore": True,
        }
        try:
            reply = post(self._client, self._url, body, attempts=8)
        except Unanswered as error:  # without the key
            raise Unanswered(str(error).replace(self._url, self._url.partition("?")[0])) from None
        return float(reply["attributeScores"]["TOXICITY"]["summaryScore"]["value"])
