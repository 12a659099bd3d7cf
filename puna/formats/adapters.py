"""Low-rank adapters (LoRA) in the layout of PEFT, and a model with an adapter merged in.

    adapter_config.json          the base model, r, alpha, the matrices that are adapted
    adapter_model.safetensors    lora_A (r, in) and lora_B (out, r) of each, in Hugging Face's names:
                                 base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight …

A merged matrix is W + alpha/r · B @ A, summed in fp32, and rounded once when it is written. Rotary rows
lie in halves, as puna's do, so that q_proj and k_proj need no reordering.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from puna.config import ModelConfig, TuneConfig, run_config
from puna.files import read_object, write_json
from puna.formats.huggingface import NAMES
from puna.model.parts import Part, Source, parts, tokenizer_beside
from puna.rundir import CONFIG, WEIGHTS, newest_weights, parts_of

ADAPTER_CONFIG, ADAPTER = "adapter_config.json", "adapter_model.safetensors"
MODULES = {role: NAMES[role].split(".")[-2] for role in ("wq", "wk", "wv", "wo", "w1", "w3", "w2")}
"""The matrices of a layer that can be adapted, and their names in Hugging Face's models."""
_PREFIX = "base_model.model."


def adapted_roles(targets: Sequence[str], config: ModelConfig) -> tuple[str, ...]:
    """The matrices that `targets` name: wq or q_proj …; all-linear names all of a layer.

    Raises:
        ValueError: an unknown name, or the embedding or the output.
    """
    by_name = {module: role for role, module in MODULES.items()} | {role: role for role in MODULES}
    if "all-linear" in targets:
        return tuple(MODULES)
    for name in targets:
        if name in by_name:
            continue
        if name in ("output", "lm_head", "embedding", "embed_tokens"):
            tied = config.tied_embeddings
            reason = "is tied to the embedding: an adapter would change both" if tied else "is not supported"
            raise ValueError(f"lora.targets names {name}, which {reason}; adapt the layers: all-linear")
        known = ", ".join([*MODULES.values(), *MODULES, "all-linear"])
        raise ValueError(f"lora.targets names {name!r}; expected some of: {known}")
    if not targets:
        raise ValueError("lora.targets names no matrix; give some, or all-linear")
    return tuple(role for role in MODULES if role in {by_name[name] for name in targets})


@dataclass(frozen=True)
class Adapter:
    """An adapter's factors by the parameter that they are added to: A (r, in), B (out, r), scale."""

    factors: Mapping[str, tuple[Tensor, Tensor, float]]

    def merged(self, part: Part, weight: Tensor) -> Tensor:
        """The weight with its adapter, fp32."""
        if part.parameter not in self.factors:
            return weight.float()
        A, B, scale = self.factors[part.parameter]
        return torch.addmm(weight.float(), B.float(), A.float(), alpha=scale)


class AdaptedSource:
    """A model with an adapter merged in; every part is read in fp32."""

    def __init__(self, base: Source, adapter: Adapter, tokenizer: dict[str, Path | bytes]) -> None:
        self.config, self.tokenizer = base.config, tokenizer or base.tokenizer
        self.base, self.adapter = base, adapter

    def dtype(self, part: Part) -> torch.dtype:
        """The precision that `read` gives."""
        return torch.float32

    def read(self, part: Part) -> Tensor:
        """One parameter, merged."""
        return self.adapter.merged(part, self.base.read(part))


def base_of(path: Path) -> Path | None:
    """The base model of a directory of PEFT's or of a run that trained an adapter; None for other models.

    Raises:
        ValueError: it is not there.
    """
    if (file := path / ADAPTER_CONFIG).is_file():
        return _base_path(read_object(file).get("base_model_name_or_path"), file)
    config = _adapting(path)
    return _base_path(config.finetune.model, path / CONFIG) if config else None


def open_adapted(path: Path, open_base: Callable[[Path], Source]) -> AdaptedSource | None:
    """A directory of PEFT's, or a run that trained an adapter, with its base model; None for other models.

    Raises:
        ValueError: naming the file and what is wrong with it.
    """
    if (file := path / ADAPTER_CONFIG).is_file():
        values = read_object(file)
        source, base = _open_base(values.get("base_model_name_or_path"), file, open_base)
        return AdaptedSource(source, _peft_adapter(path, values, source.config), tokenizer_beside(path))
    if (config := _adapting(path)) is None or config.lora is None:
        return None
    source, base = _open_base(config.finetune.model, path / CONFIG, open_base)
    held = read_tensors(newest_weights(path) / WEIGHTS)
    names = [name.removesuffix("_lora_A") for name in held if name.endswith("_lora_A")]
    factors = {name: (held[f"{name}_lora_A"], held[f"{name}_lora_B"], config.lora.scale) for name in names}
    return AdaptedSource(source, _checked(Adapter(factors), base, path), tokenizer_beside(path))


def _adapting(path: Path) -> TuneConfig | None:
    """The configuration of a run that trained an adapter; None for other models."""
    if not (file := path / CONFIG).is_file() or "lora" not in (values := read_object(file)):
        return None
    config = run_config(values)
    return config if isinstance(config, TuneConfig) and config.lora else None


def _open_base(name: Any, file: Path, open_base: Callable[[Path], Source]) -> tuple[Source, dict[str, Part]]:
    source = open_base(_base_path(name, file))
    return source, {part.parameter: part for part in parts(source.config)}


def _base_path(name: Any, file: Path) -> Path:
    base = Path(str(name))
    if not base.is_absolute() and not base.exists():
        base = file.parent / base
    if not name or not base.exists():
        raise ValueError(
            f"{file}: the adapter's base model {name} is not there; put it back, or correct its path"
        )
    return base


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of the files that several machines wrote in its place.

    Raises:
        ValueError: a damaged file, which the message names.
    """
    return {name: tensor for part in parts_of(file) or [file] for name, tensor in _load(part).items()}


def _load(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} cannot be read ({error}); get the file again") from error


def _checked(adapter: Adapter, base: Mapping[str, Part], path: Path) -> Adapter:
    """The adapter, once its factors are known to fit the base model."""
    for name, (A, B, _) in adapter.factors.items():
        if name not in base or (B.shape[0], A.shape[1]) != base[name].shape or A.shape[0] != B.shape[1]:
            held = f"A {tuple(A.shape)}, B {tuple(B.shape)}"
            raise ValueError(f"{path}: {name} has {held}, which do not fit its base model; give another")
    return adapter


def _peft_adapter(path: Path, values: dict[str, Any], config: ModelConfig) -> Adapter:
    file = path / ADAPTER_CONFIG
    wanted = {"peft_type": "LORA", "bias": "none", "fan_in_fan_out": False, "use_dora": False}
    for name, value in wanted.items():
        if values.get(name, value) != value:
            raise ValueError(f"{file}: {name} is {values[name]!r}; puna reads adapters with {value!r} alone")
    for name in ("modules_to_save", "rank_pattern", "alpha_pattern", "layer_replication"):
        if values.get(name):
            raise ValueError(f"{file}: {name} is not supported; merge the adapter with peft, then convert")
    held = {name.removeprefix(_PREFIX): tensor for name, tensor in _load(path / ADAPTER).items()}
    factors = {}
    base = {part.parameter: part for part in parts(config)}
    for part in base.values():
        module = part.name(NAMES).removesuffix(".weight")
        A, B = (held.pop(f"{module}.lora_{factor}.weight", None) for factor in "AB")
        if A is None or B is None:
            continue
        root = len(A) ** 0.5 if values.get("use_rslora") else len(A)
        factors[part.parameter] = A, B, float(values["lora_alpha"]) / root
    if held or not factors:
        odd = next(iter(held), "no lora_A")
        raise ValueError(f"{path / ADAPTER} holds {odd}, which is not of an adapter that puna reads")
    if config.tied_embeddings and "embedding" in factors:
        raise ValueError(f"{path / ADAPTER} adapts the embedding, which is tied to the output: not supported")
    return _checked(Adapter(factors), base, path)


def write_adapter(directory: Path, config: TuneConfig, held: Mapping[str, Tensor], base: Path) -> None:
    """Write the factors of a run, by puna's names, as PEFT does."""
    assert config.lora is not None
    tensors = {}
    for part in parts(config.model):
        for factor in "AB":
            if (name := f"{part.parameter}_lora_{factor}") in held:
                module = part.name(NAMES).removesuffix(".weight")
                tensors[f"{_PREFIX}{module}.lora_{factor}.weight"] = held[name].float().contiguous()
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / ADAPTER, {"format": "pt"})
    modules = [MODULES[role] for role in adapted_roles(config.lora.targets, config.model)]
    write_json(
        directory / ADAPTER_CONFIG,
        {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": str(base.resolve()),
            "r": config.lora.r,
            "lora_alpha": config.lora.alpha,
            "lora_dropout": config.lora.dropout,
            "target_modules": modules,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "init_lora_weights": True,
        },
    )
