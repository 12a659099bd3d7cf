"""Continuations of fixed prompts: what a run writes to samples.jsonl while it trains."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from puna.config import Sampling
from puna.generate.engine import Engine
from puna.model.llama import Llama
from puna.tokens.tokenizer import Tokenizer


def sampler(
    tokenizer: Path, prompts: Sequence[str], sampling: Sampling, max_tokens: int = 96
) -> Callable[[Llama], list[dict[str, Any]]]:
    """A function that continues `prompts` with the model it is given, one record a prompt.

    `tokenizer` is read when the function is called: a run's own is there once the run has begun.
    """

    def sample(model: Llama) -> list[dict[str, Any]]:
        engine = Engine(model, Tokenizer(tokenizer))
        return [
            {
                "prompt": prompt,
                "text": engine.generate(prompt, sampling, max_tokens),
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "seed": sampling.seed,
            }
            for prompt in prompts
        ]

    return sample
