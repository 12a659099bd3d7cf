"""What an evaluation may change about the tasks' protocols; the fields' texts are the help of `puna eval`."""

from dataclasses import dataclass

from puna.evaluate.answers import Cut
from puna.evaluate.normalise import Normalisation
from puna.validation import Count, Fraction, NonNegativeNumber, Positive, strict


@strict
@dataclass(frozen=True)
class Options:
    """Changes to the tasks' protocols."""

    limit: Positive | None = None
    """Number of examples of each task to evaluate, the first ones. Default: all."""
    shots: tuple[Count, ...] = ()
    """Numbers of solved examples in the prompt, a result for each; defaults to each task's own."""
    samples: Positive | None = None
    """Number of texts to sample per prompt; pass@k and maj1@k need at least k."""
    temperature: NonNegativeNumber | None = None
    """Sampling temperature; defaults to each task's own."""
    top_p: Fraction | None = None
    """Sample from the fewest tokens of this total probability; defaults to each task's own."""
    max_tokens: Positive | None = None
    """Maximum number of generated tokens per text; defaults to each task's own."""
    seed: int = 1
    """Random seed of sampling."""
    normalisation: Normalisation | None = None
    """How likelihoods of options are normalised; defaults to each task's own."""
    answer_context: bool = True
    """Also score options given "Answer:" alone, which the normalisation answer-context needs."""
    cut: Cut = "final"
    """Where a closed-book answer ends. final: at the line break, without one final dot or comma; first: at
    the first line break, dot or comma, as in lm-eval."""
    control: bool = False
    """Also score each task with its questions swapped among the examples: a control, which should score at
    chance."""
