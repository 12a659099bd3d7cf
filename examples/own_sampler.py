"""A sampler of your own: the logits of a loaded model, one token at a time.

    python examples/own_sampler.py

`model.generate(…)` samples with temperature, top-k, top-p and min-p. For anything else, ask the runner: it
computes a prompt (prefill) and then one token per step (decode), with the keys and values in its cache.
"""

from pathlib import Path

import torch
from _data import train_small_model

import puna


def sample(logits_V: torch.Tensor, generator: torch.Generator) -> int:
    """Typical sampling (Meister et al. 2023): keep the tokens whose surprise is near the entropy."""
    logp_V = logits_V.log_softmax(-1)
    entropy = -(logp_V.exp() * logp_V).sum()
    order = (-logp_V - entropy).abs().argsort()
    kept = order[logp_V[order].exp().cumsum(0) < 0.9]
    kept = kept if len(kept) else order[:1]
    return int(kept[torch.multinomial(logp_V[kept].exp(), 1, generator=generator)])


def main() -> None:
    model = puna.load(train_small_model(Path("runs/small")))
    runner, tokenizer = model.engine.runner, model.engine.tokenizer
    generator = torch.Generator().manual_seed(1)

    ids = model.engine.encode("The llama")
    table = range(runner.n_blocks)  # the blocks of the KV cache, all for this one sequence
    logits_V = runner.prefill(ids, 0, table)
    for _ in range(20):
        ids.append(sample(logits_V, generator))
        (logits_V,) = runner.decode([ids[-1]], [len(ids) - 1], [table])
    print(tokenizer.decode(ids))


if __name__ == "__main__":  # stages start processes, which import this file
    main()
