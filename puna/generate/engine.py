"""A trained run answers: weights -> text.

prompt ─> BOS + ids ─> prefill (all at once, fills the cache) ─> decode, one token a step ─> text pieces
"""

from collections.abc import Iterator
from pathlib import Path

import torch

from puna.config import RunConfig, Sampling, read_config
from puna.generate.cache import KVCache
from puna.generate.sampling import draw
from puna.model.llama import Llama
from puna.model.weights import load_weights, newest_weights
from puna.tokens.tokenizer import Tokenizer


class Engine:
    """A model with its tokenizer, ready to continue texts."""

    def __init__(self, model: Llama, tokenizer: Tokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.context = model.config.context

    @torch.inference_mode()
    def stream(self, prompt: str, sampling: Sampling, max_tokens: int = 128) -> Iterator[str]:
        """Yield the continuation piece by piece, whole characters only, until EOS or `max_tokens`.

        Stops where the context is full.

        Raises:
            ValueError: when the prompt alone fills the context, or an option cannot be.
        """
        sampling.validate()
        if max_tokens < 1:
            raise ValueError(f"max-tokens is {max_tokens}; it must be positive")
        ids = self.tokenizer.encode(prompt, bos=True)
        if len(ids) >= self.context:
            raise ValueError(
                f"the prompt is {len(ids)} tokens long, and model.context {self.context} must hold "
                "the answer too; shorten the prompt"
            )
        total = min(self.context, len(ids) + max_tokens)
        cache = KVCache(self.model.config, total, self.model.compute)
        generator = torch.Generator().manual_seed(sampling.seed)
        decoder = self.tokenizer.stream_decoder(ids)
        logits_BTV = self.model(torch.tensor([ids]), cache)
        for _ in range(total - len(ids)):
            token = draw(logits_BTV[0, -1], sampling, generator)
            if token == self.tokenizer.eos_id:
                break
            if piece := decoder.push(token):
                yield piece
            if cache.length + 1 < total:  # the last token drawn is not looked behind
                logits_BTV = self.model(torch.tensor([[token]]), cache)
        if rest := decoder.flush():
            yield rest

    def generate(self, prompt: str, sampling: Sampling, max_tokens: int = 128) -> str:
        """The whole continuation as one text."""
        return "".join(self.stream(prompt, sampling, max_tokens))


def load_engine(run: Path) -> Engine:
    """Load a run directory's newest weights, in the precision that it trained in.

    Raises:
        ValueError: when `run` is not a run directory, or has no checkpoint yet.
    """
    config: RunConfig = read_config(run)
    weights = newest_weights(run)
    compute = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
    model = Llama(config.model, compute)
    load_weights(weights, model)
    for parameter in model.parameters():
        if parameter.ndim >= 2:  # norms stay fp32: they are small, and multiply in fp32
            parameter.data = parameter.data.to(compute)
    return Engine(model.eval(), Tokenizer(run))
