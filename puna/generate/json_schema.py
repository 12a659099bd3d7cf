"""Constrained decoding: a JSON schema -> the tokens that may come next in an answer.

In:  a JSON schema, the vocabulary.
Out: a Grammar, compiled once; for each answer a Constraint, its position in the grammar.

    schema ──Grammars.compile──> Grammar ──start──> Constraint
                                                    allowed() ─> draw a token ─> push(token) ─> allowed() …

llguidance compiles the schema and computes which tokens are allowed.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna.extras import require
from puna.generate.schema_check import Refused, check, matcher, reason

ANY_OBJECT = '{"type": "object"}'
KNOWN = 32  # schemas that are remembered


class Constraint:
    """One answer's position in a grammar."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def allowed(self) -> NDArray[np.bool_]:
        """Which ids may come next (V,); where the answer may end, also the end-of-text ids.

        Raises:
            ValueError: when computing this exceeds a limit.
        """
        allowed: NDArray[np.bool_] = np.frombuffer(self._matcher.compute_logit_bias(), np.uint8) != 0
        if self._matcher.is_error() or not allowed.any():
            error = reason(self._matcher) or "no token can continue the answer"
            raise ValueError(f"the JSON schema cannot be followed further: {error}; simplify it")
        return allowed

    def push(self, id: int) -> None:
        """Append a token that is allowed."""
        self._matcher.consume_token(id)

    @property
    def is_complete(self) -> bool:
        """Whether the answer is whole and nothing can follow."""
        return bool(self._matcher.is_stopped())


class Grammar:
    """A compiled schema."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def start(self) -> Constraint:
        """The beginning of an answer."""
        return Constraint(self._matcher.deep_copy())


class _Vocabulary:
    """A vocabulary in the form that llguidance reads."""

    def __init__(self, pieces: Sequence[bytes], controls: Sequence[int], end_id: int) -> None:
        self.tokens, self.special_token_ids = pieces, controls
        self.eos_token_id, self.bos_token_id = end_id, None

    def __call__(self, text: str | bytes) -> list[int]:
        """Encode a text: not needed, because no token is forced."""
        return []


class Grammars:
    """Compiles schemas for one vocabulary; for use from one thread at a time.

    Raises:
        MissingExtra: when llguidance is not installed.
    """

    def __init__(self, pieces: Sequence[bytes], controls: Sequence[int], end_ids: Sequence[int]) -> None:
        require("llguidance")
        from llguidance import LLTokenizer, TokenizerWrapper

        vocabulary = TokenizerWrapper(_Vocabulary(pieces, controls, end_ids[0]))
        slices = LLTokenizer.json_slices()
        self._tokenizer = LLTokenizer(vocabulary, eos_token=list(end_ids), slices=slices)
        self._known: dict[str, Grammar | Refused] = {}  # the last compiled schemas, and those refused

    def known(self, schema: str) -> Grammar | None:
        """A schema's grammar, if it was compiled before; takes no time, from any thread.

        Raises:
            ValueError: as `compile`.
        """
        known = self._known.get(schema)
        if isinstance(known, Refused):
            raise known
        return known

    def compile(self, schema: str) -> Grammar:
        """Compile a schema, given as JSON text.

        Raises:
            ValueError: in one line, when the schema is invalid, not supported, or too expensive to compile.
        """
        if grammar := self.known(schema):
            return grammar
        if len(self._known) >= KNOWN:
            del self._known[next(iter(self._known))]
        try:
            if schema != ANY_OBJECT:
                check(schema)
            grammar = Grammar(matcher(self._tokenizer, schema))
            grammar.start().allowed()
        except Refused as error:
            self._known[schema] = error
            raise
        self._known[schema] = grammar
        return grammar
