"""How likely continuations are after their contexts: rows of (context, continuation) -> log-probabilities.

    few-shot prefix ─┬─ question 1 ─┬─ option A      each drawn line is computed once
                     │              └─ option B
                     └─ question 2 ─┬─ option A
                                    └─ …

Contexts are sorted, so that those that begin alike are neighbours; a batch of them computes what they share,
then the ends of all contexts together, then the continuations of all together. A sequence shares the full
cache blocks of what it continues, and copies the last one, which is partly filled. No log-probability depends
on the batch that it was computed in (`Runner.prefill_is_decode`); where a runner does not promise that, each
row is computed by itself, and shares whole chunks with the row before.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from puna.generate.engine import CHUNK, Engine
from puna.generate.runners.base import Likelihoods, Runner, Span
from puna.generate.runners.cache import BLOCK

Tokens = NDArray[np.uint32]
_NONE = np.empty(0, np.int64)
_LEAST_SHARED = 32  # tokens that neighbours must share to be computed as branches of one prefix


@dataclass(frozen=True, eq=False)
class Row:
    """A continuation and the tokens before it; at least one of each."""

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


@dataclass(eq=False)
class _Group:
    """The distinct continuations of one context."""

    context: Tokens
    rows: dict[bytes, list[int]]
    """Continuation -> indices of the rows that have it."""

    def continuations(self) -> list[NDArray[np.int64]]:
        """As arrays, in order."""
        return [np.frombuffer(data, np.uint32).astype(np.int64) for data in self.rows]


def common_prefix(left: Tokens, right: Tokens) -> int:
    """The number of tokens that both begin with."""
    n = min(len(left), len(right))
    different = np.flatnonzero(left[:n] != right[:n])
    return int(different[0]) if len(different) else n


def score(
    engine: Engine, rows: Sequence[Row], progress: Callable[[int], None] = lambda tokens: None
) -> list[Scored]:
    """The log-probabilities of the rows' continuations; `progress` is told how many tokens were computed.

    Raises:
        ValueError: a row that is longer than the context or the cache.
    """
    groups = _grouped(rows)
    longest = max((len(row.context) + len(row.continuation) for row in rows), default=1)
    if longest > engine.context:
        raise ValueError(f"a text of {longest} tokens does not fit into a context of {engine.context}")
    results: list[Scored | None] = [None] * len(rows)
    with engine.cache_blocks(engine.stats()["free_blocks"] * BLOCK) as blocks:
        if len(blocks) * BLOCK < longest:
            raise ValueError(f"a text of {longest} tokens does not fit into a cache of {len(blocks) * BLOCK}")
        scorer = _Scorer(engine.runner, blocks, progress)
        start = 0
        while start < len(groups):
            end, shared = scorer.fitting(groups, start)
            found = scorer.branches(groups[start:end], shared) if end else scorer.alone(groups[start])
            for group, scores in zip(groups[start : end or start + 1], found, strict=True):
                for indices, scored in zip(group.rows.values(), scores, strict=True):
                    for index in indices:
                        results[index] = scored
            start = end or start + 1
    return [result for result in results if result is not None]


def _grouped(rows: Sequence[Row]) -> list[_Group]:
    """Rows by context, sorted so that contexts that begin alike are neighbours."""
    found: dict[bytes, _Group] = {}
    for index, row in enumerate(rows):
        assert len(row.context) and len(row.continuation), "a row needs a context and a continuation"
        group = found.setdefault(row.context.astype(">u4").tobytes(), _Group(row.context, {}))
        group.rows.setdefault(row.continuation.astype(np.uint32).tobytes(), []).append(index)
    return [found[key] for key in sorted(found)]


class _Scorer:
    """Computes groups with a runner, in blocks that are its alone."""

    def __init__(self, runner: Runner, blocks: Sequence[int], progress: Callable[[int], None]) -> None:
        self._runner, self._progress = runner, progress
        self._all = list(blocks)
        self._free: list[int] = []
        self._prefix: Tokens = np.empty(0, np.uint32)  # what the first blocks hold

    def fitting(self, groups: Sequence[_Group], start: int) -> tuple[int, int]:
        """The end of the batch that begins at `start`, and how much its contexts share; 0: none fits."""
        if not self._runner.prefill_is_decode:
            return 0, 0
        first = groups[start].context
        shared, tails, end = len(first) - 1, 0, start
        for place in range(start, len(groups)):
            context = groups[place].context
            common = min(shared, common_prefix(first, context), len(context) - 1)
            if place > start and self._parts(groups, place, common, shared, tails):
                break
            chosen = groups[start : place + 1]
            blocks = -(-common // BLOCK) + sum(self._needs(group, common) for group in chosen)
            if blocks > len(self._all):
                break
            shared, end = common, place + 1
            tails += len(context) - common + sum(len(c) - 1 for c in groups[place].continuations())
            if tails >= 16 * CHUNK:
                break
        return (end if end > start else 0), shared

    @staticmethod
    def _parts(groups: Sequence[_Group], place: int, common: int, shared: int, tails: int) -> bool:
        """Whether a batch should end before a group that shares much less with it than it shares so far."""
        if shared < 2 * _LEAST_SHARED or common >= shared // 2:
            return False
        if tails > CHUNK or place + 1 == len(groups):
            return tails > CHUNK
        return common_prefix(groups[place].context, groups[place + 1].context) > 2 * (common + _LEAST_SHARED)

    @staticmethod
    def _needs(group: _Group, shared: int) -> int:
        """Cache blocks of a group besides the full ones of the shared prefix."""
        length = len(group.context)
        own = -(-length // BLOCK) - shared // BLOCK
        longer = [len(c) - 1 for c in group.continuations() if len(c) > 1]
        return own + sum(-(-(length + extra) // BLOCK) - length // BLOCK for extra in longer)

    def branches(self, groups: Sequence[_Group], shared: int) -> list[list[Scored]]:
        """Groups that begin with the same `shared` tokens, computed together."""
        prefix = groups[0].context[:shared]
        root = self._root(prefix)
        contexts: list[Span] = []
        tables: list[list[int]] = []
        for group in groups:
            table = self._forked(root, shared, len(group.context))
            tokens = group.context[shared:].astype(np.int64)
            targets = np.array([continuation[0] for continuation in group.continuations()])
            places = np.full(len(targets), len(tokens) - 1)
            contexts.append(Span(tokens, shared, table, places, targets))
            tables.append(table)
        first = self._run(contexts)
        longer: list[Span] = []
        for group, table in zip(groups, tables, strict=True):
            length = len(group.context)
            rest = [continuation for continuation in group.continuations() if len(continuation) > 1]
            for place, continuation in enumerate(rest):
                count = len(continuation) - 1
                # The last one may continue in the context's own blocks.
                is_last = place == len(rest) - 1
                end = length + count
                branch = self._extended(table, end) if is_last else self._forked(table, length, end)
                longer.append(Span(continuation[:-1], length, branch, np.arange(count), continuation[1:]))
        return _divided(groups, first, self._run(longer))

    def alone(self, group: _Group) -> list[list[Scored]]:
        """A group whose rows are computed one by one, for any runner.

        Calls end at multiples of CHUNK or with the row, so a whole chunk has the same bits in every row that
        begins with it, and is kept for the next row. Continuations that differ in their last token alone need
        the same calls.
        """
        same: dict[bytes, list[bytes]] = {}
        for data in group.rows:
            same.setdefault(data[:-4], []).append(data[-4:])
        scores = {}
        for inputs, finals in same.items():
            tokens = np.concatenate((group.context, np.frombuffer(inputs, np.uint32)))
            targets = np.frombuffer(inputs + b"".join(finals), np.uint32).astype(np.int64)
            logprobs, is_best = self._chunks(tokens, len(group.context) - 1, targets)
            common = len(inputs) // 4
            for place, final in enumerate(finals, common):
                own = np.append(np.arange(common), place)
                logprob = float(logprobs[own[0]]) + float(logprobs[own[1:]].sum())
                scores[inputs + final] = Scored(logprob, bool(is_best[own].all()))
        return [[scores[data] for data in group.rows]]

    def _chunks(
        self, tokens: Tokens, first: int, targets: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Likelihoods: target i follows token `first` + i, or the last token where there is none."""
        places = np.minimum(np.arange(first, first + len(targets)), len(tokens) - 1)
        known = min(common_prefix(self._prefix, tokens), first) // CHUNK * CHUNK
        found = []
        for begin in range(known, len(tokens), CHUNK):
            part = tokens[begin : begin + CHUNK].astype(np.int64)
            own = (begin <= places) & (places < begin + CHUNK)
            found.append(self._run([Span(part, begin, self._all, places[own] - begin, targets[own])]))
        self._prefix = tokens
        return np.concatenate([one.logprobs for one in found]), np.concatenate([one.is_best for one in found])

    def _root(self, prefix: Tokens) -> list[int]:
        """A table whose blocks hold the prefix; what the last batch shares with it is not recomputed."""
        known = common_prefix(self._prefix, prefix)
        count = -(-len(prefix) // BLOCK)
        root, self._free = self._all[:count], self._all[count:]
        if known < len(prefix):
            self._run([Span(prefix[known:].astype(np.int64), known, root, _NONE, _NONE)])
        self._prefix = prefix
        return root

    def _forked(self, table: list[int], length: int, end: int) -> list[int]:
        """A table for a sequence that continues another after `length` tokens, up to `end`."""
        whole, partial = divmod(length, BLOCK)
        fresh = [self._free.pop() for _ in range(-(-end // BLOCK) - whole)]
        if partial and fresh:
            self._runner.copy_block(table[whole], fresh[0])
        return [*table[:whole], *fresh]

    def _extended(self, table: list[int], end: int) -> list[int]:
        """A table of the same sequence up to `end`."""
        return [*table, *(self._free.pop() for _ in range(-(-end // BLOCK) - len(table)))]

    def _run(self, spans: Sequence[Span]) -> Likelihoods:
        if not spans:
            return Likelihoods(np.empty(0), np.empty(0, np.bool_))
        found = self._runner.score(spans)
        self._progress(sum(len(span.tokens) for span in spans))
        return found


def _divided(groups: Sequence[_Group], first: Likelihoods, rest: Likelihoods) -> list[list[Scored]]:
    """The sums of each continuation, from its first token's likelihood and those of its others."""
    counts = np.array([len(data) // 4 - 1 for group in groups for data in group.rows])
    ends = np.cumsum(counts)
    result, place = [], 0
    for group in groups:
        scores = []
        for _ in group.rows:
            own = slice(ends[place] - counts[place], ends[place])
            logprob = float(first.logprobs[place]) + float(rest.logprobs[own].sum())
            scores.append(Scored(logprob, bool(first.is_best[place] and rest.is_best[own].all())))
            place += 1
        result.append(scores)
    return result
