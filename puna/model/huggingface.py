"""Hugging Face's LlamaForCausalLM: config.json and safetensors, whole or sharded.

    config.json                       sizes; refused where it asks for what puna does not implement
    model.safetensors                 or model-00001-of-00003.safetensors …
    model.safetensors.index.json      which shard holds which tensor
    tokenizer.model, tokenizer.json … carried along

Rotary rows lie as puna's do, in halves. The names:

    embedding        model.embed_tokens.weight
    attention_norm   model.layers.N.input_layernorm.weight
    wq wk wv wo      model.layers.N.self_attn.{q,k,v,o}_proj.weight
    ffn_norm         model.layers.N.post_attention_layernorm.weight
    w1 w3 w2         model.layers.N.mlp.{gate,up,down}_proj.weight
    norm             model.norm.weight
    output           lm_head.weight          (absent when tied)
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from puna.config import ModelConfig
from puna.files import write_json
from puna.model.fields import Fields, read_object
from puna.model.parts import Part, Source, cast, check_shapes, parts, tokenizer_beside
from puna.model.safetensors_stream import SafetensorsReader, SafetensorsWriter
from puna.model.vocabulary import special_ids

CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000
# Without it transformers takes a SentencePiece model for one without <s> and leading space.
_TOKENIZER = {
    "tokenizer_class": "LlamaTokenizer",
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "legacy": False,
}
_LAYER = "model.layers.{layer}."
NAMES = {
    "embedding": "model.embed_tokens.weight",
    "attention_norm": _LAYER + "input_layernorm.weight",
    "wq": _LAYER + "self_attn.q_proj.weight",
    "wk": _LAYER + "self_attn.k_proj.weight",
    "wv": _LAYER + "self_attn.v_proj.weight",
    "wo": _LAYER + "self_attn.o_proj.weight",
    "ffn_norm": _LAYER + "post_attention_layernorm.weight",
    "w1": _LAYER + "mlp.gate_proj.weight",
    "w3": _LAYER + "mlp.up_proj.weight",
    "w2": _LAYER + "mlp.down_proj.weight",
    "norm": "model.norm.weight",
    "output": "lm_head.weight",
}


def model_config(file: Path, values: dict[str, Any]) -> ModelConfig:
    """The sizes in a config.json.

    Raises:
        ValueError: naming the field that is wrong, or that asks for what puna does not implement.
    """
    fields = Fields(file, values)
    if "model_type" not in values:
        raise ValueError(f"{file} lacks the field model_type; puna reads LlamaForCausalLM's configuration")
    fields.only("model_type", "llama")
    fields.only("architectures", ["LlamaForCausalLM"])
    fields.only("hidden_act", "silu")
    for name in ("attention_bias", "mlp_bias", "rope_interleaved"):
        fields.only(name, False)
    for name in ("sliding_window", "quantization_config"):
        fields.only(name)
    config = ModelConfig(
        dim=fields.whole("hidden_size"),
        n_layers=fields.whole("num_hidden_layers"),
        n_heads=fields.whole("num_attention_heads"),
        ffn_dim=fields.whole("intermediate_size"),
        vocab_size=fields.whole("vocab_size"),
        context=fields.whole("max_position_embeddings"),
        norm_eps=fields.number("rms_norm_eps"),
        n_kv_heads=fields.whole("num_key_value_heads", fields.whole("num_attention_heads")),
        tied_embeddings=fields.flag("tie_word_embeddings"),
        **_rope(fields),
    )
    try:
        config.validate()
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    fields.only("head_dim", config.head_dim)
    return config


def _rope(fields: Fields) -> dict[str, Any]:
    """ModelConfig's rotary fields, from `rope_parameters` (transformers 5) or the two fields before it."""
    rope = fields.section("rope_parameters") or fields.section("rope_scaling") or Fields(fields.file, {})
    base = rope.number("rope_theta", fields.number("rope_theta", 10_000.0))
    for name in ("rope_type", "type"):
        rope.only(name, "default", "llama3")
    for section in (fields, rope):
        section.only("partial_rotary_factor", 1.0, 1)
    if rope.values.get("rope_type", rope.values.get("type", "default")) == "default":
        return {"rope_base": base}
    return {
        "rope_base": base,
        "rope_factor": rope.number("factor"),
        "rope_low_freq_factor": rope.number("low_freq_factor"),
        "rope_high_freq_factor": rope.number("high_freq_factor"),
        "rope_original_context": rope.whole("original_max_position_embeddings"),
    }


class HuggingFaceSource:
    """A directory that `save_pretrained` wrote."""

    def __init__(self, directory: Path) -> None:
        """Read the configuration and the shards' headers.

        Raises:
            ValueError: naming the file and what is wrong with it.
        """
        file = directory / CONFIG
        self.config = model_config(file, read_object(file))
        self.tokenizer = tokenizer_beside(directory)
        shards = _shards(directory)
        self._reader = SafetensorsReader(shards)
        held = self._reader.shapes
        for name in list(held):
            # Computed from the configuration; and the output of a tied model, which its embedding is.
            is_copy = self.config.tied_embeddings and name == NAMES["output"]
            if name.endswith("rotary_emb.inv_freq") or is_copy:
                self._reader.drop(name)
        where = directory / INDEX if len(shards) > 1 else shards[0]
        check_shapes(where, ((part.name(NAMES), part.shape) for part in parts(self.config)), held)
        for part in parts(self.config):
            self.dtype(part)

    def dtype(self, part: Part) -> torch.dtype:
        """The precision that `read` gives."""
        return self._reader.dtype(part.name(NAMES))

    def read(self, part: Part) -> Tensor:
        """One part, its rows as ours."""
        return self._reader.rows(part.name(NAMES), 0, part.shape)


def _shards(directory: Path) -> list[Path]:
    """The weights' files.

    Raises:
        ValueError: when there are none, or one that the index names is missing or leads outside.
    """
    index = directory / INDEX
    if not index.is_file():
        if (directory / SINGLE).is_file():
            return [directory / SINGLE]
        raise ValueError(
            f"{directory} holds neither {SINGLE} nor {INDEX}; puna reads no other weights of this format "
            "(*.bin files are pickles: save the model again with safe_serialization)"
        )
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index} lacks the field weight_map; get the file again")
    shards = []
    for name in sorted({str(shard) for shard in weight_map.values()}):
        if Path(name).name != name:
            raise ValueError(f"{index} names the shard {name!r}; a shard lies beside its index")
        if not (directory / name).is_file():
            raise ValueError(f"{directory} lacks the shard {name}, which {INDEX} names; get the file")
        shards.append(directory / name)
    return shards


def config_values(config: ModelConfig, dtype: torch.dtype) -> dict[str, Any]:
    """A config.json that transformers 4 and 5, vLLM and llama.cpp's converter understand."""
    scaling = config.rope_scaling
    rope_scaling = scaling and {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_context,
    }
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": config.dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.ffn_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied_embeddings,
        "rope_theta": config.rope_base,
        "rope_scaling": rope_scaling,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }


def write_huggingface(
    source: Source, directory: Path, dtype: torch.dtype | None, advance: Callable[[Part], None]
) -> None:
    """Write config.json and the weights, in shards of at most SHARD_BYTES."""
    shards: list[list[Part]] = []
    size = SHARD_BYTES
    for part in parts(source.config):
        bytes_of_part = part.elements * (dtype or source.dtype(part)).itemsize
        if size + bytes_of_part > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(part)
        size += bytes_of_part
    weight_map = {}
    total = 0
    for number, members in enumerate(shards, 1):
        name = SINGLE if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        layout = {part.name(NAMES): (dtype or source.dtype(part), part.shape) for part in members}
        with SafetensorsWriter(directory / name, layout) as writer:
            for part in members:
                tensor = cast(source.read(part), layout[part.name(NAMES)][0], part.name(NAMES))
                writer.append(part.name(NAMES), tensor)
                weight_map[part.name(NAMES)] = name
                total += tensor.nbytes
                advance(part)
    if len(shards) > 1:
        write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    embedding = next(parts(source.config))
    if "tokenizer.model" in source.tokenizer and "tokenizer_config.json" not in source.tokenizer:
        write_json(directory / "tokenizer_config.json", _TOKENIZER)
    values = config_values(source.config, dtype or source.dtype(embedding))
    write_json(directory / CONFIG, values | special_ids(source.tokenizer))
