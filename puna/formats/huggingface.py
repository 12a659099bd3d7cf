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

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from puna.added_tokens import GENERATION, end_ids
from puna.config import ModelConfig, RopeScaling
from puna.files import read_object, write_json
from puna.formats.fields import Fields, named
from puna.formats.safetensors_stream import SafetensorsReader, SafetensorsWriter
from puna.formats.special_ids import special_ids
from puna.model.parts import Part, Source, cast, check_shapes, parts, tokenizer_beside
from puna.tokens.tokenizer import Tokenizer

CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000
_ROWS = 4096  # compared at a time
_ROPE = {"rope_type", "type", "rope_theta", "partial_rotary_factor", "factor", "low_freq_factor"}
_ROPE |= {"high_freq_factor", "original_max_position_embeddings", "attention_factor"}  # the last: unused
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
    for name in ("attention_bias", "mlp_bias", "rope_interleaved", "is_encoder_decoder"):
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
    with named(file):
        config.validate()
    fields.only("head_dim", config.head_dim)
    return config


def _rope(fields: Fields) -> dict[str, Any]:
    """ModelConfig's rotary fields, from `rope_parameters` (transformers 5) or the two fields before it."""
    new, old = fields.section("rope_parameters"), fields.section("rope_scaling")
    if new is not None and old is not None:
        for name in old.values.keys() | new.values.keys():
            pair = [section.values.get(name) for section in (new, old)]
            if name == "type" or (name == "rope_theta" and pair[1] is None):
                continue
            if name == "rope_type" and pair[1] is None:
                pair[1] = old.values.get("type")
            if pair[0] != pair[1]:
                raise ValueError(
                    f"{fields.file}: rope_parameters.{name} is {pair[0]!r}, but rope_scaling.{name} is "
                    f"{pair[1]!r}; delete the section that is wrong"
                )
    rope = new or old or Fields(fields.file, {})
    if rope.values.get("rope_theta") is not None:
        fields.only("rope_theta", rope.values["rope_theta"])
    base = rope.number("rope_theta", fields.number("rope_theta", 10_000.0))
    for name in ("rope_type", "type"):
        rope.only(name, "default", "llama3")
    for section in (fields, rope):
        section.only("partial_rotary_factor", 1.0, 1)
    for name in rope.values.keys() - _ROPE:  # one section per kind of layer, for example
        rope.only(name)
    if rope.values.get("rope_type", rope.values.get("type", "default")) == "default":
        rope.only("factor", 1.0, 1)
        return {"rope_base": base}
    scaling = RopeScaling(
        factor=rope.number("factor"),
        low_freq_factor=rope.number("low_freq_factor"),
        high_freq_factor=rope.number("high_freq_factor"),
        original_context=rope.whole("original_max_position_embeddings"),
    )
    return {"rope_base": base, "rope_scaling": scaling}


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
        self._keep_end_ids(file)
        shards = _shards(directory)
        self._reader = SafetensorsReader(shards)
        held = self._reader.shapes
        if self.config.tied_embeddings and NAMES["output"] in held:
            self._require_tied(file)
            self._reader.drop(NAMES["output"])
        for name in list(held):
            if name.endswith("rotary_emb.inv_freq"):  # computed from the configuration
                self._reader.drop(name)
        where = directory / INDEX if len(shards) > 1 else shards[0]
        check_shapes(where, ((part.name(NAMES), part.shape) for part in parts(self.config)), held)
        for part in parts(self.config):
            self.dtype(part)

    def _keep_end_ids(self, file: Path) -> None:
        """Carry the end ids of config.json in generation_config.json, for our config.json has none."""
        ends = end_ids(read_object(file), file)
        beside = self.tokenizer.get(GENERATION)
        said = read_object(beside) if isinstance(beside, Path) else {}
        known = end_ids(said, beside) if isinstance(beside, Path) else []
        if not set(ends) <= set(known):
            both = [*known, *(id for id in ends if id not in known)]
            self.tokenizer[GENERATION] = json.dumps(said | {"eos_token_id": both}, indent=2).encode()

    def _require_tied(self, file: Path) -> None:
        """Raise ValueError when a tied model has an output of its own."""
        embedding, output = NAMES["embedding"], NAMES["output"]
        shape = self._reader.shapes[output]
        same = shape == self._reader.shapes.get(embedding)
        for start in range(0, shape[0] if same else 0, _ROWS):
            some = (min(_ROWS, shape[0] - start), *shape[1:])
            rows = (self._reader.rows(name, start, some) for name in (embedding, output))
            same = same and torch.equal(*rows)
        if not same:
            raise ValueError(
                f"{file}: tie_word_embeddings is true, but {output} differs from {embedding}; set it to "
                "false if the model has an output of its own, or take that tensor out"
            )

    def dtype(self, part: Part) -> torch.dtype:
        """The precision that `read` gives."""
        return self._reader.dtype(part.name(NAMES))

    def read(self, part: Part) -> Tensor:
        """One parameter."""
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
    shards, single = [], directory / SINGLE
    for name in sorted({str(shard) for shard in weight_map.values()}):
        if Path(name).name != name:
            raise ValueError(f"{index} names the shard {name!r}; a shard lies beside its index")
        if not (directory / name).is_file():
            raise ValueError(f"{directory} lacks the shard {name}, which {INDEX} names; get the file")
        shards.append(directory / name)
    if single.is_file() and single not in shards:
        raise ValueError(f"{directory} holds two models, {SINGLE} and that of {INDEX}; delete the wrong one")
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
    source: Source,
    directory: Path,
    dtype: torch.dtype | None,
    advance: Callable[[Part], None],
    tokenizer: Tokenizer | None,
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
    values = config_values(source.config, dtype or source.dtype(embedding))
    write_json(directory / CONFIG, values | special_ids(source.tokenizer, tokenizer))
