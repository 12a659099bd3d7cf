"""The other sections of a run's configuration, those of a finetuning run last.

The docstring under a field is its help text on the command line.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Lt

from puna.config_model import ModelConfig
from puna.validation import (
    Count,
    Fraction,
    NonNegativeNumber,
    Positive,
    PositiveNumber,
    check,
    require,
    strict,
)

Activations = Literal["manual", "selective", "full", "none"]
DataFormat = Literal["messages", "sharegpt", "alpaca", "tasks", "prompt", "flan", "text"]
"""Formats of instruction data; puna/finetune/formats.py describes them."""


@strict
@dataclass(frozen=True)
class MixtureConfig:
    """The proportion of each source in the training data (paper Table 1)."""

    weights: dict[str, PositiveNumber] = field(default_factory=dict)
    """Proportion per source, as in --mixture.weights.books 4.5. Default: Table 1 over the sources present."""
    seed: int = 1
    """Random seed for the order of the training sequences."""


@strict
@dataclass(frozen=True)
class OptimConfig:
    """AdamW, its learning-rate schedule and gradient clipping (paper section 2.3)."""

    lr: PositiveNumber = 1e-3
    """Peak learning rate."""
    final_lr_fraction: Fraction = 0.1
    """Final learning rate of the cosine schedule, as a fraction of the peak."""
    warmup_steps: Count = 100
    """Number of linear warm-up steps."""
    beta1: Fraction = 0.9
    """AdamW's decay rate of the first moment."""
    beta2: Fraction = 0.95
    """AdamW's decay rate of the second moment."""
    eps: PositiveNumber = 1e-8
    """AdamW's epsilon, added to the root of the second moment."""
    weight_decay: NonNegativeNumber = 0.1
    """Weight decay of matrices; norms are not decayed."""
    clip: PositiveNumber = 1.0
    """Maximum global gradient norm; larger gradients are clipped."""
    skip_outliers: NonNegativeNumber = 0.0
    """Skip a step whose gradient norm exceeds this multiple of the median of the last 64; 0 never skips."""


@strict
@dataclass(frozen=True)
class ScheduleConfig:
    """How long a run is and how large its batches are."""

    steps: Positive = 1000
    """Total number of optimiser steps."""
    batch_tokens: Positive = 4096
    """Tokens per optimiser step, over all ranks and micro-batches; a multiple of model.context."""
    micro_batch: Positive = 8
    """Sequences per forward pass; gradients are accumulated over the micro-batches of a step."""


@strict
@dataclass(frozen=True)
class ComputeConfig:
    """How a step is computed: precision, memory and the use of the machine."""

    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Compute dtype of matrix products; all else is fp32. auto: bf16 where the device computes it as fast."""
    activations: Activations = "manual"
    """Which activations are saved for the backward pass; manual saves the outputs of linear layers alone."""
    compile: bool = True
    """Compile the elementwise kernels with torch.compile on GPUs. CPUs use compiled C++ kernels instead."""
    threads: Count = 0
    """Number of CPU threads; 0 uses PyTorch's default. Results depend on it by rounding."""
    deterministic: bool = False
    """Use deterministic algorithms only; slower on a GPU, no change on a CPU."""
    allocator: Literal["keep", "system"] = "keep"
    """keep: the process reuses the memory it frees, which is faster; system: the C library's default."""


@strict
@dataclass(frozen=True)
class MeshConfig:
    """How processes share a training run: dp_replicate × dp_shard × tp of them."""

    tp: Positive = 1
    """Tensor and sequence parallelism: number of ranks that share the matrices of every block."""
    dp_shard: Positive = 1
    """Number of data-parallel ranks that parameters, gradients and moments are sharded over (FSDP)."""
    dp_replicate: Positive = 1
    """Number of copies of the sharded model, whose gradients are summed (HSDP)."""

    @property
    def dp(self) -> int:
        """Number of ranks that see different sequences."""
        return self.dp_shard * self.dp_replicate

    @property
    def ranks(self) -> int:
        """Number of processes."""
        return self.dp * self.tp

    def __str__(self) -> str:
        """`tp 8, dp-shard 256, dp-replicate 1`."""
        return f"tp {self.tp}, dp-shard {self.dp_shard}, dp-replicate {self.dp_replicate}"

    def divide(self, model: ModelConfig, sequences: int) -> None:
        """Raises ValueError naming the flag when a model or a step's sequences cannot be divided evenly."""
        check(self, "parallel")
        divided = {
            "n_heads": model.n_heads,
            "n_kv_heads": model.kv_heads,
            "ffn_dim": model.ffn_dim,
            "context": model.context,
        }
        for name, count in divided.items():
            require(count % self.tp == 0, f"--parallel.tp is {self.tp}; it must divide model.{name} {count}")
        require(
            (self.tp - 1) * -(-model.vocab_size // self.tp) < model.vocab_size,
            f"--parallel.tp is {self.tp}, too many for model.vocab_size {model.vocab_size}",
        )
        require(
            sequences % self.dp == 0,
            f"a batch of {sequences} sequences cannot be divided among {self.dp} data-parallel ranks "
            "(--parallel.dp-shard × --parallel.dp-replicate); change --schedule.batch-tokens or the mesh",
        )


@strict
@dataclass(frozen=True)
class ParallelConfig(MeshConfig):
    """Training on several processes, started by torchrun."""

    reshard: bool = True
    """Free a block's gathered weights after its forward pass, and gather them again for its backward pass."""
    timeout: PositiveNumber = 600.0
    """Seconds after which a rank that waits for the others gives up."""


@strict
@dataclass(frozen=True)
class SaveConfig:
    """When checkpoints are written, and how many are kept."""

    every: Count = 100
    """Number of steps between checkpoints; 0 saves only at the end."""
    keep: Positive = 2
    """Number of newest checkpoints to keep."""


@strict
@dataclass(frozen=True)
class WatchConfig:
    """What is measured and shown while a run trains."""

    validate_every: Count = 200
    """Number of steps between evaluations of the held-out loss; 0 evaluates only at the end."""
    validation_windows: Positive = 32
    """Held-out sequences per source in each evaluation; the final one uses all of them."""
    sample_every: Count = 0
    """Number of steps between sample continuations; 0 samples only at the end."""
    layers_every: Count = 100
    """Number of steps between records of the norms of weights and updates by parameter; 0 records none."""
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Additional trackers that receive the metrics."""
    profile_steps: Count = 0
    """Number of steps to profile, after the first ten, into RUN/trace.json; 0 disables the profiler."""


@strict
@dataclass(frozen=True)
class EvalConfig:
    """Benchmarks that are scored while a run trains."""

    tasks: tuple[str, ...] = ()
    """Names of tasks or groups, as in `puna eval`; none by default."""
    every: Count = 1000
    """Number of steps between evaluations; 0 evaluates only at the end."""
    limit: Positive = 200
    """Examples of each task in each evaluation."""
    data: str = "data/eval"
    """Directory of the benchmark files in their original formats."""


@strict
@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters: which matrices have one, and of what rank (Hu et al. 2021)."""

    r: Positive = 16
    """Rank of the adapters."""
    alpha: PositiveNumber = 32.0
    """Adapters are added with the factor alpha / r."""
    dropout: Annotated[NonNegativeNumber, Lt(1)] = 0.0
    """Share of an adapter's inputs that are set to 0 in training."""
    targets: tuple[str, ...] = ("all-linear",)
    """Adapted matrices, such as q_proj v_proj or wq wv; all-linear adapts all of a layer."""

    @property
    def scale(self) -> float:
        """What B @ A is multiplied with."""
        return self.alpha / self.r


@strict
@dataclass(frozen=True)
class FinetuneConfig:
    """What a model is finetuned from, and on which form of the data."""

    model: str = ""
    """Model to start from: run directory, Hugging Face or Meta directory, .gguf file, or smollm2."""
    template: str | None = None
    """Chat template by name (chatml, alpaca, puna, plain). Default: the one that the model comes with."""
    format: DataFormat | None = None
    """Format of the data. Default: by the fields of each record."""
    context: Positive | None = None
    """Tokens per packed row, and of the longest example. Default: the model's context, at most 1024."""
    held_out: Annotated[Fraction, Lt(1)] = 0.01
    """Share of the examples that are held out for the validation loss."""
    max_bad: Fraction = 0.1
    """Share of malformed records above which the data is refused."""
    epochs: PositiveNumber = 3.0
    """Number of passes over the data."""
    steps: Positive | None = None
    """Number of optimiser steps. Default: those of --epochs."""
    batch_tokens: Positive = 16_384
    """Tokens per optimiser step, padding included; a multiple of the context."""
    micro_batch: Positive = 4
    """Largest number of rows per forward pass; gradients are accumulated over a step."""
    lr: PositiveNumber | None = None
    """Learning rate, constant after warm-up. Default: 2e-5, with LoRA 2e-4."""
    warmup: Fraction = 0.03
    """Share of the steps in which the learning rate rises."""
    weight_decay: NonNegativeNumber = 0.0
    """Weight decay of matrices."""
