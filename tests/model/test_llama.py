"""The architecture against an independent implementation, and the sizes of Table 2."""

from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from puna.config import ModelConfig
from puna.model import sizes
from puna.model.llama import Llama, initial_weight
from puna.model.loss import IGNORE
from puna.model.weights import load_weights, save_weights
from puna.recipes import RECIPES, recipe

SMALL = ModelConfig(dim=64, n_layers=3, n_heads=4, ffn_dim=128, vocab_size=101, context=48)


def build(config: ModelConfig, compute: torch.dtype = torch.float32, seed: int = 1) -> Llama:
    model = Llama(config, compute)
    model.init_weights(seed)
    with torch.no_grad():  # norms away from 1, so that a forgotten scale shows
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.copy_(torch.linspace(0.5, 1.5, len(parameter)) + 0.01 * (len(name) % 7))
            else:
                parameter.mul_(5)  # weights large enough that attention is not uniform
    return model


def as_transformers(model: Llama) -> LlamaForCausalLM:
    """The same weights in transformers' LLaMA: its rotary layout and its matrices are ours."""
    c = model.config
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=c.vocab_size,
            hidden_size=c.dim,
            intermediate_size=c.ffn_dim,
            num_hidden_layers=c.n_layers,
            num_attention_heads=c.n_heads,
            num_key_value_heads=c.kv_heads,
            rms_norm_eps=c.norm_eps,
            max_position_embeddings=c.context,
            rope_parameters={"rope_type": "default", "rope_theta": c.rope_base},
            tie_word_embeddings=c.tied_embeddings,
            attn_implementation="eager",
        )
    )
    state = {"model.embed_tokens.weight": model.embedding, "model.norm.weight": model.norm}
    state["lm_head.weight"] = model.output_VD
    for i, block in enumerate(model.blocks):
        prefix = f"model.layers.{i}."
        state |= {
            prefix + "self_attn.q_proj.weight": block.wq,
            prefix + "self_attn.k_proj.weight": block.wk,
            prefix + "self_attn.v_proj.weight": block.wv,
            prefix + "self_attn.o_proj.weight": block.wo,
            prefix + "mlp.gate_proj.weight": block.w1,
            prefix + "mlp.up_proj.weight": block.w3,
            prefix + "mlp.down_proj.weight": block.w2,
            prefix + "input_layernorm.weight": block.attention_norm,
            prefix + "post_attention_layernorm.weight": block.ffn_norm,
        }
    theirs.load_state_dict({name: tensor.detach().clone() for name, tensor in state.items()})
    return theirs.eval()


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"n_kv_heads": 2},
        {"n_kv_heads": 1, "rope_base": 500_000.0},
        {"tied_embeddings": True, "norm_eps": 1e-5},
    ],
    ids=["llama", "grouped-query", "one key head, other base", "tied"],
)
@torch.no_grad()
def test_logits_equal_transformers_on_the_same_weights(change):
    model = build(replace(SMALL, **change))
    tokens = torch.randint(
        0, SMALL.vocab_size, (2, SMALL.context), generator=torch.Generator().manual_seed(3)
    )
    ours, theirs = model(tokens), as_transformers(model)(tokens).logits
    assert theirs.std() > 0.5  # the comparison is not of noughts
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("name", "count"),
    [("7b", 6_738_415_616), ("13b", 13_015_864_320), ("33b", 32_528_943_616), ("65b", 65_285_660_672)],
)
def test_parameter_counts_are_the_papers(name, count):
    with torch.device("meta"):
        model = Llama(recipe(name).model)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


@pytest.mark.parametrize("name", RECIPES)
def test_the_size_formula_counts_every_recipe(name):
    config = recipe(name).model
    with torch.device("meta"):
        model = Llama(config)
    assert sizes.parameters(config) == sum(parameter.numel() for parameter in model.parameters())


def test_the_size_formula_counts_tied_and_grouped_models():
    config = replace(SMALL, tied_embeddings=True, n_kv_heads=2)
    assert sizes.parameters(config) == sum(parameter.numel() for parameter in Llama(config).parameters())


def test_flops_are_what_pytorch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    # Attention on a CPU, ours or PyTorch's flash kernel, is not counted: the counter has no rule for it.
    model = build(SMALL)
    tokens = torch.zeros(1, SMALL.context, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(tokens).sum().backward()
    attention = 3 * SMALL.n_layers * 4 * SMALL.dim * (SMALL.context + 1) / 2
    ours = (sizes.train_flops_per_token(SMALL) - attention) * SMALL.context
    assert ours == counter.get_total_flops()


@torch.no_grad()
def test_no_token_sees_a_later_one():
    model = build(SMALL)
    tokens = torch.randint(0, SMALL.vocab_size, (1, 32))
    changed = tokens.clone()
    changed[0, 20] = (changed[0, 20] + 1) % SMALL.vocab_size
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :20], after[:, :20])
    assert not torch.allclose(before[:, 20:], after[:, 20:])


@torch.no_grad()
def test_bf16_products_stay_near_fp32():
    tokens = torch.randint(0, SMALL.vocab_size, (2, 32), generator=torch.Generator().manual_seed(5))
    exact, rounded = build(SMALL)(tokens), build(SMALL, torch.bfloat16)(tokens)
    assert rounded.dtype == torch.float32
    error = (exact - rounded).norm() / exact.norm()
    assert 0 < error < 0.02


def test_padding_does_not_count():
    model = build(SMALL)
    tokens = torch.randint(0, SMALL.vocab_size, (2, 16))
    targets = torch.randint(0, SMALL.vocab_size, (2, 16))
    targets[1, 8:] = IGNORE
    losses = model.losses(tokens, targets)
    assert (losses[1, 8:] == 0).all()
    assert (losses[1, :8] > 0).all()


def test_the_same_seed_gives_the_same_weights():
    one, same, other = Llama(SMALL), Llama(SMALL), Llama(SMALL)
    one.init_weights(7)
    same.init_weights(7)
    other.init_weights(8)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.embedding, other.embedding)


def test_a_parameters_values_follow_from_seed_and_name_alone():
    """So a process may initialise the parameters that it holds without drawing the others."""
    model, deeper = Llama(SMALL), Llama(replace(SMALL, n_layers=2 * SMALL.n_layers))
    model.init_weights(7)
    deeper.init_weights(7)
    values = dict(deeper.named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, initial_weight(SMALL, name, parameter.shape, 7))
        if not name.endswith(("wo", "w2")):  # whose deviation depends on the depth
            assert torch.equal(parameter, values[name])
    assert not torch.equal(model.blocks[0].wq, model.blocks[1].wq)
    assert not torch.equal(model.blocks[0].w1, model.blocks[0].w3)


@torch.no_grad()
@pytest.mark.parametrize("fill", ["initialised", "loaded"])
def test_a_model_built_on_meta_is_whole_once_it_is_filled(tmp_path, fill):
    expected = Llama(SMALL)
    expected.init_weights(7)
    with torch.device("meta"):
        model = Llama(SMALL)
    model.to_empty(device="cpu")
    for buffer in model.buffers():
        buffer.fill_(float("nan"))
    if fill == "initialised":
        model.init_weights(7)
    else:
        save_weights(expected, tmp_path)
        load_weights(tmp_path, model)
    tokens = torch.arange(SMALL.context)[None]
    assert torch.equal(model(tokens), expected(tokens))


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activations", ["manual", "selective", "full", "none"])
def test_validation_computes_the_losses_of_training(activations, compute):
    model = Llama(SMALL, compute, activations)
    model.init_weights(1)
    tokens = torch.randint(0, SMALL.vocab_size, (3, 40), generator=torch.Generator().manual_seed(3))
    targets = tokens.roll(-1, 1)
    targets[0, 30:] = IGNORE
    assert torch.equal(model.losses(tokens, targets), model.loss(tokens, targets, 0.5)[1])


def test_a_text_longer_than_the_context_is_refused():
    with pytest.raises(ValueError, match=r"49 tokens.*model\.context 48"):
        build(SMALL)(torch.zeros(1, 49, dtype=torch.long))


@pytest.mark.parametrize("change", [{}, {"tied_embeddings": True}], ids=["untied", "tied"])
def test_weights_survive_the_file(tmp_path, change):
    model = build(replace(SMALL, **change))
    save_weights(model, tmp_path)
    again = Llama(model.config)
    load_weights(tmp_path, again)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_weights_of_another_model_are_refused_by_name(tmp_path):
    save_weights(build(SMALL), tmp_path)
    with pytest.raises(ValueError, match=r"blocks\.0\.w1 is \(128, 64\).*\(256, 64\)"):
        load_weights(tmp_path, Llama(replace(SMALL, ffn_dim=256)))


def test_a_truncated_weights_file_is_refused(tmp_path):
    save_weights(build(SMALL), tmp_path)
    path = tmp_path / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"weights\.safetensors cannot be read"):
        load_weights(tmp_path, Llama(SMALL))
