"""A run's full configuration: typed, validated, written beside the weights, read back to reproduce it.

    recipe 15m ─> RunConfig ─> --section.field value ─> validate ─> RUN/config.json ─> --config RUN

The docstring under a field is its help text on the command line.
"""

import dataclasses
import json
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from puna.files import read_json

CONFIG = "config.json"


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


class RopeScaling(NamedTuple):
    """How Llama 3.1 and later slow the rotary angles down, so that a longer context fits.

    Turns longer than original_context / low_freq_factor are slowed by `factor`, those shorter than
    original_context / high_freq_factor are left, and those between go over smoothly.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int


@dataclass(frozen=True)
class ModelConfig:
    """The architecture (paper section 2.2)."""

    dim: int = 288
    """Width of the residual stream."""
    n_layers: int = 6
    """Transformer blocks."""
    n_heads: int = 6
    """Attention heads; dim is divided among them."""
    ffn_dim: int = 768
    """Hidden width of SwiGLU."""
    vocab_size: int = 32_000
    """Pieces of the tokenizer."""
    context: int = 512
    """Tokens a sequence, in training and at most in generation."""
    norm_eps: float = 1e-6
    """Added to the mean square in RMSNorm."""
    n_kv_heads: int | None = None
    """Key and value heads (grouped-query attention); as many as n_heads when not given."""
    tied_embeddings: bool = False
    """Use the embedding as the output projection."""
    rope_base: float = 10_000.0
    """Base of the rotary angles."""
    rope_factor: float | None = None
    """Slow the long turns of the rotary angles by this, as Llama 3.1 does; not when not given."""
    rope_low_freq_factor: float = 1.0
    """With rope_factor: turns longer than rope_original_context / this are slowed in full."""
    rope_high_freq_factor: float = 4.0
    """With rope_factor: turns shorter than rope_original_context / this are left as they are."""
    rope_original_context: int = 8192
    """With rope_factor: the context that the model was trained with at first."""

    @property
    def kv_heads(self) -> int:
        """Key and value heads, resolved."""
        return self.n_kv_heads or self.n_heads

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.dim // self.n_heads

    @property
    def rope_scaling(self) -> RopeScaling | None:
        """The four numbers of Llama 3.1's scaling, or None."""
        if self.rope_factor is None:
            return None
        return RopeScaling(
            self.rope_factor,
            self.rope_low_freq_factor,
            self.rope_high_freq_factor,
            self.rope_original_context,
        )

    def validate(self) -> None:
        """Raise ValueError naming the first field that cannot be."""
        for name in ("dim", "n_layers", "n_heads", "ffn_dim", "vocab_size", "context"):
            _require(getattr(self, name) > 0, f"model.{name} is {getattr(self, name)}; it must be positive")
        _require(
            self.dim % self.n_heads == 0,
            f"model.dim is {self.dim}, not divisible by model.n_heads {self.n_heads}; change either",
        )
        _require(
            self.head_dim % 2 == 0,
            f"model.dim / model.n_heads is {self.head_dim}; RoPE rotates pairs, so it must be even",
        )
        _require(
            self.n_heads % self.kv_heads == 0,
            f"model.n_kv_heads is {self.kv_heads}; it must divide model.n_heads {self.n_heads}",
        )
        _require(self.norm_eps > 0, f"model.norm_eps is {self.norm_eps}; it must be positive")
        _require(self.rope_base > 1, f"model.rope_base is {self.rope_base}; it must be above 1")
        if self.rope_factor is not None:
            _require(self.rope_factor >= 1, f"model.rope_factor is {self.rope_factor}; it must be at least 1")
            _require(
                0 < self.rope_low_freq_factor < self.rope_high_freq_factor,
                f"model.rope_low_freq_factor is {self.rope_low_freq_factor}; it must be positive and below "
                f"model.rope_high_freq_factor {self.rope_high_freq_factor}",
            )
            _require(
                self.rope_original_context > 0,
                f"model.rope_original_context is {self.rope_original_context}; it must be positive",
            )


@dataclass(frozen=True)
class MixtureConfig:
    """Which share of the training tokens each source gives (Table 1)."""

    weights: dict[str, float] = field(default_factory=dict)
    """Share of each source, as --mixture.weights.books 4.5. Empty: Table 1 over the sources present."""
    seed: int = 1
    """Decides the order of the windows."""

    def validate(self) -> None:
        """Raise ValueError naming the first field that cannot be."""
        for source, weight in self.weights.items():
            _require(weight > 0, f"mixture.weights.{source} is {weight}; it must be positive, or left out")


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedule (paper section 2.3)."""

    lr: float = 1e-3
    """Peak learning rate."""
    final_lr_fraction: float = 0.1
    """The cosine schedule ends at this fraction of the peak."""
    warmup_steps: int = 100
    """Steps of linear warm-up."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.95
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.1
    """On matrices; norms are not decayed."""
    clip: float = 1.0
    """Largest global gradient norm."""

    def validate(self) -> None:
        """Raise ValueError naming the first field that cannot be."""
        _require(self.lr > 0, f"optim.lr is {self.lr}; it must be positive")
        _require(self.clip > 0, f"optim.clip is {self.clip}; it must be positive")
        _require(self.eps > 0, f"optim.eps is {self.eps}; it must be positive")
        _require(
            self.warmup_steps >= 0, f"optim.warmup_steps is {self.warmup_steps}; it must not be negative"
        )
        _require(
            self.weight_decay >= 0, f"optim.weight_decay is {self.weight_decay}; it must not be negative"
        )
        for name in ("beta1", "beta2", "final_lr_fraction"):
            _require(
                0 <= getattr(self, name) <= 1, f"optim.{name} is {getattr(self, name)}; it must be in 0..1"
            )


Activations = Literal["manual", "selective", "full", "none"]


@dataclass(frozen=True)
class TrainConfig:
    """The loop."""

    steps: int = 1000
    """Optimiser steps in all."""
    batch_tokens: int = 4096
    """Tokens a step, over all ranks and accumulated micro-batches; a multiple of model.context."""
    micro_batch: int = 8
    """Sequences a forward pass; the rest of the batch is accumulated."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Precision of the matrix products; weights, optimiser state and reductions are always fp32. auto: bf16
    where the device multiplies it at least as fast as fp32, measured when the run begins."""
    seed: int = 1
    """Of the initial weights."""
    validate_every: int = 200
    """Steps between measurements of the held-out loss; 0: only at the end."""
    validation_windows: int = 32
    """Windows a source in each measurement but the last, which takes all."""
    sample_every: int = 0
    """Steps between sample continuations; 0: only at the end."""
    save_every: int = 100
    """Steps between checkpoints; 0: only at the end."""
    keep: int = 2
    """Checkpoints kept, the newest."""
    skip_outliers: float = 0.0
    """Skip a step whose gradient norm is above this many times the median of the last 64; 0: never."""
    deterministic: bool = False
    """Use deterministic algorithms only; slower on a GPU, no change on a CPU."""
    track: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Send the metrics there too."""
    profile: int = 0
    """Steps to profile, after the first ten, into RUN/trace.json."""
    activations: Activations = "manual"
    """What is kept for the backward; see puna/model/activations.py."""
    compile: bool = True
    """Compile the elementwise kernels with torch.compile on GPUs. CPUs use compiled C++ kernels instead."""
    allocator: Literal["keep", "system"] = "keep"
    """keep: the process keeps the memory it frees (puna/train/allocator.py); system: as the system does."""
    threads: int = 0
    """CPU threads; 0: PyTorch's choice. Another number rounds differently."""

    def validate(self) -> None:
        """Raise ValueError naming the first field that cannot be."""
        for name in ("steps", "batch_tokens", "micro_batch", "validation_windows", "keep"):
            _require(getattr(self, name) > 0, f"train.{name} is {getattr(self, name)}; it must be positive")
        for name in self.track:
            _require(
                name in ("tensorboard", "wandb"),
                f"train.track names {name!r}; it must be tensorboard or wandb",
            )
        for name in ("validate_every", "sample_every", "save_every", "skip_outliers", "profile", "threads"):
            _require(
                getattr(self, name) >= 0, f"train.{name} is {getattr(self, name)}; it must not be negative"
            )


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a training run."""

    recipe: str = "15m"
    """The sizes and optimiser to start from; see puna/recipes.py."""
    data: tuple[str, ...] = ()
    """Directories of token shards (puna shards)."""
    model: ModelConfig = field(default_factory=ModelConfig)
    mixture: MixtureConfig = field(default_factory=MixtureConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def validate(self) -> None:
        """Raise ValueError naming the first field that cannot be, and the mend."""
        self.model.validate()
        self.mixture.validate()
        self.optim.validate()
        self.train.validate()
        sequences, rest = divmod(self.train.batch_tokens, self.model.context)
        _require(
            rest == 0,
            f"train.batch_tokens is {self.train.batch_tokens}, not a multiple of "
            f"model.context {self.model.context}; change either",
        )
        _require(
            sequences % min(self.train.micro_batch, sequences) == 0,
            f"train.micro_batch is {self.train.micro_batch}; it must divide the {sequences} sequences a step",
        )
        _require(bool(self.data), "data names no directory; give token shards with --data DIR")

    @property
    def batch_sequences(self) -> int:
        """Sequences a step."""
        return self.train.batch_tokens // self.model.context


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: the repetition penalty first, then temperature, top-k, top-p, min-p.

    Temperature 0 is greedy, and needs no filter.
    """

    temperature: float = 0.8
    """0: always the likeliest token; 1: the model's own distribution."""
    top_k: int = 0
    """Keep the k likeliest tokens; 0: all."""
    top_p: float = 0.95
    """Keep the fewest likeliest tokens whose probabilities reach p (Holtzman et al. 2020); 1: all."""
    min_p: float = 0.0
    """Keep the tokens at least p times as likely as the likeliest (Nguyen et al. 2024); 0: all."""
    repetition_penalty: float = 1.0
    """Divide the positive logits of what prompt and answer hold already by this, and multiply the negative
    ones (Keskar et al. 2019); 1: leave them."""
    seed: int = 1
    """The same seed draws the same tokens."""

    def validate(self) -> None:
        """Raise ValueError naming the option that cannot be."""
        # Said so that NaN, which compares as False, is refused too.
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature is {self.temperature}; it must be 0 (greedy) or above")
        if self.top_k < 0:
            raise ValueError(f"top-k is {self.top_k}; it must be 0 (all) or above")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top-p is {self.top_p}; it must be above 0 and at most 1")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min-p is {self.min_p}; it must be from 0 to 1")
        if not 0 < self.repetition_penalty < math.inf:
            raise ValueError(f"repetition-penalty is {self.repetition_penalty}; it must be above 0")
        if not -(1 << 63) <= self.seed < 1 << 63:
            raise ValueError(f"seed is {self.seed}; it must fit into 64 bits")


T = TypeVar("T")


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as JSON values."""
    return typing.cast(dict[str, Any], json.loads(json.dumps(dataclasses.asdict(config))))


def from_dict(kind: type[T], values: dict[str, Any], path: str = "") -> T:
    """Build a configuration dataclass from JSON values; fields left out keep their defaults.

    Raises:
        ValueError: naming an unknown field or a value of the wrong type.
    """
    hints = typing.get_type_hints(kind)
    arguments = {}
    for name, value in values.items():
        if name not in hints:
            raise ValueError(f"unknown field {path}{name}; the fields are: {', '.join(hints)}")
        arguments[name] = _coerce(hints[name], value, f"{path}{name}")
    return kind(**arguments)


def _coerce(hint: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, dict):
            raise ValueError(f"{path} is {value!r}; it must be a section of fields")
        return from_dict(hint, value, f"{path}.")
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        accepted = value in arguments
    elif origin is tuple:
        accepted = isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
        value = tuple(value) if accepted else value
    elif origin is dict:
        accepted = isinstance(value, dict)
        value = {key: float(item) for key, item in value.items()} if accepted else value
    else:
        kinds = arguments if origin in (typing.Union, types.UnionType) else (hint,)
        if float in kinds and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        accepted = isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
    if not accepted:
        raise ValueError(f"{path} is {value!r}; it must be {getattr(hint, '__name__', None) or hint}")
    return value


def read_config(path: Path) -> RunConfig:
    """Read a run's configuration: a JSON file, or the run directory that holds one.

    Raises:
        ValueError: naming the file or field that is wrong.
    """
    file = path / CONFIG if path.is_dir() else path
    if not file.is_file():
        raise ValueError(
            f"{path} holds no run configuration ({CONFIG}); give a run directory or its {CONFIG}"
        )
    values = read_json(file)
    if not isinstance(values, dict):
        raise ValueError(f"{file} is not a run configuration; give a run directory or its {CONFIG}")
    return from_dict(RunConfig, values)
