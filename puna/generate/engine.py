"""A model answers many requests at once: requests -> chunks of text.

    submit ─> waiting ──admitted when its cache blocks are free──> running ──> finished, blocks released

    step:   1. admit, in order, who fits
            2. prefill one chunk of the oldest prompt that is not done
            3. decode one token of every answer that is under way
            ─> what each of them gained

What a request gets does not depend on the others. The draws are its own (sampling.py); a prompt is computed
in chunks that end at multiples of CHUNK positions; blocks that another request filled are used only where
they hold the very bits that this one would have computed (`_shareable`); and decoding is batched as far as
the runner promises that rows do not touch each other (`Runner.batch_invariant`).
"""

from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from puna.config import Sampling
from puna.generate.lookup import Drafts
from puna.generate.prefix_cache import BlockPool, names
from puna.generate.request import Chunk, Finish, Request, Token
from puna.generate.runners.base import Runner
from puna.generate.runners.cache import BLOCK
from puna.generate.sampling import adjusted, draw, logprobs
from puna.generate.text import AnswerText
from puna.tokens.chat_template import ChatTemplate
from puna.tokens.tokenizer import Tokenizer

CHUNK = 256  # positions of a prompt that are computed in a step, at most


class _Sequence:
    """A request in the engine."""

    def __init__(self, id: int, request: Request, context: int, tokenizer: Tokenizer) -> None:
        self.id, self.request = id, request
        self.tokens = list(request.prompt)
        self.end = min(context, len(request.prompt) + request.max_tokens)  # tokens in all
        self.cached = 0  # positions whose keys and values are there
        self.table: list[int] = []
        self.names: list[bytes] = []  # of its blocks that can be found, as far as computed
        self.chain: list[bytes] | None = None  # of its prompt's blocks, once worked out
        self.prompt_tokens: list[Token] = []
        self.finish: Finish | None = None
        self.text = AnswerText(tokenizer.stream_decoder(request.prompt), request.stop)
        self.generator = torch.Generator().manual_seed(request.sampling.seed)
        self.drafts = Drafts(request.prompt) if request.lookup else None
        self.seen = set(request.prompt) if request.sampling.repetition_penalty != 1 else None
        is_adjusted = request.presence_penalty or request.frequency_penalty or request.logit_bias
        self.counts: Counter[int] | None = Counter() if is_adjusted else None  # of the answer's tokens

    @property
    def blocks(self) -> int:
        """Cache blocks it needs: the last token drawn is not looked behind."""
        return -(-_places(self.request, self.end) // BLOCK)

    @property
    def is_decoding(self) -> bool:
        return self.cached >= len(self.request.prompt)


class Engine:
    """A runner with its tokenizer, shared by many requests. Not thread-safe: one thread owns it."""

    def __init__(
        self,
        runner: Runner,
        tokenizer: Tokenizer,
        max_batch: int = 16,
        template: ChatTemplate | None = None,
    ) -> None:
        self.runner, self.tokenizer, self.template = runner, tokenizer, template
        self.max_batch, self.context = max_batch, runner.config.context
        # An embedding may have more rows than the vocabulary has pieces: they are never drawn.
        self._vocab_size = min(tokenizer.vocab_size, runner.config.vocab_size)
        self.stop_ids = tokenizer.settings.end_ids | {tokenizer.eos_id}
        if template:
            self.stop_ids |= template.end_ids
        self._pool = BlockPool(runner.n_blocks)
        self._waiting: deque[_Sequence] = deque()
        self._running: dict[int, _Sequence] = {}  # in the order of admission
        self._next_id = 0
        counted = ("prompt_tokens", "prefix_tokens", "generated_tokens", "prefills", "decodes")
        self._counts = dict.fromkeys((*counted, "drafted_tokens", "accepted_tokens"), 0)

    # ---- requests in

    def check(self, request: Request) -> None:
        """Raise ValueError, naming the field, when a request can never run. Safe from any thread."""
        request.sampling.validate()
        size, blocks = len(request.prompt), self.runner.n_blocks
        if request.max_tokens < (0 if request.prompt_logprobs else 1):
            raise ValueError(f"max-tokens is {request.max_tokens}; it must be positive")
        if not request.prompt:
            raise ValueError("the prompt is empty; give it one token at least")
        if size + bool(request.max_tokens) > self.context:
            raise ValueError(
                f"the prompt is {size} tokens long, and model.context {self.context} must hold "
                "the answer too; shorten the prompt"
            )
        if not 0 <= min(request.prompt) <= max(request.prompt) < self.runner.config.vocab_size:
            raise ValueError(f"the prompt holds an id outside 0..{self.runner.config.vocab_size - 1}")
        end = min(self.context, size + request.max_tokens)
        if (places := _places(request, end)) > blocks * BLOCK:
            raise ValueError(
                f"the prompt of {size} tokens and max-tokens {request.max_tokens} need {places} places in a "
                f"cache of {blocks * BLOCK}; ask for fewer, or give the cache more tokens"
            )
        if not all(request.stop):
            raise ValueError("stop holds an empty string; leave it out")
        if request.logprobs is not None and not 0 <= request.logprobs <= self._vocab_size:
            raise ValueError(f"logprobs is {request.logprobs}; it must be from 0 to {self._vocab_size}")
        for name in ("presence_penalty", "frequency_penalty"):
            if not -2 <= getattr(request, name) <= 2:
                raise ValueError(f"{name} is {getattr(request, name)}; it must be from -2 to 2")
        for id, bias in request.logit_bias:
            if not 0 <= id < self._vocab_size:
                raise ValueError(f"logit_bias names token {id}; ids are below {self._vocab_size}")
            if not -100 <= bias <= 100:
                raise ValueError(f"logit_bias of token {id} is {bias}; it must be from -100 to 100")
        if request.lookup < 0:
            raise ValueError(f"lookup is {request.lookup}; it must be 0 (off) or above")
        if request.lookup and request.sampling.temperature > 0:
            raise ValueError("lookup is exact only for greedy decoding; set temperature 0, or leave it out")
        if request.lookup and not self.runner.prefill_is_decode:
            raise ValueError(
                "lookup would not be exact: with these weights on this machine several tokens in a call "
                "round otherwise than one; leave it out, or choose other weights"
            )

    def submit(self, request: Request) -> int:
        """Queue a request; gives the id that its chunks will carry.

        Raises:
            ValueError: as `check`.
        """
        self.check(request)
        self._next_id += 1
        self._waiting.append(_Sequence(self._next_id, request, self.context, self.tokenizer))
        return self._next_id

    def cancel(self, id: int) -> None:
        """Drop a request, waiting or running; nothing happens when it has ended. No chunk follows."""
        if sequence := self._running.pop(id, None):
            self._pool.release(sequence.table)
        else:
            self._waiting = deque(sequence for sequence in self._waiting if sequence.id != id)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._waiting and not self._running

    @property
    def running(self) -> int:
        """Requests that are being answered."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Requests that wait for a place or for memory."""
        return len(self._waiting)

    def stats(self) -> dict[str, int]:
        """Requests and cache blocks now, and what was done since the start.

        `prefix_tokens` of the `prompt_tokens` were found in the cache. `kept_blocks` of the `free_blocks`
        hold texts that may come again.
        """
        return {
            "running": self.running,
            "waiting": self.waiting,
            "blocks": self._pool.n_blocks,
            "used_blocks": self._pool.used,
            "free_blocks": self._pool.available,
            "kept_blocks": self._pool.kept,
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

    # ---- one turn

    def step(self) -> list[tuple[int, Chunk]]:
        """Admit, prefill at most one chunk, decode one token of each answer; what each of them gained."""
        self._admit()
        decoding = [sequence for sequence in self._running.values() if sequence.is_decoding]
        chunks = [*self._prefill(), *self._decode(decoding)]
        for sequence, _ in chunks:
            if sequence.finish:
                del self._running[sequence.id]
                self._pool.release(sequence.table)
        return [(sequence.id, chunk) for sequence, chunk in chunks]

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self.max_batch:
            sequence = self._waiting[0]
            chain, shared = self._shareable(sequence), []
            if chain:
                shared = self._pool.match(chain)
                shared = shared[: len(shared) // self._grain * self._grain]
            table = self._pool.acquire(shared, sequence.blocks - len(shared))
            if table is None:
                return  # first come, first served: nobody overtakes
            self._waiting.popleft()
            sequence.table, sequence.cached = table, len(shared) * BLOCK
            sequence.names = chain[: len(shared)]
            self._running[sequence.id] = sequence
            self._counts["prompt_tokens"] += len(sequence.request.prompt)
            self._counts["prefix_tokens"] += sequence.cached

    @property
    def _grain(self) -> int:
        """Blocks that are shared together.

        Where a token's bits do not depend on the call that computes it, any block. Elsewhere whole chunks of
        a prompt, for only those were computed in a call that is the same for everybody.
        """
        return 1 if self.runner.prefill_is_decode else CHUNK // BLOCK

    def _shareable(self, sequence: _Sequence) -> list[bytes]:
        """The names of the prompt's blocks that may be taken from the cache.

        The last token is always computed, for its logits; all are, where the prompt's are wanted.
        """
        if sequence.chain is None:  # it may wait for many steps
            prompt = sequence.request.prompt
            count = 0 if sequence.request.prompt_logprobs else (len(prompt) - 1) // BLOCK
            sequence.chain = names(prompt, count)
        return sequence.chain

    def _publish(self, sequence: _Sequence) -> None:
        """Make the blocks findable that are full now."""
        end = sequence.cached
        if not self.runner.prefill_is_decode:
            end = min(end, len(sequence.request.prompt)) // CHUNK * CHUNK
        known = len(sequence.names)
        if end // BLOCK > known:
            before = sequence.names[-1:] or [b""]
            fresh = names(sequence.tokens[known * BLOCK : end], end // BLOCK - known, before[0])
            for block, name in zip(sequence.table[known:], fresh, strict=False):
                self._pool.publish(block, name)
            sequence.names += fresh

    # ---- prompts

    def _prefill(self) -> Iterator[tuple[_Sequence, Chunk]]:
        sequence = next((s for s in self._running.values() if not s.is_decoding), None)
        if sequence is None:
            return
        request, start = sequence.request, sequence.cached
        end = min(len(request.prompt), start - start % CHUNK + CHUNK)
        every = request.prompt_logprobs
        logits = self.runner.prefill(request.prompt[start:end], start, sequence.table, every)
        logits = logits[..., : self._vocab_size]
        self._counts["prefills"] += 1
        sequence.cached = end
        self._publish(sequence)
        if every:
            sequence.prompt_tokens += self._prompt_tokens(request, start, end, logits)
            logits = logits[-1]
        if sequence.is_decoding and not request.max_tokens:
            sequence.finish = "length"
            yield sequence, Chunk("", (), tuple(sequence.prompt_tokens), "length")
        elif sequence.is_decoding:
            yield sequence, self._advance(sequence, [logits])

    def _prompt_tokens(self, request: Request, start: int, end: int, logits_TV: Tensor) -> list[Token]:
        """The prompt's tokens that these logits speak of: each row of the one after it."""
        k = request.logprobs or 0
        tokens = [self._token(request.prompt[0], None, k)] if start == 0 else []
        following = request.prompt[start + 1 : end + 1]
        rows = zip(following, logits_TV, strict=False)
        return tokens + [self._token(token, row_V, k) for token, row_V in rows]

    # ---- answers

    def _decode(self, sequences: Sequence[_Sequence]) -> Iterator[tuple[_Sequence, Chunk]]:
        together = []
        for sequence in sequences:
            guess = self._draft(sequence)
            if guess:
                yield sequence, self._verify(sequence, guess)
            else:
                together.append(sequence)
        if not together:
            return
        groups = [together] if self.runner.batch_invariant else [[sequence] for sequence in together]
        for group in groups:
            logits_NV = self.runner.decode(
                [s.tokens[-1] for s in group], [s.cached for s in group], [s.table for s in group]
            )[:, : self._vocab_size]
            self._counts["decodes"] += 1
            best = logits_NV.argmax(-1).tolist() if any(_is_plain(s) for s in group) else [None] * len(group)
            for sequence, logits_V, id in zip(group, logits_NV, best, strict=True):
                sequence.cached += 1
                self._publish(sequence)
                yield sequence, self._advance(sequence, [logits_V], id if _is_plain(sequence) else None)

    def _draft(self, sequence: _Sequence) -> list[int]:
        # The last token of all is not computed, so there is no room for a guess in its place.
        room = sequence.end - len(sequence.tokens) - 1
        return sequence.drafts.draft(min(sequence.request.lookup, room)) if sequence.drafts else []

    def _verify(self, sequence: _Sequence, guess: list[int]) -> Chunk:
        """Compute a guess after the last token; take what the model says as long as it is the guess."""
        run = [sequence.tokens[-1], *guess]
        rows = self.runner.prefill(run, sequence.cached, sequence.table, all_logits=True)[
            :, : self._vocab_size
        ]
        before = len(sequence.tokens)
        chunk = self._advance(sequence, rows, guess=guess)
        taken = len(sequence.tokens) - before
        sequence.cached += max(taken, 1)
        self._publish(sequence)
        self._counts["prefills"] += 1
        self._counts["drafted_tokens"] += len(guess)
        self._counts["accepted_tokens"] += max(taken - 1, 0)
        return chunk

    def _advance(
        self,
        sequence: _Sequence,
        rows: Sequence[Tensor] | Tensor,
        best: int | None = None,
        guess: Sequence[int] = (),
    ) -> Chunk:
        """Draw a token from each row, as long as the one before was the guess; `best`, where it is known."""
        request, text, tokens = sequence.request, "", []
        for place, logits_V in enumerate(rows):
            id = self._draw(sequence, logits_V) if best is None else best
            if id in self.stop_ids and not request.ignore_eos:
                sequence.finish = "stop"
                break
            sequence.tokens.append(id)
            if sequence.drafts:
                sequence.drafts.push(id)
            if sequence.seen is not None:
                sequence.seen.add(id)
            if sequence.counts is not None:
                sequence.counts[id] += 1
            tokens.append(self._token(id, logits_V, request.logprobs))
            text += sequence.text.push(id)
            if sequence.text.stopped:
                sequence.finish = "stop"
            elif len(sequence.tokens) == sequence.end:
                sequence.finish = "length"
            if sequence.finish or place >= len(guess) or id != guess[place]:
                break
        if sequence.finish:
            text += sequence.text.finish()
            if sequence.text.stopped:  # by what the last character turned out to be
                sequence.finish = "stop"
        self._counts["generated_tokens"] += len(tokens)
        prompt, sequence.prompt_tokens = tuple(sequence.prompt_tokens), []
        return Chunk(text, tuple(tokens), prompt, sequence.finish)

    def _draw(self, sequence: _Sequence, logits_V: Tensor) -> int:
        seen = None if sequence.seen is None else torch.tensor(list(sequence.seen), device=logits_V.device)
        if sequence.counts is not None:
            request = sequence.request
            penalties = request.presence_penalty, request.frequency_penalty
            logits_V = adjusted(logits_V, request.logit_bias, sequence.counts, *penalties)
        return draw(logits_V, sequence.request.sampling, sequence.generator, seen)

    def _token(self, id: int, logits_V: Tensor | None, k: int | None) -> Token:
        """A token with what the logits that it was drawn from say, and the k likeliest; None: no more."""
        piece = self.tokenizer.piece(id)
        if k is None or logits_V is None:
            return Token(id, piece, None, ())
        return Token(id, piece, *logprobs(logits_V, id, k))

    # ---- simple use

    def answers(
        self, requests: Sequence[Request], is_stopped: Callable[[], bool] = lambda: False
    ) -> Generator[tuple[int, Chunk]]:
        """Answer requests together: the index of one, and its next chunk. Left early, the rest is dropped.

        `is_stopped` is asked before each step, also while a prompt is computed and there are no chunks.

        Raises:
            ValueError: as `check`, before anything runs.
        """
        assert self.idle, "others wait for chunks of this engine: use submit and step"
        for request in requests:
            self.check(request)
        unfinished = {self.submit(request): index for index, request in enumerate(requests)}
        try:
            while unfinished and not is_stopped():
                for id, chunk in self.step():
                    yield unfinished[id], chunk
                    if chunk.finish:
                        del unfinished[id]
        finally:
            for id in unfinished:
                self.cancel(id)

    def stream(
        self,
        prompt: str | Sequence[int],
        sampling: Sampling,
        max_tokens: int = 128,
        stop: Sequence[str] = (),
    ) -> Iterator[str]:
        """Yield the continuation piece by piece, whole characters only.

        `prompt` is a text, which gets BOS where the vocabulary wants it, or ids as they are.

        Raises:
            ValueError: when the prompt alone fills the context, or an option cannot be.
        """
        ids = self.encode(prompt) if isinstance(prompt, str) else prompt
        for _, chunk in self.answers([Request(tuple(ids), sampling, max_tokens, tuple(stop))]):
            if chunk.text:
                yield chunk.text

    def generate(
        self,
        prompt: str | Sequence[int],
        sampling: Sampling,
        max_tokens: int = 128,
        stop: Sequence[str] = (),
    ) -> str:
        """The whole continuation as one text."""
        return "".join(self.stream(prompt, sampling, max_tokens, stop))

    def encode(self, text: str) -> list[int]:
        """The ids of a text to go on from."""
        return self.tokenizer.encode(text, bos=self.tokenizer.adds_bos)


def _is_plain(sequence: _Sequence) -> bool:
    """Whether the likeliest token is what it draws, so that all such rows are looked through at once."""
    is_greedy = sequence.request.sampling.temperature == 0
    return is_greedy and sequence.seen is None and sequence.counts is None


def _places(request: Request, end: int) -> int:
    """Places in the cache for `end` tokens in all: the last token drawn needs none."""
    return end - bool(request.max_tokens)
