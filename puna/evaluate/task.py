"""What a benchmark is to the harness: examples with their prompts, and how an answer is scored.

    files ──Task.read──> Example: question and options, or question and references
          ──Task.prefix─> header and solved examples (shots), shared by all examples of a topic

    context = header + shots + question
    choice:    the options continue the context; the likeliest is chosen, after normalisation
    generation: the model continues the context; `Task.check` compares the text with the references

The letters in `Task.basis` say where a protocol comes from: [P] the paper states it, [A] arithmetic on the
data and the paper's tables, [C] convention (GPT-3, Minerva, common harnesses) where the paper is silent.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from puna.config import Sampling
from puna.evaluate.data import Data
from puna.evaluate.normalise import Normalisation
from puna.paper import RESULTS, Figures


@dataclass(frozen=True, kw_only=True)
class Example:
    """One question of a benchmark."""

    id: str
    question: str
    """What follows header and shots: the end of the context."""
    options: tuple[str, ...] = ()
    """Continuations to choose from, with their white space. Empty where the model generates."""
    contexts: tuple[str, ...] = ()
    """One question per option, where the options differ in what precedes them (WinoGrande)."""
    gold: tuple[int, ...] = ()
    """Indices of the right options."""
    references: tuple[str, ...] = ()
    """Right answers, where the model generates."""
    topic: str = ""
    """Examples of one topic share header and shots (MMLU's subjects)."""
    groups: tuple[str, ...] = ()
    """Groups whose scores are also reported: subjects, categories, pronouns."""
    cluster: str = ""
    """Examples of one cluster (an article's questions) are not independent; standard errors respect that."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """What else the check needs, such as unit tests. JSON values."""


@dataclass(frozen=True)
class Verdict:
    """What a check says about one generated text."""

    value: float | None
    """1 correct, 0 wrong, or a score; None where no judge was available."""
    answer: str = ""
    """The answer that was extracted from the text, normalised; equal answers vote together (maj1@k)."""
    why: str = ""
    """The reason in a few words: what was compared, or how the sandbox ended."""
    also: Mapping[str, float] = field(default_factory=dict)
    """Further metrics of the same text, by name."""


Check = Callable[[Example, str], Verdict]
Prefix = Callable[[Data, int, str], tuple[str, Sequence[str]]]


def no_prefix(data: Data, shots: int, topic: str) -> tuple[str, Sequence[str]]:
    """Neither header nor shots."""
    return "", ()


@dataclass(frozen=True, kw_only=True)
class Task:
    """A benchmark."""

    name: str
    group: str
    """The group of tasks that it belongs to: commonsense, closed-book, reading, math, code, mmlu, bias."""
    source: str
    """Where the data is published."""
    basis: Mapping[str, str]
    """Aspect -> "[P]", "[A]" or "[C]", for the prompt, the normalisation, the metric …"""
    total: int
    """Examples of the official set."""
    read: Callable[[Data], Iterable[Example]]
    prefix: Prefix = no_prefix
    shots: int = 0
    metric: str = "accuracy"
    unit: float = 100
    """Values are shown times this: 100 for percentages."""
    variant_of: str = ""
    """The benchmark that it asks in another way."""

    # ---- choice
    normalisation: Normalisation = "char"
    also: tuple[Normalisation, ...] = ()
    """Further normalisations in the table of results."""
    answer_context: str = "Answer:"
    """The context of P(option | answer context)."""
    ties_are_wrong: bool = False
    """Whether a right option that only ties with a wrong one counts as wrong."""

    # ---- generation
    check: Check | None = None
    """Compares a generated text with the example; None for tasks with options."""
    max_tokens: int = 0
    stop: tuple[str, ...] = ()
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0, top_p=1))
    samples: int = 1
    votes: bool = False
    """Whether maj1@k is reported for several samples (else pass@k, where `passes`)."""
    passes: bool = False
    judge: str = ""
    """The judge that scores the texts: "toxicity", "truth", "sandbox"; empty for a check of its own."""

    @property
    def paper(self) -> Mapping[str, Figures]:
        """The paper's figures for 7B, 13B, 33B and 65B, by metric or group; none for a user's own task."""
        return RESULTS.get(self.variant_of or self.name if self.group or self.variant_of else "", {})

    @property
    def is_choice(self) -> bool:
        """Whether options are scored, rather than texts generated."""
        return self.check is None and not self.judge
