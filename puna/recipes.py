"""Recipes: the models of the paper's Table 2, and small ones for one machine, as plain functions.

A recipe gives the defaults; every field can be changed on the command line with --section.field value.
"""

from collections.abc import Callable
from dataclasses import replace

from puna.config import (
    ComputeConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    SaveConfig,
    ScheduleConfig,
    WatchConfig,
)

BATCH_4M = 2**22  # the paper's batch of 4M tokens, as a multiple of its context of 2,048


def _steps(tokens: float, batch_tokens: int) -> int:
    return round(tokens / batch_tokens)


def _paper(
    name: str, dim: int, heads: int, layers: int, ffn: int, eps: float, lr: float, tokens: float
) -> RunConfig:
    """One row of Table 2, with the optimiser of section 2.3."""
    return RunConfig(
        recipe=name,
        model=ModelConfig(
            dim=dim,
            n_heads=heads,
            n_layers=layers,
            ffn_dim=ffn,
            norm_eps=eps,
            vocab_size=32_000,
            context=2048,
        ),
        optim=OptimConfig(lr=lr, warmup_steps=2000),
        schedule=ScheduleConfig(_steps(tokens, BATCH_4M), BATCH_4M, micro_batch=4),
        save=SaveConfig(every=1000),
        watch=WatchConfig(validate_every=1000),
    )


def recipe_7b() -> RunConfig:
    """LLaMA 7B: 6,738,415,616 parameters, 1.0T tokens."""
    return _paper("7b", 4096, 32, 32, 11008, 1e-6, 3.0e-4, 1.0e12)


def recipe_13b() -> RunConfig:
    """LLaMA 13B: 13,015,864,320 parameters, 1.0T tokens."""
    return _paper("13b", 5120, 40, 40, 13824, 1e-6, 3.0e-4, 1.0e12)


def recipe_33b() -> RunConfig:
    """LLaMA 33B: 32,528,943,616 parameters, 1.4T tokens."""
    return _paper("33b", 6656, 52, 60, 17920, 1e-6, 1.5e-4, 1.4e12)


def recipe_65b() -> RunConfig:
    """LLaMA 65B: 65,285,660,672 parameters, 1.4T tokens."""
    return _paper("65b", 8192, 64, 80, 22016, 1e-5, 1.5e-4, 1.4e12)


def recipe_1b() -> RunConfig:
    """A 1.3B model for one node: the paper's architecture and optimiser, 1.0T tokens."""
    config = _paper("1b", 2048, 16, 24, 5632, 1e-6, 3.0e-4, 1.0e12)
    return replace(config, schedule=ScheduleConfig(_steps(1.0e12, 2**20), 2**20, micro_batch=4))


def recipe_110m() -> RunConfig:
    """A 110M model (dim 768, 12 layers, vocabulary 32,000) for one GPU, or some days on a CPU."""
    return RunConfig(
        recipe="110m",
        model=ModelConfig(dim=768, n_heads=12, n_layers=12, ffn_dim=2048, vocab_size=32_000, context=1024),
        optim=OptimConfig(lr=6e-4, warmup_steps=500),
        schedule=ScheduleConfig(steps=20_000, batch_tokens=2**17, micro_batch=8),
        save=SaveConfig(every=500),
        watch=WatchConfig(validate_every=500),
    )


def recipe_15m() -> RunConfig:
    """A 15M model (dim 288, 6 layers; 8.3M with a vocabulary of 4,096): minutes on two CPU cores."""
    return RunConfig(
        recipe="15m",
        model=ModelConfig(dim=288, n_heads=6, n_layers=6, ffn_dim=768, vocab_size=32_000, context=512),
        optim=OptimConfig(lr=1e-3, warmup_steps=100),
        schedule=ScheduleConfig(steps=1000, batch_tokens=4096, micro_batch=8),
    )


def recipe_tiny() -> RunConfig:
    """Half a million parameters (vocabulary 1,024): for tests, seconds."""
    return RunConfig(
        recipe="tiny",
        model=ModelConfig(dim=64, n_heads=4, n_layers=2, ffn_dim=256, vocab_size=1024, context=64),
        optim=OptimConfig(lr=3e-3, warmup_steps=10),
        schedule=ScheduleConfig(steps=100, batch_tokens=1024, micro_batch=16),
        compute=ComputeConfig(compile=False),  # compiling would take longer than the run
        save=SaveConfig(every=20),
        watch=WatchConfig(validate_every=50, validation_windows=16),
    )


RECIPES: dict[str, Callable[[], RunConfig]] = {
    "tiny": recipe_tiny,
    "15m": recipe_15m,
    "110m": recipe_110m,
    "1b": recipe_1b,
    "7b": recipe_7b,
    "13b": recipe_13b,
    "33b": recipe_33b,
    "65b": recipe_65b,
}


def recipe(name: str) -> RunConfig:
    """The configuration of a recipe by its name.

    Raises:
        ValueError: when there is no such recipe, naming the recipes that exist.
    """
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}; choose one of: {', '.join(RECIPES)}")
    return RECIPES[name]()
