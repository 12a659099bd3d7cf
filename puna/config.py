"""A run's whole configuration: typed, checked, written beside the weights, read back to reproduce the run.

    recipe 15m ─> RunConfig ─> --section.field value ─> validate ─> RUN/config.json ─> --config RUN

The docstring under a field is its help text on the command line, where --schedule.batch-tokens sets
`schedule.batch_tokens`. The sections are in config_model.py and config_sections.py, which are imported from
here; puna/recipes.py holds the defaults of each model size.
"""

import dataclasses
import json
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le, Lt

from puna.config_model import ModelConfig, RopeScaling
from puna.config_sections import (
    Activations,
    ComputeConfig,
    DataFormat,
    EvalConfig,
    FinetuneConfig,
    LoraConfig,
    MeshConfig,
    MixtureConfig,
    OptimConfig,
    ParallelConfig,
    SaveConfig,
    ScheduleConfig,
    WatchConfig,
)
from puna.config_upgrade import upgrade
from puna.files import read_json
from puna.rundir import CONFIG
from puna.validation import (
    Count,
    Fraction,
    NonNegativeNumber,
    PositiveNumber,
    check,
    check_typed,
    from_dict,
    require,
    strict,
)

__all__ = [
    "Activations",
    "ComputeConfig",
    "DataFormat",
    "EvalConfig",
    "FinetuneConfig",
    "LoraConfig",
    "MeshConfig",
    "MixtureConfig",
    "ModelConfig",
    "OptimConfig",
    "ParallelConfig",
    "RopeScaling",
    "RunConfig",
    "Sampling",
    "SaveConfig",
    "ScheduleConfig",
    "TuneConfig",
    "WatchConfig",
    "read_config",
    "run_config",
    "to_dict",
]


@strict
@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a training run."""

    recipe: str = "15m"
    """Recipe that gives default sizes and optimiser settings: tiny, 15m, 110m, 1b, 7b, 13b, 33b or 65b."""
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
        check_typed(self)


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
