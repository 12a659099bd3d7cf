"""What evaluation needs of a model: three methods. Tasks know nothing else of it.

    encode    texts -> token ids, BOS first where the vocabulary needs one
    score     rows of (context, continuation) -> the log-probability of each continuation
    generate  prompts -> texts

EngineModel computes them with an engine of this package; endpoint.py asks a server, which can only generate.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from puna.config import Sampling
from puna.files import sha256_file
from puna.formats.contents import model_files
from puna.generate import likelihood
from puna.generate.engine import Engine
from puna.generate.likelihood import Row, Scored, Tokens
from puna.generate.request import Request

Progress = Callable[[int], None]
"""Is told of tokens that are done."""


def unseen(_: int) -> None:
    """Progress that nobody looks at."""


@dataclass(frozen=True)
class Prompt:
    """A text to continue."""

    text: str
    tokens: Tokens
    sampling: Sampling
    max_tokens: int
    stop: tuple[str, ...]


@dataclass(frozen=True)
class Generated:
    """A continuation, which ends before the first stop string."""

    text: str
    tokens: int
    finish: str
    """stop, or length where it was cut at max_tokens or at the end of the context."""


class Model(Protocol):
    """A model as evaluation sees it."""

    name: str
    digest: str
    """Stands for weights, precision and tokenizer: records of another digest are not reused."""
    context: int
    begins_with_bos: bool

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        """The ids of whole texts, each with BOS where the vocabulary needs one."""

    def score(self, rows: Sequence[Row], progress: Progress = unseen) -> list[Scored]:
        """The log-probabilities of the rows' continuations; `progress` is told of tokens that are done."""

    def generate(
        self, prompts: Sequence[Prompt], progress: Progress = unseen
    ) -> Iterator[tuple[int, Generated]]:
        """Continue prompts, in any order: (index of the prompt, its continuation)."""


class EngineModel:
    """A model that this process computes."""

    def __init__(self, engine: Engine, name: str, digest: str) -> None:
        self._engine, self.name, self.digest = engine, name, digest
        self.tokenizer = engine.tokenizer
        self.context = engine.context
        self.begins_with_bos = engine.tokenizer.adds_bos

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        """See Model."""
        head = np.array([self.tokenizer.bos_id] if self.begins_with_bos else [], np.uint32)
        return [
            np.concatenate((head, ids.astype(np.uint32))) for ids in self.tokenizer.encode_arrays(texts, 2)
        ]

    def score(self, rows: Sequence[Row], progress: Progress = unseen) -> list[Scored]:
        """See Model."""
        return likelihood.score(self._engine, rows, progress)

    def generate(
        self, prompts: Sequence[Prompt], progress: Progress = unseen
    ) -> Iterator[tuple[int, Generated]]:
        """See Model. Prompts that are alike share their prefix in the cache."""
        requests = [Request(tuple(p.tokens.tolist()), p.sampling, p.max_tokens, p.stop) for p in prompts]
        texts, counts = [""] * len(prompts), [0] * len(prompts)
        for index, chunk in self._engine.answers(requests):
            texts[index] += chunk.text
            counts[index] += len(chunk.tokens)
            progress(len(chunk.tokens))
            if chunk.finish:
                yield index, Generated(texts[index], counts[index], chunk.finish)


def model_digest(path: Path, precision: str) -> str:
    """A digest of a model's files, an adapter's base included, and of the precision it computes in."""
    parts = [f"{file.name}:{sha256_file(file)}" for file in model_files(path)]
    return hashlib.sha256("\n".join([*parts, precision]).encode()).hexdigest()[:32]


def load_model(
    path: Path, name: str, weights: str | None, max_batch: int = 16, **options: object
) -> EngineModel:
    """A run or a converted model, ready to evaluate.

    Raises:
        ValueError: as `puna.generate.load.load_engine`.
    """
    from puna.generate.load import load_engine

    engine = load_engine(path, weights=weights, max_batch=max_batch, **options)  # type: ignore[arg-type]
    kind = type(engine.runner).__name__
    return EngineModel(engine, name, model_digest(path, f"{weights} {kind}"))


def rates(model: Model, generates: bool) -> tuple[float, float] | None:
    """About how many tokens per second a local model reads and generates; None for an endpoint."""
    if not isinstance(model, EngineModel):
        return None

    (ids,) = model.encode(["How fast is this model? " * 40])
    tokens = ids[: min(256, model.context - 9)]
    row = Row(tokens[:-1], tokens[-1:])
    began = time.perf_counter()
    model.score([row])
    read = len(tokens) / (time.perf_counter() - began)
    if not generates:
        return read, read
    prompt = Prompt("", tokens[:8], Sampling(temperature=0, top_p=1), 8, ())
    began = time.perf_counter()
    count = sum(generated.tokens for _, generated in model.generate([prompt] * 8))
    return read, max(1, count) / (time.perf_counter() - began)
