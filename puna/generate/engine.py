"""Continuous batching: a model answers many requests at once. Requests -> chunks of text.

    submit ─> waiting ──admitted once its KV-cache blocks are free──> running ──> finished, blocks released

    step:   1. admit waiting requests, in order
            2. prefill one chunk of an unfinished prompt, of each in turn
            3. decode one token of every other running request
            ─> the new text and tokens of each

A request's answer does not depend on the others: it has its own random generator (sampling.py); a prompt is
computed in chunks that end at multiples of CHUNK positions, or anywhere if that changes no bit
(`Runner.prefill_is_decode`); cached blocks are shared only if they are bitwise identical to what the request
would compute itself (`_prompt_hashes`); and in a batch a runner gives each row the bits that it has alone.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import Tensor

from puna.generate.active_request import ActiveRequest
from puna.generate.json_schema import Grammars
from puna.generate.pace import Pace
from puna.generate.prefix_cache import BlockPool, block_hashes
from puna.generate.request import Chunk, Limits, Request, Token
from puna.generate.runners.base import Runner
from puna.generate.runners.cache import BLOCK
from puna.generate.sampling import adjusted, draw, logprobs, masked
from puna.tokens.chat_template import ChatTemplate
from puna.tokens.tokenizer import Tokenizer

CHUNK = 256  # maximum number of prompt tokens that are computed in a step


class Engine:
    """A runner with its tokenizer, shared by many requests. Not thread-safe: use it from one thread."""

    def __init__(
        self,
        runner: Runner,
        tokenizer: Tokenizer,
        max_batch: int = 16,
        template: ChatTemplate | None = None,
    ) -> None:
        self.runner, self.tokenizer, self.template = runner, tokenizer, template
        self.max_batch, self.context = max_batch, runner.config.context
        # An embedding may have more rows than the vocabulary has tokens: those are never sampled.
        self._vocab_size = min(tokenizer.vocab_size, runner.config.vocab_size)
        self.stop_ids = tokenizer.settings.end_ids | {tokenizer.eos_id}
        if template:
            self.stop_ids |= template.end_ids
        self._limits = Limits(
            self.context,
            runner.n_blocks * BLOCK,
            runner.config.vocab_size,
            self._vocab_size,
            lambda: runner.prefill_is_decode,
        )
        self._pool = BlockPool(runner.n_blocks)
        self._waiting: deque[ActiveRequest] = deque()
        self._running: dict[int, ActiveRequest] = {}  # in the order of admission
        self._next_id = 0
        counted = ("prompt_tokens", "prefix_tokens", "generated_tokens", "prefills", "decodes")
        self._pace = Pace()
        self._counts = dict.fromkeys((*counted, "drafted_tokens", "accepted_tokens"), 0)

    # ---- requests in

    def check(self, request: Request) -> None:
        """Raises ValueError naming the invalid field, if a request can never run. Safe from any thread."""
        request.check(self._limits)

    @cached_property
    def grammars(self) -> Grammars:
        """Compiles JSON schemas for requests; preparing it takes up to a second.

        Raises:
            MissingExtra: when llguidance is not installed.
        """
        pieces = [self.tokenizer.piece(id) for id in range(self._vocab_size)]
        controls = [id for id in self.tokenizer.controls.values() if id < self._vocab_size]
        return Grammars(pieces, controls, sorted(id for id in self.stop_ids if id < self._vocab_size))

    def submit(self, request: Request) -> int:
        """Queue a request; returns the id of its chunks.

        Raises:
            ValueError: as `check`.
        """
        self.check(request)
        self._next_id += 1
        self._waiting.append(ActiveRequest(self._next_id, request, self.context, self.tokenizer))
        return self._next_id

    def cancel(self, id: int) -> None:
        """Cancel a waiting or running request: no chunk follows. Does nothing if it has ended."""
        if sequence := self._running.pop(id, None):
            self._pool.release(sequence.table)
        else:
            self._waiting = deque(sequence for sequence in self._waiting if sequence.id != id)

    @property
    def idle(self) -> bool:
        """Whether no request is waiting or running."""
        return not self._waiting and not self._running

    def stats(self) -> dict[str, int]:
        """Requests and KV-cache blocks now, and totals since the start.

        `prefix_tokens` of the `prompt_tokens` were in the prefix cache. `cached_blocks` of the `free_blocks`
        hold prefixes that may be reused.
        """
        return {
            "running": len(self._running),
            "waiting": len(self._waiting),
            "blocks": self._pool.n_blocks,
            "used_blocks": self._pool.used,
            "free_blocks": self._pool.available,
            "cached_blocks": self._pool.unused,
            **self._counts,
        }

    @contextmanager
    def cache_blocks(self, tokens: int) -> Iterator[list[int]]:
        """A block table for `tokens` positions, for a caller that uses the runner itself while none answers.

        Raises:
            ValueError: when the cache is smaller.
        """
        assert self.idle, "requests are running"
        table = self._pool.acquire([], -(-tokens // BLOCK))
        if table is None:
            raise ValueError(f"the cache holds {self._pool.n_blocks * BLOCK} tokens; {tokens} are needed")
        try:
            yield table
        finally:
            self._pool.release(table)

    # ---- one step

    def step(self) -> list[tuple[int, Chunk]]:
        """Admit requests, prefill one chunk, decode one token of each running answer; the new chunks."""
        self._admit()
        decoding = [sequence for sequence in self._running.values() if sequence.is_decoding]
        self._pace.begin(CHUNK, self.runner.prefill_is_decode, is_shared=bool(decoding))
        chunks = [*self._prefill(), *self._decode(decoding)]
        for sequence, _ in chunks:
            if sequence.finish:
                del self._running[sequence.id]
                self._pool.release(sequence.table)
        return [(sequence.id, chunk) for sequence, chunk in chunks]

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self.max_batch:
            sequence = self._waiting[0]
            hashes = self._prompt_hashes(sequence)
            shared = self._pool.match(hashes)
            shared = shared[: len(shared) // self._share_granularity * self._share_granularity]
            table = self._pool.acquire(shared, sequence.blocks - len(shared))
            if table is None:
                return  # first come, first served, also if a later request needs fewer blocks
            self._waiting.popleft()
            sequence.table, sequence.n_computed = table, len(shared) * BLOCK
            sequence.hashes = hashes[: len(shared)]
            self._running[sequence.id] = sequence
            self._counts["prompt_tokens"] += len(sequence.request.prompt)
            self._counts["prefix_tokens"] += sequence.n_computed

    @property
    def _share_granularity(self) -> int:
        """Number of blocks that are shared together.

        Any block, if a token's bits do not depend on the call that computes it. Else whole chunks of a
        prompt: only those are computed in a call that is the same for every request.
        """
        return 1 if self.runner.prefill_is_decode else CHUNK // BLOCK

    def _prompt_hashes(self, sequence: ActiveRequest) -> list[bytes]:
        """The hashes of the prompt's blocks that may be taken from the cache.

        The last token is always computed, for its logits; so are all, if the prompt's logits are requested.
        """
        if sequence.prompt_hashes is None:  # computed once: it may wait for many steps
            prompt = sequence.request.prompt
            count = 0 if sequence.request.prompt_logprobs else (len(prompt) - 1) // BLOCK
            sequence.prompt_hashes = block_hashes(prompt, count)
        return sequence.prompt_hashes

    def _register(self, sequence: ActiveRequest) -> None:
        """Register the blocks that have become full in the prefix cache."""
        end = sequence.n_computed
        if not self.runner.prefill_is_decode:
            end = min(end, len(sequence.request.prompt)) // CHUNK * CHUNK
        first = len(sequence.hashes)
        if end // BLOCK > first:
            parent = sequence.hashes[-1:] or [b""]
            new = block_hashes(sequence.tokens[first * BLOCK : end], end // BLOCK - first, parent[0])
            for block, block_hash in zip(sequence.table[first:], new, strict=False):
                self._pool.register(block, block_hash)
            sequence.hashes += new

    # ---- prompts

    def _prefill(self) -> Iterator[tuple[ActiveRequest, Chunk]]:
        sequence = next((s for s in self._running.values() if not s.is_decoding), None)
        if sequence is None:
            return
        request, start = sequence.request, sequence.n_computed
        end = min(len(request.prompt), start + self._pace.room)
        all_logits = request.prompt_logprobs
        with self._pace.chunk(end - start):
            logits = self.runner.prefill(request.prompt[start:end], start, sequence.table, all_logits)
            logits = logits[..., : self._vocab_size]
            sequence.n_computed = end
            self._register(sequence)
            if all_logits:
                sequence.prompt_tokens += self._prompt_tokens(request, start, end, logits)
                logits = logits[-1]
        self._counts["prefills"] += 1
        if not sequence.is_decoding:
            self._running[sequence.id] = self._running.pop(sequence.id)  # the others' prompts are next
        elif not request.max_tokens:
            sequence.finish = "length"
            yield sequence, Chunk("", (), tuple(sequence.prompt_tokens), "length")
        else:
            yield sequence, self._advance(sequence, [logits])

    def _prompt_tokens(self, request: Request, start: int, end: int, logits_TV: Tensor) -> list[Token]:
        """The prompt's tokens with their log-probabilities: each row predicts the token after it."""
        k = request.logprobs or 0
        tokens = [self._token(request.prompt[0], None, k)] if start == 0 else []
        following = request.prompt[start + 1 : end + 1]
        rows = zip(following, logits_TV, strict=False)
        return tokens + [self._token(token, row_V, k) for token, row_V in rows]

    # ---- answers

    def _decode(self, sequences: Sequence[ActiveRequest]) -> Iterator[tuple[ActiveRequest, Chunk]]:
        batch = []
        for sequence in sequences:
            draft = self._draft(sequence)
            if draft:
                yield sequence, self._verify(sequence, draft)
            else:
                batch.append(sequence)
        if not batch:
            return
        with self._pace.decoding():
            logits_NV = self.runner.decode(
                [s.tokens[-1] for s in batch], [s.n_computed for s in batch], [s.table for s in batch]
            )[:, : self._vocab_size]
            self._counts["decodes"] += 1
            best = logits_NV.argmax(-1).tolist() if any(_is_greedy(s) for s in batch) else [None] * len(batch)
            for sequence, logits_V, id in zip(batch, logits_NV, best, strict=True):
                sequence.n_computed += 1
                self._register(sequence)
                yield sequence, self._advance(sequence, [logits_V], id if _is_greedy(sequence) else None)

    def _draft(self, sequence: ActiveRequest) -> list[int]:
        # The last token is never computed, so no draft token can replace it.
        most = min(sequence.request.lookup, self._pace.room, sequence.end - len(sequence.tokens) - 1)
        draft = sequence.drafts.draft(most) if sequence.drafts and most > 0 else []
        self._pace.room -= len(draft)
        return draft

    def _verify(self, sequence: ActiveRequest, draft: list[int]) -> Chunk:
        """Compute draft tokens after the last token; accept them as far as the model agrees."""
        run = [sequence.tokens[-1], *draft]
        rows = self.runner.prefill(run, sequence.n_computed, sequence.table, all_logits=True)[
            :, : self._vocab_size
        ]
        before = len(sequence.tokens)
        chunk = self._advance(sequence, rows, draft=draft)
        accepted = len(sequence.tokens) - before
        sequence.n_computed += max(accepted, 1)
        self._register(sequence)
        self._counts["prefills"] += 1
        self._counts["drafted_tokens"] += len(draft)
        self._counts["accepted_tokens"] += max(accepted - 1, 0)
        return chunk

    def _advance(
        self,
        sequence: ActiveRequest,
        rows: Sequence[Tensor] | Tensor,
        best: int | None = None,
        draft: Sequence[int] = (),
    ) -> Chunk:
        """Sample a token from each row while the tokens equal the draft; `best`: the token, if known."""
        request, text, tokens, failure, end = sequence.request, "", [], None, None
        for index, logits_V in enumerate(rows):
            try:
                id = self._draw(sequence, logits_V) if best is None else best
            except ValueError as error:
                sequence.finish, failure = "stop", str(error)
                break
            if id in self.stop_ids and not request.ignore_eos:
                sequence.finish = "stop"
                end = self._token(id, logits_V, request.logprobs) if request.logprobs is not None else None
                break
            sequence.tokens.append(id)
            if sequence.drafts:
                sequence.drafts.push(id)
            if sequence.constraint:
                sequence.constraint.push(id)
            if sequence.distinct is not None:
                sequence.distinct.add(id)
            if sequence.counts is not None:
                sequence.counts[id] += 1
            tokens.append(self._token(id, logits_V, request.logprobs))
            text += sequence.text.push(id)
            if sequence.text.stopped or (sequence.constraint and sequence.constraint.is_complete):
                sequence.finish = "stop"
            elif len(sequence.tokens) == sequence.end:
                sequence.finish = "length"
            if sequence.finish or index >= len(draft) or id != draft[index]:
                break
        if sequence.finish:
            text += sequence.text.finish()
            if sequence.text.stopped:  # the last, incomplete character completed a stop string
                sequence.finish = "stop"
        self._counts["generated_tokens"] += len(tokens)
        prompt, sequence.prompt_tokens = tuple(sequence.prompt_tokens), []
        return Chunk(text, tuple(tokens), prompt, sequence.finish, failure, end)

    def _draw(self, sequence: ActiveRequest, logits_V: Tensor) -> int:
        distinct = None
        if sequence.distinct is not None:
            distinct = torch.tensor(list(sequence.distinct), device=logits_V.device)
        if sequence.counts is not None:
            request = sequence.request
            penalties = request.presence_penalty, request.frequency_penalty
            logits_V = adjusted(logits_V, request.logit_bias, sequence.counts, *penalties)
        if sequence.constraint:
            logits_V = masked(logits_V, sequence.constraint.allowed())
        return draw(logits_V, sequence.request.sampling, sequence.generator, distinct)

    def _token(self, id: int, logits_V: Tensor | None, k: int | None) -> Token:
        """A token with its log-probability and the k most likely alternatives; k None: without them."""
        piece = self.tokenizer.piece(id)
        if k is None or logits_V is None:
            return Token(id, piece, None, ())
        return Token(id, piece, *logprobs(logits_V, id, k))

    # ---- many requests at once

    def answers(
        self, requests: Sequence[Request], is_stopped: Callable[[], bool] = lambda: False
    ) -> Generator[tuple[int, Chunk]]:
        """Answer requests concurrently; yields the index of a request and its next chunk.

        Closing the generator early cancels the rest. `is_stopped` is called before each step, also while a
        prompt is computed and there are no chunks.

        Raises:
            ValueError: as `check`, before anything runs; when an answer could not be continued.
        """
        assert self.idle, "the engine is in use: call submit and step, or finish the other generator"
        for request in requests:
            self.check(request)
        unfinished = {self.submit(request): index for index, request in enumerate(requests)}
        try:
            while unfinished and not is_stopped():
                for id, chunk in self.step():
                    if chunk.error:
                        raise ValueError(chunk.error)
                    yield unfinished[id], chunk
                    if chunk.finish:
                        del unfinished[id]
        finally:
            for id in unfinished:
                self.cancel(id)

    def encode(self, text: str) -> list[int]:
        """The token ids of a prompt, with BOS if the vocabulary asks for it."""
        return self.tokenizer.encode(text, bos=self.tokenizer.adds_bos)


def _is_greedy(sequence: ActiveRequest) -> bool:
    """Whether the token is the argmax of the logits, so that one call finds it for all such rows."""
    is_greedy = sequence.request.sampling.temperature == 0
    return is_greedy and sequence.distinct is None and sequence.counts is None and not sequence.constraint
