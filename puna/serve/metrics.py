"""Metrics in Prometheus' text format.

In:  observations from the middleware and the worker, and the engine's own counts.
Out: the text of /metrics.
"""

from collections.abc import Callable

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

__all__ = ["CONTENT_TYPE_LATEST", "Metrics"]

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Metrics:
    """The metrics of one server, in their own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"puna_{name}", text, labels, registry=self.registry)

        self.requests = counter("requests", "HTTP requests answered.", "path", "status")
        self.tokens_in = counter("prompt_tokens", "Prompt tokens of finished requests.")
        self.tokens_out = counter("generated_tokens", "Tokens generated.")
        self.first_token = Histogram(
            "puna_time_to_first_token_seconds",
            "Time from acceptance of a request to its first token.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.next_token = Histogram(
            "puna_time_per_token_seconds",
            "Time between two tokens of an answer.",
            buckets=TOKEN_SECONDS,
            registry=self.registry,
        )

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Add a gauge that is read at each scrape."""
        Gauge(f"puna_{name}", text, registry=self.registry).set_function(value)

    def text(self) -> bytes:
        """All metrics, in the text format."""
        return generate_latest(self.registry)
