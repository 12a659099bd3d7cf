"""What the training loop asks of its data: `tokens.mixture.Mixture`, or batches of instructions."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from puna.manifest import Input
from puna.tokens.mixture import Batch


class BatchSource(Protocol):
    """Batches as a function of the step alone, so that the state of training is its step."""

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the data sets that are mixed; `Batch.sources` are indices into them."""

    @property
    def shares(self) -> Mapping[str, float]:
        """The intended share of each source, which sum to 1."""

    @property
    def fingerprint(self) -> str:
        """Identifies the sequence of batches: equal fingerprints mean equal batches at every step."""

    @property
    def vocab_size(self) -> int:
        """Number of tokens in the vocabulary."""

    @property
    def tokenizer(self) -> Path:
        """The data's tokenizer, as a file on this machine."""

    @property
    def inputs(self) -> tuple[Input, ...]:
        """What the data was read from, for the manifest of the run."""

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """The rows of `rank` out of `world` in the global batch of a step."""

    def validation_windows(
        self, source: str, limit: int | None = None, rows: int | None = None
    ) -> Iterator[Batch]:
        """At most `limit` held-out sequences of a source, `rows` per batch."""

    def tokens_per_byte(self, source: str) -> float:
        """Held-out target tokens per UTF-8 byte of text; 0 where there are none."""

    def report(self, steps: int) -> list[dict[str, Any]]:
        """What `steps` steps train on, one row per source."""
