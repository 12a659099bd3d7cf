"""What the verbs share: common options, and how a result is printed."""

import codecs
import json as json_module
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from puna.config import Sampling
from puna.devices import DeviceName
from puna.files import human_bytes, human_seconds

if TYPE_CHECKING:
    from puna.generate.engine import Engine
    from puna.manifest import Manifest

STOPPED = 130  # the exit code after Ctrl-C

Many = Parameter(consume_multiple=True, negative=())
Json = Annotated[bool, Parameter(name="--json", help="Print the result as JSON.")]


@dataclass(frozen=True)
class ModelOptions:
    """Which model an engine runs, in which precision, and where."""

    model: str
    """Run directory, Hugging Face or Meta directory, .gguf file, or smollm2 (downloaded on first use)."""
    weights: Literal["fp32", "bf16", "int8", "int4"] | None = None
    """Precision of the weights in memory. Default: a run's training precision; bf16 for a .gguf file; for
    Hugging Face and Meta directories fp32 if the weights are stored in fp32, else bf16."""
    cache_dtype: Literal["fp32", "bf16", "fp16"] | None = None
    """Precision of the KV cache. Default: fp32 with fp32 weights, else bf16."""
    device: DeviceName = "auto"
    """Device that computes. auto: a CUDA device if there is one, else the CPU."""

    def load(self, max_batch: int, cache_tokens: int | None = None) -> "Engine":
        """The engine; downloads a model that is given by name.

        Raises:
            ValueError: when there is no such model or device, or the files are invalid.
        """
        from puna.api_models import find_model
        from puna.generate.load import load_engine

        return load_engine(
            find_model(self.model),
            weights=self.weights,
            cache_dtype=self.cache_dtype,
            cache_tokens=cache_tokens,
            max_batch=max_batch,
            device=self.device,
        )


Model = Annotated[ModelOptions, Parameter(name="*")]
Draws = Annotated[Sampling, Parameter(name="*", group="Sampling")]


def say(text: str) -> None:
    """Tell what is going on, beside the result."""
    print(text, file=sys.stderr)


def quoted(*values: object) -> str:
    """Paths as a shell reads them, for a command that is to be pasted."""
    return shlex.join(map(str, values))


def energy_lines(manifest: "Manifest") -> list[str]:
    """The energy of the work, where the manifest has it."""
    return [str(manifest.energy)] if manifest.energy else []


def as_json(result: dict[str, Any]) -> str:
    """A result on one line; in ASCII where standard output takes no UTF-8."""
    is_utf8 = codecs.lookup(sys.stdout.encoding or "utf-8").name == "utf-8"
    return json_module.dumps(result, ensure_ascii=not is_utf8)


def print_result(result: dict[str, Any], json: bool, lines: Sequence[str]) -> None:
    """Print a verb's result: all of it as JSON, or a summary in lines."""
    print(as_json(result) if json else "\n".join(lines))


def print_stage(manifest: "Manifest", json: bool, lines: Iterable[str], out: object, after: str) -> None:
    """Print what a stage wrote: its counts, where, its energy, and the next command."""
    work = f"{out}: {human_bytes(manifest.bytes)} in {human_seconds(manifest.seconds)} of work"
    result = {"finished": True, **manifest.to_json()}
    print_result(result, json, [*lines, work, *energy_lines(manifest), f"next: {after}"])
