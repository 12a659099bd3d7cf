"""A run's whole configuration: typed, checked, written beside the weights, read back to reproduce the run.

    recipe 15m ─> RunConfig ─> --section.field value ─> validate ─> RUN/config.json ─> --config RUN

The docstring under a field is its help text on the command line, where --schedule.batch-tokens sets
`schedule.batch_tokens`. puna/recipes.py holds the defaults of each model size.
"""

import dataclasses
import json
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

from puna.config_upgrade import upgrade
from puna.files import read_json
from puna.rundir import CONFIG
from puna.validation import (
    Count,
    Fraction,
    NonNegativeNumber,
    Positive,
    PositiveNumber,
    check,
    from_dict,
    require,
    strict,
)

Activations = Literal["manual", "selective", "full", "none"]


@strict
@dataclass(frozen=True)
class RopeScaling:
    """RoPE scaling of Llama 3.1 and later, which extends the context of a pretrained model.

    Frequencies are divided by `factor` for wavelengths above original_context / low_freq_factor, unchanged
    for those below original_context / high_freq_factor, and interpolated smoothly between the two.
    """

    factor: Annotated[float, Ge(1)]
    """RoPE scaling factor (Llama 3.1): by how much the context is extended; scaling is off when unset."""
    low_freq_factor: PositiveNumber = 1.0
    """RoPE scaling: wavelengths above original_context / low_freq_factor are scaled fully."""
    high_freq_factor: PositiveNumber = 4.0
    """RoPE scaling: wavelengths below original_context / high_freq_factor are not scaled."""
    original_context: Positive = 8192
    """RoPE scaling: the context that the model was pretrained with, in tokens."""


@strict
@dataclass(frozen=True)
class ModelConfig:
    """The architecture (paper section 2.2)."""

    dim: Positive = 288
    """Width of the residual stream, D."""
    n_layers: Positive = 6
    """Number of transformer blocks."""
    n_heads: Positive = 6
    """Number of attention heads; each has dim / n_heads dimensions."""
    ffn_dim: Positive = 768
    """Hidden width of the SwiGLU feed-forward layer."""
    vocab_size: Positive = 32_000
    """Number of tokens in the vocabulary; it must be that of the shards' tokenizer."""
    context: Positive = 512
    """Tokens per training sequence, and the longest sequence in generation."""
    norm_eps: PositiveNumber = 1e-6
    """Epsilon of RMSNorm, added to the mean square."""
    n_kv_heads: Positive | None = None
    """Number of key and value heads (grouped-query attention); defaults to n_heads."""
    tied_embeddings: bool = False
    """Share the embedding's weights with the output projection."""
    rope_base: Annotated[float, Gt(1)] = 10_000.0
    """Base of the rotary position embedding (theta)."""
    rope_scaling: RopeScaling | None = None

    @property
    def kv_heads(self) -> int:
        """Number of key and value heads, resolved."""
        return self.n_kv_heads or self.n_heads

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.dim // self.n_heads

    def validate(self) -> None:
        """Raises ValueError naming the first invalid field, or those that do not fit together."""
        check(self, "model")
        require(
            self.dim % self.n_heads == 0,
            f"model.dim is {self.dim}, not divisible by model.n_heads {self.n_heads}; change either",
        )
        require(
            self.head_dim % 2 == 0,
            f"model.dim / model.n_heads is {self.head_dim}; RoPE rotates pairs, so it must be even",
        )
        require(
            self.n_heads % self.kv_heads == 0,
            f"model.n_kv_heads is {self.kv_heads}; it must divide model.n_heads {self.n_heads}",
        )
        if (scaling := self.rope_scaling) is not None:
            require(
                scaling.low_freq_factor < scaling.high_freq_factor,
                f"model.rope_scaling.low_freq_factor is {scaling.low_freq_factor}; it must be below "
                f"model.rope_scaling.high_freq_factor {scaling.high_freq_factor}",
            )


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
class RunConfig:
    """Everything that decides a training run."""

    recipe: str = "15m"
    """Recipe that gives the default sizes and optimiser settings; see puna/recipes.py."""
    data: tuple[str, ...] = ()
    """Directories of token shards, as written by `puna shards`."""
    seed: int = 1
    """Random seed for weight initialisation."""
    model: ModelConfig = field(default_factory=ModelConfig)
    mixture: MixtureConfig = field(default_factory=MixtureConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    save: SaveConfig = field(default_factory=SaveConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    def validate(self) -> None:
        """Raises ValueError naming the first invalid field and how to fix it."""
        check(self)
        self.model.validate()
        sequences, rest = divmod(self.schedule.batch_tokens, self.row_tokens)
        require(
            rest == 0,
            f"schedule.batch_tokens is {self.schedule.batch_tokens}, not a multiple of "
            f"{'' if isinstance(self, TuneConfig) else 'model.'}context {self.row_tokens}; change either",
        )
        self.parallel.divide(self.model, sequences)
        own = sequences // self.parallel.dp
        require(
            own % min(self.schedule.micro_batch, own) == 0,
            f"schedule.micro_batch is {self.schedule.micro_batch}; it must divide the {own} sequences "
            f"per step{' of a rank' if self.parallel.dp > 1 else ''}",
        )
        require(bool(self.data), "data names no directory; give token shards with --data DIR")

    @property
    def batch_sequences(self) -> int:
        """Sequences per step."""
        return self.schedule.batch_tokens // self.row_tokens

    @property
    def row_tokens(self) -> int:
        """Tokens per sequence."""
        return self.model.context


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
    format: str | None = None
    """Format of the data: messages, sharegpt, alpaca, tasks, prompt, flan or text. Default: by the fields of
    each record."""
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


@strict
@dataclass(frozen=True)
class TuneConfig(RunConfig):
    """Everything that decides a finetuning run."""

    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    lora: LoraConfig | None = None

    @property
    def row_tokens(self) -> int:
        """Tokens per packed row."""
        return self.finetune.context or min(self.model.context, 1024)


@strict
@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: the repetition penalty first, then temperature, top-k, top-p, min-p.

    Temperature 0 is greedy, and needs no filter.
    """

    temperature: NonNegativeNumber = 0.8
    """Sampling temperature; 0 always picks the most likely token, 1 samples the model's distribution."""
    top_k: Count = 0
    """Sample from the k most likely tokens; 0 disables."""
    top_p: Annotated[PositiveNumber, Le(1)] = 0.95
    """Sample from the fewest most likely tokens of total probability p (Holtzman et al. 2020); 1 disables."""
    min_p: Fraction = 0.0
    """Sample from tokens at least p times as likely as the best one (Nguyen et al. 2024); 0 disables."""
    repetition_penalty: PositiveNumber = 1.0
    """Penalty on the logits of tokens already in the text (Keskar et al. 2019); 1 disables."""
    seed: Annotated[int, Ge(-(1 << 63)), Lt(1 << 63)] = 1
    """Random seed of sampling; the same seed gives the same text."""

    def validate(self) -> None:
        """Raises ValueError naming the first invalid option as it is typed: top-p."""
        try:
            check(self)
        except ValueError as error:
            raise ValueError(str(error).replace("_", "-")) from None


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as JSON values."""
    return typing.cast(dict[str, Any], json.loads(json.dumps(dataclasses.asdict(config))))


def run_config(values: Any) -> RunConfig:
    """Build a RunConfig from the JSON values of a config.json, also of one that version 0.1 wrote.

    That of a finetuning run is a TuneConfig.

    Raises:
        ValueError: naming an unknown field or the first invalid value.
    """
    kind = TuneConfig if isinstance(values, dict) and "finetune" in values else RunConfig
    return from_dict(kind, upgrade(values))


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
    return run_config(values)
