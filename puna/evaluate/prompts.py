"""Examples -> token ids: shots that fit, and the border between context and option.

    context = header + shots + question
    encode(context + option) ──after the longest common token prefix with encode(context)──> scored tokens

White space at the end of a context belongs to the option, and an option is never encoded alone: a vocabulary
that puts a space before a text, or joins the last word and the first, would change what is scored.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from puna.evaluate.data import Data
from puna.evaluate.model import Model
from puna.evaluate.task import Example, Task
from puna.generate.likelihood import Row, Tokens, common_prefix


@dataclass(frozen=True)
class Prepared:
    """An example as token ids."""

    example: Example
    context: str
    shots: int
    """Solved examples in the context: fewer than asked for where they did not fit."""
    rows: tuple[Row, ...]
    """Rows of the options, then, where asked for, of the options after the answer context."""
    tokens: Tokens
    """Token ids of the context."""

    @property
    def fits(self) -> bool:
        """Whether it can be computed; False when even no shots are too long."""
        return self.shots >= 0


class Prompter:
    """Prepares the examples of one task for one model."""

    def __init__(
        self, task: Task, data: Data, model: Model, shots: int | None = None, with_base: bool = True
    ) -> None:
        self.task, self._data, self._model = task, data, model
        self.shots = task.shots if shots is None else shots
        self._with_base = with_base
        self._prefixes: dict[str, tuple[str, list[str]]] = {}

    def prefix(self, topic: str) -> tuple[str, list[str]]:
        """Header and shots of a topic."""
        if topic not in self._prefixes:
            header, shots = self.task.prefix(self._data, self.shots, topic)
            self._prefixes[topic] = header, list(shots)
        return self._prefixes[topic]

    def prepare(self, examples: Sequence[Example]) -> list[Prepared]:
        """Examples in their order, each with as many whole shots as fit, the last dropped first."""
        most = [len(self.prefix(example.topic)[1]) for example in examples]
        waiting = {index: most[index] for index in range(len(examples))}
        done: dict[int, Prepared] = {}
        while waiting:
            tried = [self._texts(examples[index], shots) for index, shots in waiting.items()]
            flat = iter(self._model.encode([text for texts in tried for text in texts]))
            encoded = [[next(flat) for _ in texts] for texts in tried]
            again = {}
            for (index, shots), texts, ids in zip(waiting.items(), tried, encoded, strict=True):
                if max(map(len, ids)) + self.task.max_tokens <= self._model.context:
                    done[index] = self._prepared(examples[index], shots, texts, ids)
                elif shots > 0:
                    again[index] = shots - 1
                else:
                    done[index] = Prepared(examples[index], texts[0], -1, (), ids[0])
            waiting = again
        return [done[index] for index in range(len(examples))]

    def _contexts(self, example: Example, shots: int) -> list[str]:
        header, solved = self.prefix(example.topic)
        before = header + "".join(solved[:shots])
        return [before + question for question in (example.contexts or (example.question,))]

    def _texts(self, example: Example, shots: int) -> list[str]:
        """What is encoded: each context, then each context with its option, then the same for the base."""
        contexts = self._contexts(example, shots)
        if not self.task.is_choice:
            return contexts
        if len(contexts) == 1:
            contexts *= len(example.options)
        pairs = [moved(c, o) for c, o in zip(contexts, example.options, strict=True)]
        if self._with_base and example.question:
            pairs += [(self.task.answer_context, option) for option in example.options]
        return [text for context, option in pairs for text in (context, context + option)]

    def _prepared(self, example: Example, shots: int, texts: list[str], ids: list[Tokens]) -> Prepared:
        context = self._contexts(example, shots)[0]
        if not self.task.is_choice:
            return Prepared(example, context, shots, (), ids[0])
        pairs = zip(ids[::2], ids[1::2], strict=True)
        return Prepared(example, context, shots, tuple(divided(*pair) for pair in pairs), ids[0])


def moved(context: str, option: str) -> tuple[str, str]:
    """Context and option, with the white space at the context's end moved to the option."""
    stripped = context.rstrip()
    return stripped, context[len(stripped) :] + option


def divided(context: Tokens, whole: Tokens) -> Row:
    """The tokens of context and option, divided where they part from those of the context alone.

    At least one token is before the border, and at least one behind it.
    """
    border = max(1, min(common_prefix(context, whole), len(whole) - 1))
    return Row(np.ascontiguousarray(whole[:border]), np.ascontiguousarray(whole[border:]))
