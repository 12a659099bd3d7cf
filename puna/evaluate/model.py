"""What evaluation needs of a model: three methods. Tasks know nothing else of it.

    encode    texts -> token ids, BOS first where the vocabulary wants one
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
from numpy.typing import NDArray

from puna.config import Sampling
from puna.files import sha256_file
from puna.generate.engine import CHUNK, Engine
from puna.generate.request import Request

Tokens = NDArray[np.uint32]


@dataclass(frozen=True, eq=False)
class Row:
    """A continuation and the tokens before it, at least one."""

    context: Tokens
    continuation: Tokens

    @property
    def tokens(self) -> Tokens:
        """Both, end to end."""
        return np.concatenate((self.context, self.continuation))


@dataclass(frozen=True)
class Scored:
    """What the model says about a continuation."""

    logprob: float
    """Sum of ln P(token | all before it)."""
    greedy: bool
    """Whether each token is the likeliest one at its place."""


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
        """The ids of whole texts, each with BOS where the vocabulary wants one."""

    def score(self, rows: Sequence[Row], progress: Callable[[int], None]) -> list[Scored]:
        """The log-probabilities of the rows' continuations; `progress` is told of tokens that are done."""

    def generate(
        self, prompts: Sequence[Prompt], progress: Callable[[int], None]
    ) -> Iterator[tuple[int, Generated]]:
        """Continue prompts, in any order: (index of the prompt, its continuation)."""


class EngineModel:
    """A model that this process computes."""

    def __init__(self, engine: Engine, name: str, digest: str) -> None:
        self._engine, self.name, self.digest = engine, name, digest
        self.context = engine.context
        self.begins_with_bos = engine.tokenizer.adds_bos

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        """See Model."""
        tokenizer = self._engine.tokenizer
        head = np.array([tokenizer.bos_id] if self.begins_with_bos else [], np.uint32)
        return [np.concatenate((head, ids.astype(np.uint32))) for ids in tokenizer.encode_arrays(texts, 2)]

    def score(self, rows: Sequence[Row], progress: Callable[[int], None]) -> list[Scored]:
        """See Model.

        Rows are computed in the order of their tokens, so that rows that begin alike follow each other, and
        each begins where it parts from the one before. A token's arithmetic does not depend on that
        (`Runner.prefill_is_decode`); where it would, every row is computed from its beginning.
        """
        results: list[Scored | None] = [None] * len(rows)
        cached = np.empty(0, np.uint32)
        by_tokens = sorted(range(len(rows)), key=lambda index: rows[index].tokens.astype(">u4").tobytes())
        longest = max((len(row.tokens) for row in rows), default=1)
        with self._engine.cache_blocks(longest) as table:
            for index in by_tokens:
                tokens = rows[index].tokens[:-1]
                results[index] = self._scored(rows[index], tokens, common_prefix(cached, tokens), table)
                cached = tokens
                progress(len(rows[index].continuation))
        return [result for result in results if result is not None]

    def _scored(self, row: Row, tokens: Tokens, cached: int, table: list[int]) -> Scored:
        """Score one row; the first `cached` tokens are in the cache already."""
        runner = self._engine.runner
        first = len(row.context) - 1  # its logits are those of the continuation's first token
        begin = min(cached, first) if runner.prefill_is_decode else 0
        while begin < first:
            end = min(first, begin - begin % CHUNK + CHUNK)
            runner.prefill(tokens[begin:end].tolist(), begin, table)
            begin = end
        logits = runner.prefill(tokens[first:].tolist(), first, table, True)
        return gathered(logits.numpy(), row.continuation)

    def generate(
        self, prompts: Sequence[Prompt], progress: Callable[[int], None]
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


def common_prefix(left: Tokens, right: Tokens) -> int:
    """The number of tokens that both begin with."""
    n = min(len(left), len(right))
    different = np.flatnonzero(left[:n] != right[:n])
    return int(different[0]) if len(different) else n


def gathered(logits_TV: NDArray[np.float32], continuation: Tokens) -> Scored:
    """The log-probability of tokens under the logits at their places.

    NumPy reduces each row by itself, in the same order whatever the number of rows, so that a row's sum is
    the same bits in any batch; PyTorch may divide a single row among threads.
    """
    largest = logits_TV.max(axis=1)
    sums = np.exp(logits_TV - largest[:, None]).sum(axis=1, dtype=np.float32)
    own = np.take_along_axis(logits_TV, continuation[:, None].astype(np.int64), axis=1)[:, 0]
    logprobs = own.astype(np.float64) - largest - np.log(sums.astype(np.float64))
    return Scored(float(logprobs.sum()), bool((own == largest).all()))


def model_digest(directory: Path, precision: str) -> str:
    """A digest of a model's files (weights, tokenizer, configuration) and of the precision it computes in."""
    checkpoints = sorted(directory.glob("checkpoints/*/weights.safetensors"))[-1:]
    files = [path for path in directory.iterdir() if path.is_file() and _is_model(path)] + checkpoints
    parts = [f"{path.name}:{sha256_file(path)}" for path in sorted(files)]
    return hashlib.sha256("\n".join([*parts, precision]).encode()).hexdigest()[:32]


def _is_model(path: Path) -> bool:
    return path.suffix in (".safetensors", ".model", ".gguf") or path.name in ("tokenizer.json", "config.json")


def load_model(path: Path, name: str, weights: str | None, max_batch: int = 16, **options: object) -> EngineModel:
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

    def nothing(_: int) -> None:
        return

    (ids,) = model.encode(["How fast is this model? " * 40])
    tokens = ids[: min(256, model.context - 9)]
    row = Row(tokens[:-1], tokens[-1:])
    began = time.perf_counter()
    model.score([row], nothing)
    read = len(tokens) / (time.perf_counter() - began)
    if not generates:
        return read, read
    prompt = Prompt("", tokens[:8], Sampling(temperature=0, top_p=1), 8, ())
    began = time.perf_counter()
    count = sum(generated.tokens for _, generated in model.generate([prompt] * 8, nothing))
    return read, max(1, count) / (time.perf_counter() - began)
