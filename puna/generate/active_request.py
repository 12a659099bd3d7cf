"""A request while the engine answers it: tokens, cache blocks, random generator, and what is left to do."""

from collections import Counter

import torch

from puna.generate.lookup import Drafts
from puna.generate.request import Finish, Request, Token
from puna.generate.runners.cache import BLOCK
from puna.generate.text import AnswerText
from puna.tokens.tokenizer import Tokenizer


class ActiveRequest:
    """A request in the engine, waiting or running."""

    def __init__(self, id: int, request: Request, context: int, tokenizer: Tokenizer) -> None:
        self.id, self.request = id, request
        self.tokens = list(request.prompt)
        self.end = min(context, len(request.prompt) + request.max_tokens)  # maximum length
        self.n_computed = 0  # tokens whose keys and values are in the KV cache
        self.table: list[int] = []
        self.hashes: list[bytes] = []  # of its registered blocks
        self.prompt_hashes: list[bytes] | None = None  # of its prompt's blocks, computed once
        self.prompt_tokens: list[Token] = []
        self.finish: Finish | None = None
        self.text = AnswerText(tokenizer.stream_decoder(request.prompt), request.stop)
        self.generator = torch.Generator().manual_seed(request.sampling.seed)
        self.drafts = Drafts(request.prompt) if request.lookup else None
        self.constraint = request.grammar.start() if request.grammar else None
        self.distinct = set(request.prompt) if request.sampling.repetition_penalty != 1 else None
        is_adjusted = request.presence_penalty or request.frequency_penalty or request.logit_bias
        self.counts: Counter[int] | None = Counter() if is_adjusted else None  # of the answer's tokens

    @property
    def blocks(self) -> int:
        """KV-cache blocks needed; the last sampled token's keys and values are never computed."""
        return -(-self.request.cache_positions(self.end) // BLOCK)

    @property
    def is_decoding(self) -> bool:
        """Whether the whole prompt is in the KV cache."""
        return self.n_computed >= len(self.request.prompt)
