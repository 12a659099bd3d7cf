"""GGUF, llama.cpp's format: one file with the sizes, the tokenizer, and the tensors, quantised or not.

    reads   F32 F16 BF16 (as they are) · Q8_0 Q4_0 Q4_1 Q4_K Q6_K (dequantised to fp32)
    writes  F32 F16 BF16 · Q8_0 · Q4_0, with the output, or the embedding that is it, in Q8_0

    embedding        token_embd.weight            ffn_norm    blk.N.ffn_norm.weight
    attention_norm   blk.N.attn_norm.weight       w1 w3 w2    blk.N.ffn_{gate,up,down}.weight
    wq wk wv         blk.N.attn_{q,k,v}.weight    norm        output_norm.weight
    wo               blk.N.attn_output.weight     output      output.weight   (absent when tied)

Rotary rows hold pairs together. Norms are F32 always. Llama 3.1's RoPE scaling is a tensor,
rope_freqs.weight: the divisor of each pair's frequency.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import gcd
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter, LlamaFileType
from gguf import dequantize as dequantize_rows
from gguf import quantize as quantize_rows
from torch import Tensor

from puna.config import ModelConfig, RopeScaling
from puna.formats.fields import Fields, named
from puna.formats.gguf_vocabulary import add_vocabulary
from puna.gguf import TensorPlace, read_header, vocabulary_only
from puna.model.layers import rope_frequencies
from puna.model.parts import VOCABULARY, Part, Source, cast, check_shapes, parts, to_halves, to_pairs
from puna.tokens.tokenizer import Tokenizer

Quantised = Literal["q8_0", "q4_0"]
NAMES = {
    "embedding": "token_embd.weight",
    "attention_norm": "blk.{layer}.attn_norm.weight",
    "wq": "blk.{layer}.attn_q.weight",
    "wk": "blk.{layer}.attn_k.weight",
    "wv": "blk.{layer}.attn_v.weight",
    "wo": "blk.{layer}.attn_output.weight",
    "ffn_norm": "blk.{layer}.ffn_norm.weight",
    "w1": "blk.{layer}.ffn_gate.weight",
    "w3": "blk.{layer}.ffn_up.weight",
    "w2": "blk.{layer}.ffn_down.weight",
    "norm": "output_norm.weight",
    "output": "output.weight",
}
ROPE_FREQS = "rope_freqs.weight"
Kind = GGMLQuantizationType
_PLAIN = {Kind.F32: torch.float32, Kind.F16: torch.float16, Kind.BF16: torch.bfloat16}
_KINDS = {dtype: kind for kind, dtype in _PLAIN.items()}
_QUANTISED = (Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q4_K, Kind.Q6_K)
_FILE_TYPES = {
    Kind.F32: LlamaFileType.ALL_F32,
    Kind.F16: LlamaFileType.MOSTLY_F16,
    Kind.BF16: LlamaFileType.MOSTLY_BF16,
    Kind.Q8_0: LlamaFileType.MOSTLY_Q8_0,
    Kind.Q4_0: LlamaFileType.MOSTLY_Q4_0,
}
_BLOCK_ELEMENTS = 1 << 22  # (de)quantised at a time: the package's own temporaries stay small
# Llama 3.1's numbers, and where this file keeps others: llama.cpp needs only the tensor.
_LOW, _HIGH, _ORIGINAL = (
    "puna.rope.low_freq_factor",
    "puna.rope.high_freq_factor",
    "puna.rope.original_context",
)


# Keys of llama.cpp that change the numbers, older ones too, at the values that do nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "rope.scaling.type": ("none",),
    "rope.scaling.factor": (1.0,),
    "rope.scaling.attn_factor": (1.0,),
    "rope.scaling.yarn_log_multiplier": (0.0,),
    "rope.scale_linear": (1.0,),
    "attention.scale": (0.0,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.causal": (True,),
    "attention.temperature_length": (0,),
    "attention.temperature_scale": (0.0,),
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
    "logit_scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "use_parallel_residual": (False,),
    "leading_dense_block_count": (0,),
    "tensor_data_layout": ("Meta AI original pth",),  # pairs of rotary rows together
}


def _files(path: Path, values: Mapping[str, Any]) -> list[Path]:
    """The files of a model, the first first; `values` are the metadata of one of them.

    Raises:
        ValueError: naming the part that is missing.
    """
    count = values.get("split.count", 1)
    if not isinstance(count, int) or count <= 1:
        return [path]
    found = re.fullmatch(r"(.*)-(\d{5})-of-(\d{5})\.gguf", path.name)
    if found is None or int(found[3]) != count:
        raise ValueError(
            f"{path} is one of {count} files of a split model, whose names end in -00001-of-{count:05}.gguf; "
            "name them so, or merge them: llama-gguf-split --merge FIRST OUT"
        )
    files = [path.with_name(f"{found[1]}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]
    for file in files:
        if not file.is_file():
            raise ValueError(f"{file} is missing, one of the {count} files of a split model; get it")
    return files


class GGUFSource:
    """A .gguf file."""

    def __init__(self, path: Path) -> None:
        """Read the header.

        Raises:
            ValueError: naming what is damaged, or what puna does not implement.
        """
        header = read_header(path)
        first, *others = _files(path, header.values)
        if first != path:
            path, header = first, read_header(first)
        self._path = path
        self._header = header  # held, so that the tokenizer is not read again from the file
        self._tensors = dict(header.tensors)
        self._files = dict.fromkeys(self._tensors, path)
        for other in others:
            for name, place in read_header(other).tensors.items():
                if name in self._tensors:
                    raise ValueError(f"{other} holds {name}, which {self._files[name]} holds too")
                self._tensors[name], self._files[name] = place, other
        values = header.values
        rope = self._tensors.pop(ROPE_FREQS, None)
        self.config = self._model_config(Fields(path, values), rope)
        self.tokenizer: dict[str, Path | bytes] = {}
        if "tokenizer.ggml.model" in values:
            self.tokenizer[VOCABULARY] = vocabulary_only(header)
        wanted = ((part.name(NAMES), part.shape) for part in parts(self.config))
        check_shapes(path, wanted, {name: place.shape for name, place in self._tensors.items()})
        for name, place in self._tensors.items():
            if place.kind not in _PLAIN and place.kind not in _QUANTISED:
                known = ", ".join(kind.name for kind in (*_PLAIN, *_QUANTISED))
                raise ValueError(f"{path}: {name} is stored as {place.kind.name}; puna reads {known}")

    def _model_config(self, fields: Fields, rope: TensorPlace | None) -> ModelConfig:
        fields.only("general.architecture", "llama")
        if fields.values.get("general.architecture") is None:
            raise ValueError(f"{self._path} lacks the key general.architecture; puna reads llama's")
        key = "llama."
        for name in ("expert_count", "attention.sliding_window"):
            fields.only(key + name, 0)
        for name, neutral in NEUTRAL.items():
            fields.only(key + name, *neutral)
        embedding = self._tensors.get(NAMES["embedding"])
        if embedding is None or len(embedding.shape) != 2:
            raise ValueError(f"{self._path} lacks the matrix {NAMES['embedding']}; it holds no whole model")
        n_heads = fields.whole(key + "attention.head_count")
        base: dict[str, Any] = {
            "dim": fields.whole(key + "embedding_length"),
            "n_layers": fields.whole(key + "block_count"),
            "n_heads": n_heads,
            "ffn_dim": fields.whole(key + "feed_forward_length"),
            "vocab_size": embedding.shape[0],
            "context": fields.whole(key + "context_length"),
            "norm_eps": _shortest(fields.number(key + "attention.layer_norm_rms_epsilon")),
            "n_kv_heads": fields.whole(key + "attention.head_count_kv", n_heads),
            "tied_embeddings": NAMES["output"] not in self._tensors,
            "rope_base": _shortest(fields.number(key + "rope.freq_base", 10_000.0)),
        }
        with named(self._path):
            config = ModelConfig(**base)
            config.validate()
            if rope is not None:
                config = replace(config, rope_scaling=self._slowing(config, fields, rope))
                config.validate()
        for name in ("rope.dimension_count", "attention.key_length", "attention.value_length"):
            fields.only(key + name, config.head_dim)
        fields.only(key + "vocab_size", config.vocab_size)
        return config

    def _slowing(self, config: ModelConfig, fields: Fields, place: TensorPlace) -> RopeScaling:
        """What rope_freqs.weight does, as Llama 3.1's rule."""
        held = self._rows(ROPE_FREQS, place).double()
        scaling = RopeScaling(
            factor=_shortest(held.max().item()),
            low_freq_factor=_shortest(fields.number(_LOW, 1.0)),
            high_freq_factor=_shortest(fields.number(_HIGH, 4.0)),
            original_context=fields.whole(_ORIGINAL, 8192),
        )
        computed = _slowing(replace(config, rope_scaling=scaling))
        if held.shape != computed.shape or not torch.allclose(held, computed, rtol=1e-4):
            raise ValueError(
                f"{ROPE_FREQS} is not Llama 3.1's scaling with factor {scaling.factor:g}; "
                "puna implements no other"
            )
        return scaling

    def dtype(self, part: Part) -> torch.dtype:
        """The precision that `read` gives: a quantised tensor's is fp32."""
        return _PLAIN.get(self._tensors[part.name(NAMES)].kind, torch.float32)

    def read(self, part: Part) -> Tensor:
        """One parameter, dequantised where it is quantised, with its rows in puna's order."""
        name = part.name(NAMES)
        return to_halves(self._rows(name, self._tensors[name]), part.heads)

    def _rows(self, name: str, place: TensorPlace) -> Tensor:
        tensor = torch.empty(place.shape, dtype=_PLAIN.get(place.kind, torch.float32))
        columns = place.shape[-1]
        block, size = GGML_QUANT_SIZES[place.kind]
        row_bytes = columns // block * size
        rows = tensor.view(-1, columns)
        path = self._files.get(name, self._path)
        with path.open("rb") as file:
            file.seek(place.offset)
            for some in torch.split(rows, max(1, _BLOCK_ELEMENTS // columns)):
                data = file.read(len(some) * row_bytes)
                if len(data) != len(some) * row_bytes:
                    raise ValueError(f"{path} ends within {name}; get the file again")
                raw = np.frombuffer(data, np.uint8).reshape(len(some), row_bytes)
                if place.kind in _PLAIN:
                    some.view(torch.uint8).numpy()[:] = raw
                else:
                    # The package takes 16 rows at a time: 16 rows as one make fewer calls.
                    wide = raw.reshape(-1, gcd(len(some), 16) * row_bytes)
                    some.numpy()[:] = dequantize_rows(wide, place.kind).reshape(some.shape)
        return tensor


def _shortest(value: float) -> float:
    """A number that was rounded to fp32, as it was before: 9.99999975e-06 -> 1e-05."""
    return float(str(np.float32(value)))


def _slowing(config: ModelConfig) -> Tensor:
    """By how much each pair's angle is slowed, (E/2,), fp64."""
    plain = rope_frequencies(config.head_dim, config.rope_base)
    return plain / rope_frequencies(config.head_dim, config.rope_base, config.rope_scaling)


# ---- writing ---------------------------------------------------------------------------------------


def write_gguf(
    source: Source,
    path: Path,
    dtype: torch.dtype | Quantised | None,
    advance: Callable[[Part], None],
    tokenizer: Tokenizer | None,
    name: str = "puna",
) -> None:
    """Write one GGUF file. `dtype` None keeps the source's precision.

    Raises:
        ValueError: when the tokenizer is missing or does not fit, or a row cannot be divided into blocks.
    """
    config = source.config
    kinds = {part: _kind(part, source, dtype) for part in parts(config)}
    writer = GGUFWriter(path, "llama")
    try:
        _add_sizes(writer, config, name)
        # What most weights are stored as, for people and tools to show.
        writer.add_file_type(
            int(_FILE_TYPES[next(kind for part, kind in kinds.items() if part.role == "wq")])
        )
        writer.add_quantization_version(2)
        add_vocabulary(writer, source.tokenizer, tokenizer, config.vocab_size)
        if config.rope_scaling is not None:
            shape = (config.head_dim // 2,)
            writer.add_tensor_info(ROPE_FREQS, shape, np.dtype(np.float32), shape[0] * 4, Kind.F32)
        for part, kind in kinds.items():
            block, size = GGML_QUANT_SIZES[kind]
            if part.shape[-1] % block:
                raise ValueError(
                    f"{part.name(NAMES)} has rows of {part.shape[-1]}, not a multiple of {kind.name}'s "
                    f"{block}; convert to fp16 or bf16"
                )
            length = part.elements // block * size
            writer.add_tensor_info(part.name(NAMES), part.shape, np.dtype(np.float32), length, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if config.rope_scaling is not None:
            writer.write_tensor_data(_slowing(config).float().numpy())
        for part, kind in kinds.items():
            tensor = to_pairs(source.read(part), part.heads)
            writer.write_tensor_data(_encoded(tensor, kind, part.name(NAMES)))
            advance(part)
    finally:
        writer.close()


def _add_sizes(writer: GGUFWriter, config: ModelConfig, name: str) -> None:
    writer.add_name(name)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.dim)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.ffn_dim)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_base)
    if (scaling := config.rope_scaling) is not None:
        writer.add_float32(_LOW, scaling.low_freq_factor)
        writer.add_float32(_HIGH, scaling.high_freq_factor)
        writer.add_uint32(_ORIGINAL, scaling.original_context)


def _kind(part: Part, source: Source, dtype: torch.dtype | Quantised | None) -> GGMLQuantizationType:
    if len(part.shape) == 1:
        return Kind.F32
    if isinstance(dtype, str):
        # Four bits ruin the output's logits, and quality is not worth the few bytes.
        is_output = part.role == "output" or (part.role == "embedding" and source.config.tied_embeddings)
        return Kind.Q8_0 if dtype == "q8_0" or is_output else Kind.Q4_0
    return _KINDS[dtype or source.dtype(part)]


def _encoded(tensor: Tensor, kind: GGMLQuantizationType, name: str) -> np.ndarray:
    if kind in _PLAIN:
        plain = cast(tensor, _PLAIN[kind], name)
        return plain.contiguous().view(torch.uint8).numpy()
    block, size = GGML_QUANT_SIZES[kind]
    encoded = np.empty((len(tensor), tensor.shape[-1] // block * size), np.uint8)
    step = max(1, _BLOCK_ELEMENTS // tensor.shape[-1])
    for start in range(0, len(tensor), step):
        some = tensor[start : start + step].float().numpy()
        encoded[start : start + step] = quantize_rows(some, kind)
    return encoded
