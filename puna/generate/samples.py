"""Continuations of fixed prompts: what a run writes to samples.jsonl while it trains."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from puna.config import Sampling
from puna.generate.engine import Engine
from puna.generate.request import Request
from puna.generate.runners.cache import BLOCK
from puna.generate.runners.pytorch import PlainRunner
from puna.model.llama import Llama
from puna.tokens.tokenizer import Tokenizer


def sampler(
    tokenizer: Path, prompts: Sequence[str], sampling: Sampling, max_tokens: int = 96
) -> Callable[[Llama], list[dict[str, Any]]]:
    """A function that continues `prompts` with the model it is given; returns one record per prompt.

    `tokenizer` is read when the function is called: a run copies it into its directory when it starts.
    """

    def sample(model: Llama) -> list[dict[str, Any]]:
        vocabulary = Tokenizer(tokenizer)
        requests = [
            Request(tuple(vocabulary.encode(prompt, bos=True)), sampling, max_tokens) for prompt in prompts
        ]
        tokens = sum(min(len(r.prompt) + max_tokens, model.config.context) + BLOCK for r in requests)
        engine = Engine(PlainRunner(model, tokens // BLOCK), vocabulary, max_batch=len(prompts))
        texts = [""] * len(prompts)
        for index, chunk in engine.answers(requests):
            texts[index] += chunk.text
        return [
            {
                "prompt": prompt,
                "text": text,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "seed": sampling.seed,
            }
            for prompt, text in zip(prompts, texts, strict=True)
        ]

    return sample
