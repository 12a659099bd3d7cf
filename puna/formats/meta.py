"""Meta's own files: params.json and consolidated.NN.pth, one file per model-parallel part.

    params.json            sizes; without ffn_dim (the tensors show it) and the context
    consolidated.00.pth    a zip: data.pkl names tensors and their storages, data/0, data/1 … are the bytes
    consolidated.01.pth
    tokenizer.model        here or one folder up

    embedding        tok_embeddings.weight                split by columns (Llama 3: by rows)
    attention_norm   layers.N.attention_norm.weight       in every part
    wq wk wv         layers.N.attention.{wq,wk,wv}.weight by rows
    wo               layers.N.attention.wo.weight         by columns
    ffn_norm         layers.N.ffn_norm.weight             in every part
    w1 w3            layers.N.feed_forward.{w1,w3}.weight by rows
    w2               layers.N.feed_forward.w2.weight      by columns
    norm             norm.weight                          in every part
    output           output.weight                        by rows

Rotary rows hold pairs together. A pickle can run code, so files are loaded with `weights_only`. Meta has
no tied embeddings: an output bitwise equal to the embedding is read as tied.
"""

import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from puna.config import ModelConfig, RopeScaling
from puna.files import read_object, write_json
from puna.formats.fields import Fields, named
from puna.formats.torch_zip import TorchZipWriter
from puna.model.parts import (
    FLOATS,
    SPLIT_AXIS,
    Part,
    Source,
    cast,
    check_shapes,
    parts,
    to_halves,
    to_pairs,
    tokenizer_beside,
)
from puna.retry import one_line

PARAMS = "params.json"
PARTS = (1, 2, 4, 8)
REMAP_BYTES = 1 << 24
CONTEXT = 2048  # the paper's; params.json does not say
NAMES = {
    "embedding": "tok_embeddings.weight",
    "attention_norm": "layers.{layer}.attention_norm.weight",
    "wq": "layers.{layer}.attention.wq.weight",
    "wk": "layers.{layer}.attention.wk.weight",
    "wv": "layers.{layer}.attention.wv.weight",
    "wo": "layers.{layer}.attention.wo.weight",
    "ffn_norm": "layers.{layer}.ffn_norm.weight",
    "w1": "layers.{layer}.feed_forward.w1.weight",
    "w3": "layers.{layer}.feed_forward.w3.weight",
    "w2": "layers.{layer}.feed_forward.w2.weight",
    "norm": "norm.weight",
    "output": "output.weight",
}
_KNOWN = {
    "dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "multiple_of", "ffn_dim_multiplier",
    "norm_eps", "rope_theta", "use_scaled_rope", "rope_scaling_factor", "rope_high_freq_factor",
    "max_batch_size", "max_seq_len",
}  # fmt: skip


class MetaSource:
    """A directory with params.json and 1, 2, 4 or 8 consolidated.NN.pth."""

    def __init__(self, directory: Path) -> None:
        """Read the sizes, and every part's names and shapes.

        Raises:
            ValueError: naming the file and what is wrong with it, a pickle with code in it among them.
        """
        file = directory / PARAMS
        self.tokenizer = tokenizer_beside(directory.parent) | tokenizer_beside(directory)
        self._files = sorted(directory.glob("consolidated.*.pth"))
        expected = [f"consolidated.{number:02}.pth" for number in range(len(self._files))]
        if [path.name for path in self._files] != expected or len(self._files) not in PARTS:
            found = ", ".join(path.name for path in self._files) or "none"
            raise ValueError(
                f"{directory} holds the parts {found}; a model is 1, 2, 4 or 8 of them, numbered from 00"
            )
        held = [_load(path) for path in self._files]
        for path, tensors in zip(self._files, held, strict=True):
            _check_room(path, tensors)
        self.config = _model_config(file, read_object(file), held)
        self._dtypes = {name: tensor.dtype for name, tensor in held[0].items()}
        # Llama 3 splits the embedding by rows, LLaMA 1 and 2 by columns.
        by_rows = held[0][NAMES["embedding"]].shape[1] == self.config.dim
        self._axis = SPLIT_AXIS | {"embedding": 0 if by_rows else 1}
        for path, tensors in zip(self._files, held, strict=True):
            wanted = ((part.name(NAMES), self._shape(part)) for part in parts(self.config))
            shapes = {name: tuple(t.shape) for name, t in tensors.items() if not name.endswith("rope.freqs")}
            check_shapes(path, wanted, shapes)
        del held
        self._mapped: list[dict[str, Tensor]] = []
        self._bytes_read = 0
        self.config = self._settle(Fields(file, read_object(file)))

    def _shape(self, part: Part) -> tuple[int, ...]:
        """A part's shape within one file."""
        axis = self._axis.get(part.role)
        count = len(self._files)
        return tuple(size // count if i == axis else size for i, size in enumerate(part.shape))

    def _settle(self, fields: Fields) -> ModelConfig:
        """What only the tensors show: whether the output is the embedding."""
        first, *_, last = parts(self.config)
        tied = torch.equal(self.read(first), self.read(last))
        config = replace(self.config, tied_embeddings=tied)
        if not fields.flag("use_scaled_rope"):
            return config
        # Llama 3.1 scales by 8; the small models of 3.2, the only tied ones, by 32, which params.json omits.
        scaling = RopeScaling(
            factor=fields.number("rope_scaling_factor", 32.0 if tied else 8.0),
            high_freq_factor=fields.number("rope_high_freq_factor", 4.0),
        )
        return replace(config, rope_scaling=scaling)

    def dtype(self, part: Part) -> torch.dtype:
        """The precision that `read` gives."""
        return self._dtypes[part.name(NAMES)]

    def read(self, part: Part) -> Tensor:
        """One parameter, merged from all files, with its rows in puna's order."""
        axis, name = self._axis.get(part.role), part.name(NAMES)
        whole = torch.empty(part.shape, dtype=self.dtype(part))
        pieces = [whole] if axis is None else whole.chunk(len(self._files), axis)
        # Pages that were read stay in memory while a file is mapped, so it is mapped anew after some bytes.
        if not self._mapped or self._bytes_read > REMAP_BYTES:
            self._mapped, self._bytes_read = [], 0
            self._mapped = [_mapped(path) for path in self._files]
        self._bytes_read += whole.nbytes
        for held, piece in zip(self._mapped, pieces, strict=axis is not None):
            piece.copy_(held[name])
        return to_halves(whole, part.heads)


def _mapped(path: Path) -> Any:
    """What a file holds; a pickle that asks for more than tensors is not followed."""
    try:
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors ({_culprit(error)}); it could run code, and is not opened"
        ) from error
    except Exception as error:  # torch raises many kinds on damaged files, none documented
        raise ValueError(f"{path} cannot be read ({one_line(error)}); get the file again") from error


def _load(path: Path) -> dict[str, Tensor]:
    """A file's tensors, mapped, not read, and checked to be nothing else.

    Raises:
        ValueError: when it is damaged, or holds anything but tensors in fp32, bf16 or fp16.
    """
    held = _mapped(path)
    if not isinstance(held, dict) or not held:
        raise ValueError(f"{path} holds a {type(held).__name__}; it must be tensors by name")
    for name, tensor in held.items():
        is_plain = (
            isinstance(tensor, Tensor) and tensor.layout == torch.strided and tensor.device.type == "cpu"
        )
        if not isinstance(name, str) or not is_plain or tensor.dtype not in FLOATS:
            raise ValueError(f"{path}: {name!r} is no tensor in fp32, bf16 or fp16, which is all puna reads")
    return held


def _check_room(path: Path, held: dict[str, Tensor]) -> None:
    """A mapped tensor may claim more bytes than its record has, and torch would show those that follow."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in held.values()}
    claimed = sum(storage.nbytes() for storage in storages.values())
    with zipfile.ZipFile(path) as records:
        there = sum(record.file_size for record in records.infolist() if "/data/" in record.filename)
    if claimed > there:
        raise ValueError(
            f"{path}: its tensors claim {claimed} bytes, and it holds {there}; get the file again"
        )


def _culprit(error: BaseException) -> str:
    """The line of torch's long advice that names what was refused."""
    lines = [line.strip() for line in str(error).splitlines()]
    named = next((line for line in lines if "GLOBAL" in line or "Unsupported" in line), lines[0])
    return one_line(ValueError(named.split(". Please")[0]))[:120]


def _model_config(file: Path, values: dict[str, Any], held: list[dict[str, Tensor]]) -> ModelConfig:
    fields = Fields(file, values)
    for name in values:
        if name not in _KNOWN and values[name] is not None:
            raise fields.wrong(name, "puna does not implement what it asks for")

    def rows(role: str) -> int:
        name = NAMES[role].format(layer=0)
        found = [tensors[name] for tensors in held if name in tensors and tensors[name].ndim == 2]
        if len(found) < len(held):
            raise ValueError(f"{file.parent}/consolidated.*.pth lack the matrix {name}; get the files again")
        return sum(tensor.shape[0] for tensor in found)

    rows("embedding")
    config = ModelConfig(
        dim=fields.whole("dim"),
        n_layers=fields.whole("n_layers"),
        n_heads=fields.whole("n_heads"),
        ffn_dim=rows("w1"),
        vocab_size=rows("output"),
        context=fields.whole("max_seq_len", CONTEXT),
        norm_eps=fields.number("norm_eps"),
        n_kv_heads=fields.whole("n_kv_heads", fields.whole("n_heads")),
        rope_base=fields.number("rope_theta", 10_000.0),
    )
    with named(file):
        config.validate()
    if fields.whole("vocab_size", -1) not in (-1, config.vocab_size):
        raise fields.wrong("vocab_size", f"the output has {config.vocab_size} rows")
    return config


def write_meta(
    source: Source,
    directory: Path,
    dtype: torch.dtype | None,
    advance: Callable[[Part], None],
    count: int = 1,
) -> None:
    """Write params.json and `count` model-parallel parts, a tensor at a time into all of them.

    Raises:
        ValueError: when the model's sizes cannot be divided by `count`, or params.json cannot say them.
    """
    if count not in PARTS:
        raise ValueError(f"--parts is {count}; Meta's files are 1, 2, 4 or 8 parts")
    config = source.config
    for name in ("n_heads", "kv_heads", "ffn_dim", "vocab_size", "dim"):
        if getattr(config, name) % count:
            raise ValueError(
                f"model.{name} is {getattr(config, name)}, not divisible into --parts {count}; give fewer"
            )
    params = params_values(config)
    files = [TorchZipWriter(directory / f"consolidated.{number:02}.pth") for number in range(count)]
    try:
        for part in parts(config):
            tensor = to_pairs(cast(source.read(part), dtype or source.dtype(part), part.role), part.heads)
            # Meta's files always have an output, a tied model's is its embedding.
            also = ["output"] if config.tied_embeddings and part.role == "embedding" else []
            for role in [part.role, *also]:
                axis = SPLIT_AXIS.get(role)
                pieces = [tensor] * count if axis is None else tensor.chunk(count, axis)
                for file, piece in zip(files, pieces, strict=True):
                    file.write(NAMES[role].format(layer=part.layer), piece)
            advance(part)
        for file in files:
            file.finish()
    finally:
        for file in files:
            file.close()
    write_json(directory / PARAMS, params)


def params_values(config: ModelConfig) -> dict[str, Any]:
    """A params.json as Meta's code reads it: with the rule that gives ffn_dim back.

    Raises:
        ValueError: when it has no field for what the configuration says.
    """
    values: dict[str, Any] = {
        "dim": config.dim,
        "n_layers": config.n_layers,
        "n_heads": config.n_heads,
        "vocab_size": config.vocab_size,
        "norm_eps": config.norm_eps,
        **_ffn_rule(config),
    }
    if config.kv_heads != config.n_heads:
        values["n_kv_heads"] = config.kv_heads
    if config.rope_base != 10_000:
        values["rope_theta"] = config.rope_base
    scaling = config.rope_scaling
    if scaling is not None:
        if (scaling.low_freq_factor, scaling.original_context) != (1, 8192):
            raise ValueError(
                "params.json has no field for model.rope_scaling.low_freq_factor and .original_context, "
                f"which are {scaling.low_freq_factor:g} and {scaling.original_context}, not 1 and 8192; "
                "convert to hf or gguf"
            )
        values["use_scaled_rope"] = True
        if scaling.factor != (32 if config.tied_embeddings else 8):
            values["rope_scaling_factor"] = scaling.factor
        if scaling.high_freq_factor != 4:
            values["rope_high_freq_factor"] = scaling.high_freq_factor
    return values


def _ffn_rule(config: ModelConfig) -> dict[str, Any]:
    """What Meta's code finds ffn_dim by: ⌊multiplier · ⌊8/3 · dim⌋⌋, rounded up to a multiple."""
    base = 8 * config.dim // 3
    for multiple in (256, 1024, 4096, 128, 64, 32, 16, 8, 4, 2, 1):
        if -(-base // multiple) * multiple == config.ffn_dim:
            return {"multiple_of": multiple}
    # A multiple that divides ffn_dim, and a multiplier that lands within the last step below it.
    multiple = next(m for m in (256, 128, 64, 32, 16, 8, 4, 2, 1) if config.ffn_dim % m == 0)
    multiplier = (config.ffn_dim - multiple // 2 + 0.5) / base
    return {"multiple_of": multiple, "ffn_dim_multiplier": round(multiplier, 6)}
