"""Conversion keeps every bit, and other people's programs read what it writes."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from puna.cli import main
from puna.config import RopeScaling, Sampling, read_config
from puna.formats import gguf_files, huggingface, meta
from puna.formats.convert import convert
from puna.generate.load import load_engine
from puna.model.layers import rope_table, split_rotate
from tests.formats.models import (
    CONFIGS,
    GROUPED,
    PLAIN,
    SCALED,
    TIED,
    load,
    random_model,
    some_tokens,
    weights_of,
    write_native_model,
)
from tests.generate.conftest import generated

TARGETS = ["hf", "meta", "gguf"]


def there(tmp_path: Path, to: str) -> Path:
    return tmp_path / ("there.gguf" if to == "gguf" else "there")


@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize("name", CONFIGS)
def test_there_and_back_is_the_same_to_the_bit(tmp_path, name, to):
    config = CONFIGS[name]
    if to == "meta" and config is SCALED:
        config = replace(config, rope_scaling=RopeScaling(7.0, high_freq_factor=3.0))
    source = write_native_model(tmp_path / "source", config)
    convert(source, there(tmp_path, to), to)
    convert(there(tmp_path, to), tmp_path / "back", "puna", context=48 if to == "meta" else None)
    assert read_config(tmp_path / "back").model == replace(config, n_kv_heads=config.kv_heads)
    before, after = weights_of(source), weights_of(tmp_path / "back")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("to", TARGETS)
def test_half_precisions_survive_as_they_are(tmp_path, to, dtype):
    source = write_native_model(tmp_path / "source", GROUPED, dtype)
    convert(source, there(tmp_path, to), to)
    convert(there(tmp_path, to), tmp_path / "back", "puna", context=48)
    before, after = weights_of(source), weights_of(tmp_path / "back")
    for key in before:
        # GGUF's norms are fp32, which holds every half exactly.
        wanted = torch.float32 if to == "gguf" and before[key].ndim == 1 else dtype
        assert after[key].dtype == wanted, key
        assert torch.equal(before[key].to(wanted), after[key]), key


@pytest.mark.parametrize("to", TARGETS)
def test_a_chosen_precision_is_rounded_to_nearest(tmp_path, to):
    source = write_native_model(tmp_path / "source", PLAIN)
    convert(source, there(tmp_path, to), to, dtype="bf16")
    convert(there(tmp_path, to), tmp_path / "back", "puna")
    after = weights_of(tmp_path / "back")
    for key, tensor in weights_of(source).items():
        if tensor.ndim == 2:
            assert torch.equal(after[key], tensor.bfloat16()), key


def test_weights_too_large_for_fp16_are_refused(tmp_path):
    source = write_native_model(tmp_path / "source", PLAIN)
    tensors = weights_of(source)
    tensors["blocks.1.w2"][3, 4] = 1e6
    save_file(tensors, source / "weights.safetensors")
    with pytest.raises(ValueError, match=r"1e\+06, too large for fp16"):
        convert(source, tmp_path / "out", "hf", dtype="fp16")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


# ---- Hugging Face ----------------------------------------------------------------------------------


def rope_parameters(config) -> dict:
    if config.rope_scaling is None:
        return {"rope_type": "default", "rope_theta": config.rope_base}
    return {
        "rope_type": "llama3",
        "rope_theta": config.rope_base,
        "factor": config.rope_scaling.factor,
        "low_freq_factor": config.rope_scaling.low_freq_factor,
        "high_freq_factor": config.rope_scaling.high_freq_factor,
        "original_max_position_embeddings": config.rope_scaling.original_context,
    }


def transformers_model(config) -> LlamaForCausalLM:
    torch.manual_seed(5)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.dim,
            intermediate_size=config.ffn_dim,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            num_key_value_heads=config.kv_heads,
            max_position_embeddings=config.context,
            rms_norm_eps=config.norm_eps,
            rope_parameters=rope_parameters(config),
            tie_word_embeddings=config.tied_embeddings,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.12 + (parameter.ndim == 1))
    return model.eval()


@pytest.mark.parametrize("shard", ["50KB", "5GB"])
@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_logits_equal_transformers_on_its_own_files(tmp_path, name, shard):
    config = CONFIGS[name]
    theirs = transformers_model(config)
    theirs.save_pretrained(tmp_path / "hf", max_shard_size=shard)
    assert (tmp_path / "hf" / huggingface.INDEX).exists() == (shard == "50KB")
    convert(tmp_path / "hf", tmp_path / "puna", "puna")
    tokens = some_tokens(config)
    expected = theirs(tokens).logits
    assert expected.std() > 0.3  # the comparison is not of noughts
    torch.testing.assert_close(load(tmp_path / "puna")(tokens), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_transformers_reads_what_we_write(tmp_path, name, monkeypatch):
    monkeypatch.setattr(huggingface, "SHARD_BYTES", 100_000)
    source = write_native_model(tmp_path / "source", CONFIGS[name])
    convert(source, tmp_path / "hf", "hf")
    assert len(list((tmp_path / "hf").glob("model-*-of-*.safetensors"))) > 2
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    tokens = some_tokens(CONFIGS[name])
    torch.testing.assert_close(load(source)(tokens), theirs(tokens).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("text", ["the llama carries 12 stones", "Ünï 雪", "seven\nstones", ""])
def test_transformers_encodes_with_the_tokenizer_that_goes_along(tmp_path, text):
    source = write_native_model(tmp_path / "source", PLAIN)
    convert(source, tmp_path / "hf", "hf")
    pieces = sentencepiece.SentencePieceProcessor(str(source / "tokenizer.model"))
    theirs = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert theirs.encode(text) == [1, *pieces.encode(text)]


def test_the_llama3_scaling_matters_to_the_test():
    plain = rope_table(16, 48, SCALED.rope_base)[0]
    scaled = rope_table(16, 48, SCALED.rope_base, SCALED.rope_scaling)[0]
    same = [torch.equal(plain[:, i], scaled[:, i]) for i in range(8)]
    assert any(same)
    assert not all(same)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("attention_bias", True, "attention_bias is True"),
        ("mlp_bias", True, "mlp_bias is True"),
        ("model_type", "mistral", "model_type is 'mistral'"),
        ("architectures", ["LlamaForSequenceClassification"], "architectures"),
        ("hidden_act", "gelu", "hidden_act is 'gelu'"),
        ("sliding_window", 4096, "sliding_window is 4096"),
        ("head_dim", 32, "head_dim is 32"),
        ("rope_scaling", {"rope_type": "yarn", "factor": 4.0}, "rope_scaling.rope_type is 'yarn'"),
        ("rope_scaling", {"type": "linear", "factor": 2.0}, "rope_scaling.type is 'linear'"),
        ("rope_scaling", {"rope_type": "llama3"}, "lacks the field rope_scaling.factor"),
        ("rope_scaling", {"factor": 8.0}, "rope_scaling.factor is 8.0"),
        ("rope_parameters", {"full_attention": {"rope_theta": 1e6}}, "rope_parameters.full_attention is"),
        ("rope_theta", 10**400, "a number that fits into 64 bits"),
        ("rope_scaling", "llama3", "rope_scaling is 'llama3'"),
        ("quantization_config", {"quant_method": "gptq"}, "quantization_config"),
        ("hidden_size", "64", "hidden_size is '64'; it must be a whole number"),
        ("intermediate_size", 2**60, "gate_proj.weight has shape (96, 64)"),
        ("num_attention_heads", 0, "model.n_heads is 0"),
        ("rms_norm_eps", None, "lacks the field rms_norm_eps"),
        ("rms_norm_eps", True, "rms_norm_eps is True"),
        ("tie_word_embeddings", 1, "tie_word_embeddings is 1"),
        ("num_hidden_layers", 3, "lacks the tensor model.layers.2.input_layernorm.weight"),
        ("num_hidden_layers", 1, "unexpected tensor model.layers.1."),
        ("vocab_size", 319, "embed_tokens.weight has shape (320, 64)"),
    ],
)
def test_a_configuration_that_puna_does_not_implement_is_refused_by_name(tmp_path, field, value, said):
    convert(write_native_model(tmp_path / "source", PLAIN), tmp_path / "hf", "hf")
    file = tmp_path / "hf" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}))
    with pytest.raises(ValueError) as caught:
        convert(tmp_path / "hf", tmp_path / "out", "puna")
    message = str(caught.value)
    assert said in message
    assert str(tmp_path / "hf") in message
    assert "\n" not in message
    assert not (tmp_path / "out").exists()


# ---- Meta ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_model_parallel_parts_are_metas_and_merge_again(tmp_path, count):
    config = replace(PLAIN, n_heads=8, vocab_size=320)
    source = write_native_model(tmp_path / "source", config)
    convert(source, tmp_path / "meta", "meta", n_parts=count)
    files = sorted((tmp_path / "meta").glob("*.pth"))
    assert [file.name for file in files] == [f"consolidated.{i:02}.pth" for i in range(count)]
    held = [torch.load(file, weights_only=True) for file in files]
    D, F, V = config.dim, config.ffn_dim, config.vocab_size
    layer = "layers.1."
    assert held[0]["tok_embeddings.weight"].shape == (V, D // count)
    assert held[0]["output.weight"].shape == (V // count, D)
    assert held[0][layer + "attention.wq.weight"].shape == (D // count, D)
    assert held[0][layer + "attention.wo.weight"].shape == (D, D // count)
    assert held[0][layer + "feed_forward.w1.weight"].shape == (F // count, D)
    assert held[0][layer + "feed_forward.w2.weight"].shape == (D, F // count)
    original = weights_of(source)
    assert torch.equal(
        torch.cat([part[layer + "feed_forward.w2.weight"] for part in held], 1), original["blocks.1.w2"]
    )
    assert torch.equal(torch.cat([part["output.weight"] for part in held]), original["output"])
    assert all(torch.equal(part["norm.weight"], original["norm"]) for part in held)
    convert(tmp_path / "meta", tmp_path / "back", "puna")
    assert all(torch.equal(original[key], value) for key, value in weights_of(tmp_path / "back").items())


def test_metas_rotation_of_adjacent_pairs_gives_our_scores(tmp_path):
    """Meta turns (x[2i], x[2i+1]) as one complex number: written out here, its scores must be ours."""
    source = write_native_model(tmp_path / "source", GROUPED)
    convert(source, tmp_path / "meta", "meta")
    held = torch.load(tmp_path / "meta" / "consolidated.00.pth", weights_only=True)
    x = torch.randn(10, 64, generator=torch.Generator().manual_seed(2))
    frequencies = GROUPED.rope_base ** (-torch.arange(0, 16, 2) / 16)
    turns = torch.polar(torch.ones(10, 8), torch.outer(torch.arange(10), frequencies))

    def turned_by_meta(weight):
        pairs = (x @ weight.T).view(10, -1, 8, 2)
        return torch.view_as_real(torch.view_as_complex(pairs) * turns[:, None]).flatten(2)

    q = turned_by_meta(held["layers.0.attention.wq.weight"])
    k = turned_by_meta(held["layers.0.attention.wk.weight"]).repeat_interleave(2, 1)
    weights = weights_of(source)
    qkv = torch.cat([x @ weights[f"blocks.0.{role}"].T for role in ("wq", "wk", "wv")], -1).view(1, 10, 8, 16)
    ours_q, ours_k, _ = split_rotate(qkv, *rope_table(16, 10, GROUPED.rope_base), 4, 2)
    scores = ours_q[0] @ ours_k[0].repeat_interleave(2, 0).transpose(1, 2)
    torch.testing.assert_close(torch.einsum("qhe,khe->hqk", q, k), scores, atol=1e-4, rtol=1e-4)


def test_files_as_meta_published_them_are_read(tmp_path):
    """torch.save's own zip, buffers among the weights, the embedding by rows as in Llama 3."""
    source = write_native_model(tmp_path / "source", PLAIN)
    convert(source, tmp_path / "one", "meta")
    whole = torch.load(tmp_path / "one" / "consolidated.00.pth", weights_only=True)
    (tmp_path / "meta").mkdir()
    for number in range(2):
        part = {}
        for name, tensor in whole.items():
            short = name.removesuffix(".weight").rpartition(".")[2]
            axis = 0 if short in ("wq", "wk", "wv", "w1", "w3", "output", "tok_embeddings") else 1
            part[name] = tensor if tensor.ndim == 1 else tensor.chunk(2, axis)[number].clone()
        part["rope.freqs"] = torch.ones(8)
        part["layers.0.attention.inner_attention.rope.freqs"] = torch.ones(8, dtype=torch.bfloat16)
        torch.save(part, tmp_path / "meta" / f"consolidated.{number:02}.pth")
    params = {"dim": 64, "multiple_of": 32, "n_heads": 4, "n_layers": 2, "norm_eps": 1e-6, "vocab_size": -1}
    (tmp_path / "meta" / "params.json").write_text(json.dumps(params))
    (tmp_path / "tokenizer.model").write_bytes((source / "tokenizer.model").read_bytes())
    convert(tmp_path / "meta", tmp_path / "back", "puna")
    original = weights_of(source)
    assert all(torch.equal(original[key], value) for key, value in weights_of(tmp_path / "back").items())
    assert (tmp_path / "back" / "tokenizer.model").read_bytes() == (source / "tokenizer.model").read_bytes()
    assert read_config(tmp_path / "back").model.context == 2048


@pytest.mark.parametrize("dim", [64, 288, 4096, 5120, 6656, 8192])
@pytest.mark.parametrize("ffn", ["paper", 1000, 1001, 11008, 14336, 28672])
def test_metas_code_finds_the_hidden_width_again(dim, ffn):
    ffn = 256 * -(-8 * dim // 3 // 256) if ffn == "paper" else ffn
    values = meta.params_values(replace(PLAIN, dim=dim, ffn_dim=ffn))
    # The rule of Meta's code, step by step.
    hidden = int(2 * (4 * dim) / 3)
    if "ffn_dim_multiplier" in values:
        hidden = int(values["ffn_dim_multiplier"] * hidden)
    multiple = values["multiple_of"]
    assert multiple * ((hidden + multiple - 1) // multiple) == ffn


# ---- GGUF ------------------------------------------------------------------------------------------


def write_gguf_with(path: Path, kind: gguf.GGMLQuantizationType) -> dict[str, np.ndarray]:
    """A one-block model whose matrices are random blocks of a type; the bytes that went in."""
    draw = np.random.default_rng(1)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(32)
    writer.add_embedding_length(256)
    writer.add_block_count(1)
    writer.add_feed_forward_length(256)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    rows = {"attn_q": 256, "attn_k": 128, "attn_v": 128, "attn_output": 256}
    rows |= {"ffn_gate": 256, "ffn_up": 256, "ffn_down": 256}
    held = {}
    for name in ["token_embd", "output", *(f"blk.0.{role}" for role in rows)]:
        count = rows.get(name.removeprefix("blk.0."), 40)
        data = draw.integers(0, 256, (count, 256 // block * size), dtype=np.uint8)
        held[name + ".weight"] = data
        writer.add_tensor(name + ".weight", data, raw_dtype=kind)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(name + ".weight", np.ones(256, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return held


@pytest.mark.filterwarnings("ignore:invalid value encountered")  # random bits make scales of every kind
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K", "F16", "BF16", "F32"])
def test_dequantised_weights_are_the_gguf_packages(tmp_path, kind):
    held = write_gguf_with(tmp_path / "model.gguf", gguf.GGMLQuantizationType[kind])
    convert(tmp_path / "model.gguf", tmp_path / "puna", "puna")
    ours = weights_of(tmp_path / "puna")
    for theirs, name in [
        ("token_embd", "embedding"),
        ("output", "output"),
        ("blk.0.attn_v", "blocks.0.wv"),
        ("blk.0.ffn_up", "blocks.0.w3"),
        ("blk.0.ffn_down", "blocks.0.w2"),
    ]:
        expected = gguf.dequantize(held[theirs + ".weight"], gguf.GGMLQuantizationType[kind])
        np.testing.assert_array_equal(ours[name].float().numpy(), expected)


@pytest.mark.parametrize(
    ("dtype", "kind", "output_kind"),
    [
        ("fp32", "F32", "F32"),
        ("fp16", "F16", "F16"),
        ("bf16", "BF16", "BF16"),
        ("q8_0", "Q8_0", "Q8_0"),
        ("q4_0", "Q4_0", "Q8_0"),
    ],
)
@pytest.mark.parametrize("config", [PLAIN, TIED], ids=["untied", "tied"])
def test_gguf_files_hold_the_types_and_sizes_that_the_package_reads(
    tmp_path, dtype, kind, output_kind, config
):
    source = write_native_model(tmp_path / "source", config)
    convert(source, tmp_path / "model.gguf", "gguf", dtype=dtype)
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert tensors["blk.1.ffn_down.weight"].tensor_type.name == kind
    assert tensors["blk.1.ffn_norm.weight"].tensor_type.name == "F32"
    output = tensors["token_embd.weight" if config is TIED else "output.weight"]
    assert output.tensor_type.name == output_kind
    assert ("output.weight" in tensors) == (config is PLAIN)
    expected = gguf.quantize(weights_of(source)["blocks.1.w2"].numpy(), gguf.GGMLQuantizationType[kind])
    np.testing.assert_array_equal(
        tensors["blk.1.ffn_down.weight"].data.view(np.uint8), expected.view(np.uint8)
    )
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["llama.attention.head_count_kv"] == config.kv_heads
    assert fields["tokenizer.ggml.model"] == "llama"
    assert len(fields["tokenizer.ggml.tokens"]) == 320
    assert fields["tokenizer.ggml.tokens"][:4] == ["<unk>", "<s>", "</s>", "<0x00>"]
    assert fields["tokenizer.ggml.token_type"][:4] == [2, 3, 3, 6]
    assert fields["tokenizer.ggml.bos_token_id"] == 1


def test_a_vocabulary_out_of_gguf_goes_back_into_gguf(tmp_path):
    source = write_native_model(tmp_path / "source", PLAIN)
    convert(source, tmp_path / "one.gguf", "gguf")
    convert(tmp_path / "one.gguf", tmp_path / "puna", "puna")
    assert not gguf.GGUFReader(tmp_path / "puna" / "tokenizer.gguf").tensors
    convert(tmp_path / "puna", tmp_path / "two.gguf", "gguf")
    convert(tmp_path / "one.gguf", tmp_path / "three.gguf", "gguf")
    one, two, three = (gguf.GGUFReader(tmp_path / f"{name}.gguf").fields for name in ("one", "two", "three"))
    for key in one:
        if key.startswith("tokenizer."):
            assert one[key].contents() == two[key].contents() == three[key].contents(), key


def test_a_padded_vocabulary_is_filled_and_a_short_one_refused(tmp_path):
    source = write_native_model(tmp_path / "source", replace(PLAIN, vocab_size=330))
    convert(source, tmp_path / "model.gguf", "gguf")
    tokens = gguf.GGUFReader(tmp_path / "model.gguf").fields["tokenizer.ggml.tokens"].contents()
    assert tokens[-1] == "[PAD329]"
    small = write_native_model(tmp_path / "small", replace(PLAIN, vocab_size=300))
    (small / "tokenizer.model").write_bytes((source / "tokenizer.model").read_bytes())
    with pytest.raises(ValueError, match="320 tokens, and the model's vocabulary 300"):
        convert(small, tmp_path / "small.gguf", "gguf")
    (small / "tokenizer.model").unlink()
    with pytest.raises(ValueError, match="no tokenizer"):
        convert(small, tmp_path / "small.gguf", "gguf")
    assert not list(tmp_path.glob("*small.gguf*"))


def with_neighbours(folder: Path) -> Path:
    """A directory in Hugging Face's format of a chat model: added tokens, several ends, a template."""
    config = replace(PLAIN, vocab_size=324)
    convert(write_native_model(folder / "source", config), folder / "hf", "hf")
    hf = folder / "hf"
    (hf / "added_tokens.json").write_text('{"<|im_end|>": 320, "<|eot|>": 321, "<tool>": 322}')
    names = {"eos_token": "<|im_end|>", "add_bos_token": False, "chat_template": "{{ messages }}"}
    names |= {
        "additional_special_tokens": ["<|eot|>"],
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
    }
    (hf / "tokenizer_config.json").write_text(json.dumps(names))
    file = hf / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": [320, 321]}))
    (hf / "generation_config.json").write_text('{"eos_token_id": 2, "temperature": 0.6}')
    return hf


def test_a_chat_models_vocabulary_goes_into_gguf_whole(tmp_path):
    convert(with_neighbours(tmp_path), tmp_path / "model.gguf", "gguf")
    fields = {n: f.contents() for n, f in gguf.GGUFReader(tmp_path / "model.gguf").fields.items()}
    key = "tokenizer.ggml."
    assert fields[key + "tokens"][319:] == [
        fields[key + "tokens"][319],
        "<|im_end|>",
        "<|eot|>",
        "<tool>",
        "[PAD323]",
    ]
    assert fields[key + "token_type"][320:] == [3, 3, 4, 5]
    assert (fields[key + "bos_token_id"], fields[key + "eos_token_id"]) == (1, 320)
    assert {fields[key + "eot_token_id"], fields[key + "eom_token_id"]} == {2, 321}
    assert fields[key + "add_bos_token"] is False
    assert fields["tokenizer.chat_template"] == "{{ messages }}"


def test_end_ids_are_taken_from_wherever_they_are(tmp_path):
    convert(with_neighbours(tmp_path), tmp_path / "puna", "puna")
    engine = load_engine(tmp_path / "puna", weights="fp32", cache_tokens=64)
    assert {2, 320, 321} <= engine.stop_ids
    assert engine.tokenizer.eos_id == 2 or engine.tokenizer.eos_id == 320
    assert json.loads((tmp_path / "puna/generation_config.json").read_text())["temperature"] == 0.6


def test_a_tied_model_with_an_output_of_its_own_is_refused(tmp_path):
    convert(write_native_model(tmp_path / "source", TIED), tmp_path / "hf", "hf")
    tensors = load_file(tmp_path / "hf/model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / "hf/model.safetensors")
    convert(tmp_path / "hf", tmp_path / "same", "puna")
    tensors["lm_head.weight"][3, 4] += 1
    save_file(tensors, tmp_path / "hf/model.safetensors")
    with pytest.raises(ValueError, match=r"tie_word_embeddings is true, but lm_head\.weight differs"):
        convert(tmp_path / "hf", tmp_path / "other", "puna")


ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
# Keys of LlamaConfig that the numbers of a forward pass do not depend on.
NO_NUMBERS = {
    "initializer_range", "use_cache", "pad_token_id", "bos_token_id", "eos_token_id", "pretraining_tp",
    "attention_dropout", "dtype", "torch_dtype", "transformers_version", "_name_or_path",
}  # fmt: skip
CHANGED = {
    "vocab_size": 319, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
    "num_attention_heads": 8, "num_key_value_heads": 2, "hidden_act": "gelu", "max_position_embeddings": 99,
    "rms_norm_eps": 1e-3, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True,
    "head_dim": 32, "rope_parameters": ROPE | {"rope_theta": 5.0}, "is_encoder_decoder": True,
    "architectures": ["Other"], "model_type": "other",
}  # fmt: skip
THEIRS = LlamaConfig(architectures=["LlamaForCausalLM"])


@pytest.mark.parametrize("name", sorted(LlamaConfig.__annotations__.keys() | CHANGED.keys()))
def test_every_key_of_a_llama_configuration_is_honoured_or_refused(tmp_path, name):
    if (
        name in NO_NUMBERS
        or not hasattr(THEIRS, name)
        or name.startswith(("base_model", "keys_to", "default"))
    ):
        return
    convert(write_native_model(tmp_path / "source", PLAIN), tmp_path / "hf", "hf")
    file = tmp_path / "hf/config.json"
    values = json.loads(file.read_text()) | {
        "rope_theta": None,
        "rope_scaling": None,
        "rope_parameters": ROPE,
    }
    file.write_text(json.dumps(values))
    before = huggingface.HuggingFaceSource(tmp_path / "hf").config
    file.write_text(json.dumps(values | {name: CHANGED[name]}))
    try:
        after = huggingface.HuggingFaceSource(tmp_path / "hf").config
    except ValueError as error:
        # Sizes are also named as ours, by the tensor that has another shape, or by the head_dim they give.
        said = (name, "model.", "head_dim", "has shape", "unexpected tensor")
        assert any(text in str(error) for text in said)
    else:
        assert after != before


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_parameters.factor is None"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_parameters"),
        ({"rope_theta": 500_000.0}, "rope_theta is 500000.0"),
    ],
)
def test_two_sections_of_rotary_fields_must_agree(tmp_path, values, said):
    convert(write_native_model(tmp_path / "source", PLAIN), tmp_path / "hf", "hf")
    file = tmp_path / "hf/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rope_parameters": ROPE} | values))
    with pytest.raises(ValueError) as caught:
        convert(tmp_path / "hf", tmp_path / "out", "puna")
    assert "rope_" in str(caught.value)
    assert said.partition(" ")[0].partition(".")[0] in str(caught.value)


def split_gguf(path: Path, folder: Path) -> list[Path]:
    """A GGUF file's tensors in three files, as llama-gguf-split names and numbers them."""
    reader = gguf.GGUFReader(path)
    files = [folder / f"model-{number:05}-of-00003.gguf" for number in (1, 2, 3)]
    for number, file in enumerate(files):
        writer = gguf.GGUFWriter(file, "llama")
        if number == 0:
            for name, field in reader.fields.items():
                if not name.startswith(("GGUF.", "general.architecture")):
                    kind = field.types[0]
                    sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
                    writer.add_key_value(name, field.contents(), kind, sub)
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", 3)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for tensor in reader.tensors[number::3]:
            writer.add_tensor(tensor.name, np.ascontiguousarray(tensor.data), raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return files


def test_a_split_gguf_is_one_model_and_a_missing_part_is_named(tmp_path):
    source = write_native_model(tmp_path / "source", GROUPED)
    convert(source, tmp_path / "whole.gguf", "gguf")
    files = split_gguf(tmp_path / "whole.gguf", tmp_path)
    for place, file in enumerate(files[:2]):  # whichever of them is named
        convert(file, tmp_path / f"puna-{place}", "puna")
        assert all(
            torch.equal(tensor, weights_of(tmp_path / f"puna-{place}")[name])
            for name, tensor in weights_of(source).items()
        )
        assert load_engine(file, cache_tokens=64).encode("a") == load_engine(source, cache_tokens=64).encode(
            "a"
        )
    files[1].rename(tmp_path / "renamed.gguf")
    with pytest.raises(ValueError, match=r"model-00002-of-00003\.gguf is missing"):
        convert(files[0], tmp_path / "out", "puna")
    with pytest.raises(ValueError, match=r"one of 3 files of a split model.*llama-gguf-split --merge"):
        convert(tmp_path / "renamed.gguf", tmp_path / "out", "puna")


@pytest.mark.parametrize("name", gguf_files.NEUTRAL)
def test_keys_of_gguf_that_change_the_numbers_are_refused_by_name(tmp_path, name):
    convert(write_native_model(tmp_path / "source", PLAIN), tmp_path / "one.gguf", "gguf")
    reader = gguf.GGUFReader(tmp_path / "one.gguf")
    neutral = gguf_files.NEUTRAL[name][0]
    for value in (
        neutral,
        "other" if isinstance(neutral, str) else not neutral if isinstance(neutral, bool) else 7,
    ):
        writer = gguf.GGUFWriter(tmp_path / "two.gguf", "llama")
        for key, field in reader.fields.items():
            if key.startswith("llama."):
                writer.add_key_value(key, field.contents(), field.types[0])
        value = float(value) if isinstance(neutral, float) else value
        add = {
            str: writer.add_string,
            bool: writer.add_bool,
            float: writer.add_float32,
            int: writer.add_uint32,
        }
        add[type(neutral)](f"llama.{name}", value)
        for tensor in reader.tensors:
            writer.add_tensor(tensor.name, np.ascontiguousarray(tensor.data), raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        if value == neutral:
            gguf_files.GGUFSource(tmp_path / "two.gguf")
        else:
            with pytest.raises(ValueError, match=rf"llama\.{re.escape(name)} is"):
                gguf_files.GGUFSource(tmp_path / "two.gguf")


# ---- the verb --------------------------------------------------------------------------------------


def test_a_converted_directory_generates(tmp_path, capsys):
    source = write_native_model(tmp_path / "source", PLAIN)
    assert main(["convert", str(source), str(tmp_path / "hf"), "--to", "hf", "--dtype", "bf16"]) == 0
    assert main(["convert", str(tmp_path / "hf"), str(tmp_path / "puna"), "--to", "puna", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["counts"]["parameters"] == sum(p.numel() for p in random_model(PLAIN).parameters())
    assert read_config(tmp_path / "puna").compute.precision == "bf16"
    engine = load_engine(tmp_path / "puna")
    assert generated(engine, "the llama", Sampling(temperature=0), 5) is not None


def test_a_trained_run_converts_from_its_newest_checkpoint(tmp_path):
    run = write_native_model(tmp_path / "run", PLAIN, seed=1)
    newer = write_native_model(tmp_path / "newer", PLAIN, seed=2)
    for step, folder in [("step-000100", run), ("step-000200", newer)]:
        (run / "checkpoints" / step).mkdir(parents=True)
        (folder / "weights.safetensors").rename(run / "checkpoints" / step / "weights.safetensors")
    convert(run, tmp_path / "out", "puna")
    wanted = random_model(PLAIN, seed=2).embedding
    assert torch.equal(weights_of(tmp_path / "out")["embedding"], wanted)


def test_what_is_there_already_is_never_overwritten(tmp_path, capsys):
    source = write_native_model(tmp_path / "source", PLAIN)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "letter.txt").write_text("mine")
    assert main(["convert", str(source), str(tmp_path / "precious"), "--to", "hf"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert (tmp_path / "precious" / "letter.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "hf", "--dtype", "q4_0"], "a precision of GGUF files"),
        (["--to", "hf", "--parts", "2"], "only Meta's files"),
        (["--to", "meta", "--parts", "3"], "1, 2, 4 or 8"),
        (["--to", "meta", "--parts", "8"], "model.n_heads is 4, not divisible"),
        (["--to", "gguf"], "must end in .gguf"),
        (["--to", "hf", "--context", "0"], "model.context is 0"),
    ],
)
def test_choices_that_cannot_be_are_named(tmp_path, capsys, arguments, message):
    source = write_native_model(tmp_path / "source", PLAIN)
    assert main(["convert", str(source), str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


# VmHWM, because a child's ru_maxrss begins with that of the process that started it.
MEMORY = """
import sys
from pathlib import Path
from puna.formats.convert import convert

def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])

def round_trips(name):
    root = Path(sys.argv[1])
    for to, n_parts in (("hf", 1), ("meta", 2), ("gguf", 1)):
        middle = root / f"{name}-{to}{'.gguf' if to == 'gguf' else ''}"
        convert(root / name, middle, to, n_parts=n_parts)
        convert(middle, root / f"{name}-{to}-back", "puna")

round_trips("small")
before = peak()
round_trips("large")
print((peak() - before) * 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_memory_is_bounded_by_a_tensor_not_by_the_model(tmp_path):
    large = replace(PLAIN, dim=512, n_heads=8, ffn_dim=1408, n_layers=16)
    write_native_model(tmp_path / "small", PLAIN)
    source = write_native_model(tmp_path / "large", large)
    model_bytes = (source / "weights.safetensors").stat().st_size
    tensor_bytes = 1408 * 512 * 4
    assert model_bytes > 200e6
    command = [sys.executable, "-c", MEMORY, str(tmp_path)]
    # Reading and writing each hold a tensor, in two orders of rows, beside what is mapped and buffers. Freed
    # tensors go back to the system at once: what glibc keeps of them varied by 15 MB from run to run.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    grown, bound = int(done.stdout), meta.REMAP_BYTES + 6 * tensor_bytes
    assert grown < bound < model_bytes / 3, f"{grown / 1e6:.0f} MB"
