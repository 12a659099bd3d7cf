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
from puna.rundir import CONFIG


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
    """Width of the residual stream, D."""
    n_layers: int = 6
    """Number of transformer blocks."""
    n_heads: int = 6
    """Number of attention heads; each has dim / n_heads dimensions."""
    ffn_dim: int = 768
    """Hidden width of the SwiGLU feed-forward layer."""
    vocab_size: int = 32_000
    """Number of tokens in the vocabulary."""
    context: int = 512
    """Tokens per training sequence, and the longest sequence in generation."""
    norm_eps: float = 1e-6
    """Epsilon of RMSNorm, added to the mean square."""
    n_kv_heads: int | None = None
    """Number of key and value heads (grouped-query attention); defaults to n_heads."""
    tied_embeddings: bool = False
    """Share the embedding's weights with the output projection."""
    rope_base: float = 10_000.0
    """Base of the rotary position embedding (theta)."""
    rope_factor: float | None = None
    """RoPE scaling factor (Llama 3.1); disabled when unset."""
    rope_low_freq_factor: float = 1.0
    """RoPE scaling: wavelengths above rope_original_context / rope_low_freq_factor are scaled fully."""
    rope_high_freq_factor: float = 4.0
    """RoPE scaling: wavelengths below rope_original_context / rope_high_freq_factor are not scaled."""
    rope_original_context: int = 8192
    """RoPE scaling: the context that the model was pretrained with."""

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
        """Raises ValueError naming the first invalid field."""
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
    """Proportion per source, as in --mixture.weights.books 4.5. Default: Table 1 over the sources present."""
    seed: int = 1
    """Random seed of the order of training windows."""

    def validate(self) -> None:
        """Raises ValueError naming the first invalid field."""
        for source, weight in self.weights.items():
            _require(weight > 0, f"mixture.weights.{source} is {weight}; it must be positive, or left out")


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedule (paper section 2.3)."""

    lr: float = 1e-3
    """Peak learning rate."""
    final_lr_fraction: float = 0.1
    """Final learning rate of the cosine schedule, as a fraction of the peak."""
    warmup_steps: int = 100
    """Number of linear warm-up steps."""
    beta1: float = 0.9
    """AdamW's decay rate of the first moment."""
    beta2: float = 0.95
    """AdamW's decay rate of the second moment."""
    eps: float = 1e-8
    """AdamW's epsilon, added to the root of the second moment."""
    weight_decay: float = 0.1
    """Weight decay of matrices; norms are not decayed."""
    clip: float = 1.0
    """Maximum global gradient norm; larger gradients are clipped."""

    def validate(self) -> None:
        """Raises ValueError naming the first invalid field."""
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
    """Total number of optimiser steps."""
    batch_tokens: int = 4096
    """Tokens per optimiser step, over all ranks and micro-batches; a multiple of model.context."""
    micro_batch: int = 8
    """Sequences per forward pass; gradients are accumulated over the rest of the batch."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Compute dtype of matrix products; all else is fp32. auto: bf16 where the device computes it as fast."""
    seed: int = 1
    """Random seed of weight initialisation."""
    validate_every: int = 200
    """Steps between evaluations of the held-out loss; 0 evaluates only at the end."""
    validation_windows: int = 32
    """Held-out windows per source in each evaluation; the final one uses all windows."""
    sample_every: int = 0
    """Steps between sample continuations; 0 samples only at the end."""
    save_every: int = 100
    """Steps between checkpoints; 0 saves only at the end."""
    keep: int = 2
    """Number of newest checkpoints to keep."""
    skip_outliers: float = 0.0
    """Skip a step whose gradient norm exceeds this multiple of the median of the last 64; 0 never skips."""
    deterministic: bool = False
    """Use deterministic algorithms only; slower on a GPU, no change on a CPU."""
    track: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Additional trackers that receive the metrics."""
    profile: int = 0
    """Number of steps to profile, after the first ten, into RUN/trace.json; 0 disables the profiler."""
    activations: Activations = "manual"
    """Which activations are saved for backward; see puna/model/activations.py."""
    compile: bool = True
    """Compile the elementwise kernels with torch.compile on GPUs. CPUs use compiled C++ kernels instead."""
    allocator: Literal["keep", "system"] = "keep"
    """keep: reuse freed memory within the process (puna/train/allocator.py); system: the system's default."""
    threads: int = 0
    """Number of CPU threads; 0 uses PyTorch's default. Results depend on it by rounding."""

    def validate(self) -> None:
        """Raises ValueError naming the first invalid field."""
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
    """Recipe that gives the default sizes and optimiser settings; see puna/recipes.py."""
    data: tuple[str, ...] = ()
    """Directories of token shards, as written by `puna shards`."""
    model: ModelConfig = field(default_factory=ModelConfig)
    mixture: MixtureConfig = field(default_factory=MixtureConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def validate(self) -> None:
        """Raises ValueError naming the first invalid field and how to fix it."""
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
    """Sampling temperature; 0 always picks the most likely token, 1 samples the model's distribution."""
    top_k: int = 0
    """Sample from the k most likely tokens; 0 disables."""
    top_p: float = 0.95
    """Sample from the fewest most likely tokens of total probability p (Holtzman et al. 2020); 1 disables."""
    min_p: float = 0.0
    """Sample from tokens at least p times as likely as the best one (Nguyen et al. 2024); 0 disables."""
    repetition_penalty: float = 1.0
    """Penalty on the logits of tokens already in the text (Keskar et al. 2019); 1 disables."""
    seed: int = 1
    """Random seed of sampling; the same seed gives the same text."""

    def validate(self) -> None:
        """Raises ValueError naming the invalid option."""
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
