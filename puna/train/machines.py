"""The machines that a plan can be made for: those of machines.toml, and of a user's file in the same form."""

import tomllib
from dataclasses import dataclass, fields
from math import inf
from pathlib import Path
from typing import Any

MACHINES = Path(__file__).with_name("machines.toml")


@dataclass(frozen=True)
class Machine:
    """One GPU of a cluster and its connections; units as in machines.toml."""

    name: str
    memory_gb: float
    peak_tflops: float
    gpus_per_node: int
    link_gbs: float
    network_gbs: float
    watts: float
    overlaps: bool = True
    """Whether traffic runs beside arithmetic; on a CPU both take the same cores."""
    bf16: bool = True
    """Whether it multiplies bf16 matrices; training is in fp32 where not."""


def machine(name: str, extra: Path | None = None) -> Machine:
    """A machine by its name, from machines.toml or from a file in the same form.

    Raises:
        ValueError: an unknown name, naming those there are; a file that is not TOML, or lacks a field.
    """
    tables = tomllib.loads(MACHINES.read_text(encoding="utf-8"))
    if extra is not None:
        try:
            tables |= tomllib.loads(extra.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ValueError(f"{extra} cannot be read as a file of machines: {error}") from error
    if name not in tables:
        raise ValueError(f"unknown machine {name!r}; choose one of: {', '.join(tables)}, here")
    values: dict[str, Any] = dict(tables[name]) if isinstance(tables[name], dict) else {}
    bf16 = values.pop("bf16", True)
    if not isinstance(bf16, bool):
        raise ValueError(f"machine {name!r}: bf16 is {bf16!r}; expected true or false")
    wanted = [item.name for item in fields(Machine) if item.name not in ("name", "overlaps", "bf16")]
    for key in wanted:
        value: Any = values.get(key)
        is_number = isinstance(value, int if key == "gpus_per_node" else int | float)
        if isinstance(value, bool) or not is_number or not 0 < value < inf:
            kind = "whole number" if key == "gpus_per_node" else "number"
            raise ValueError(f"machine {name!r}: {key} is {value!r}; expected a positive {kind}")
    if unknown := set(values) - set(wanted):
        raise ValueError(
            f"machine {name!r}: unknown field {min(unknown)!r}; the fields are {', '.join(wanted)}, bf16"
        )
    return Machine(name, **values, bf16=bf16)
