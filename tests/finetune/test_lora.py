"""LoRA: gradients, PEFT's files in both directions, merging, and what costs nothing."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from puna.config import ComputeConfig, FinetuneConfig, LoraConfig, ModelConfig, ScheduleConfig, TuneConfig
from puna.finetune import lora
from puna.formats.adapters import adapted_roles, write_adapter
from puna.formats.convert import convert, open_source
from puna.generate.runners.packed import plain_model
from puna.model.llama import Llama
from puna.tokens.mixture import Batch
from puna.train.setup import Start, build_model, initialise
from puna.train.step import OutlierGuard, train_step

MODEL = ModelConfig(
    dim=64, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=96, vocab_size=131, context=32, norm_eps=1e-5
)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A small random model as transformers saves it."""
    torch.manual_seed(1)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=131,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=32,
            rms_norm_eps=1e-5,
            tie_word_embeddings=False,
            initializer_range=0.1,
        )
    )
    path = tmp_path_factory.mktemp("base") / "hf"
    model.save_pretrained(path)
    return path


def settings(base: Path, rows: int = 4, activations: Any = "manual", **fields: Any) -> TuneConfig:
    return TuneConfig(
        model=MODEL,
        data=("-",),
        schedule=ScheduleConfig(steps=3, batch_tokens=8 * 32, micro_batch=rows),
        compute=ComputeConfig(precision="fp32", activations=activations),
        finetune=FinetuneConfig(model=str(base)),
        lora=LoraConfig(**{"r": 4, "alpha": 8.0, **fields}),
    )


def build(config: TuneConfig) -> tuple[Llama, torch.optim.Optimizer]:
    """A model on the base's weights, with adapters that are not 0."""
    assert config.lora is not None
    source = open_source(Path(config.finetune.model))[1]
    start = lora.start(source, config.lora, config.seed, {})
    model, optimizer = build_model(config, torch.device("cpu"), start=start)
    initialise(model, config.seed, weights=start.weights)
    with torch.no_grad():
        draw = torch.Generator().manual_seed(5)
        for name, parameter in model.named_parameters():
            if name.endswith("_lora_B"):
                parameter.normal_(0, 0.05, generator=draw)
    return model, optimizer


def batch(seed: int = 0, rows: int = 8) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    inputs = torch.randint(131, (rows, 32), generator=draw)
    targets = torch.where(torch.rand(rows, 32, generator=draw) < 0.5, inputs.roll(-1, 1), -100)
    arrays = inputs.numpy(), targets.numpy(), torch.zeros(rows, dtype=torch.long).numpy()
    segments = (torch.arange(32) // 10).repeat(rows, 1).numpy()
    return Batch(*arrays, int((targets != -100).sum()), segments)


def gradients(model: Llama) -> dict[str, Tensor]:
    given = batch()
    arrays = (torch.from_numpy(array) for array in (given.inputs, given.targets))
    segments = torch.from_numpy(given.segments)
    model.loss(*arrays, 0.1, segments, 0)[0].backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("targets", [("all-linear",), ("q_proj", "v_proj"), ("wk", "wo", "w1")])
def test_the_hand_written_gradients_are_those_of_autograd(base, targets):
    ours = gradients(build(settings(base, targets=targets))[0])
    theirs = gradients(build(settings(base, targets=targets, activations="none"))[0])
    assert ours.keys() == theirs.keys()
    assert {name.split(".")[-1].split("_")[0] for name in ours} == set(adapted_roles(targets, MODEL))
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, rtol=1e-4, atol=1e-6)


def test_the_base_model_has_no_gradient_and_no_moments(base):
    config = settings(base)
    model, optimizer = build(config)
    before = {name: p.clone() for name, p in model.named_parameters()}
    train_step(model, optimizer, OutlierGuard(0, torch.device("cpu")), batch(), 1, 1e-2, config)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != lora.is_adapter(name)
        assert (parameter in optimizer.state) == lora.is_adapter(name)


@torch.no_grad()
def test_merged_weights_compute_what_the_adapter_computes(base, tmp_path):
    config = settings(base)
    model, _ = build(config)
    trained = {name: p for name, p in model.named_parameters() if lora.is_adapter(name)}
    write_adapter(tmp_path / "adapter", config, trained, base)
    merged = plain_model(open_source(tmp_path / "adapter")[1], "fp32")
    tokens = torch.from_numpy(batch().inputs)
    torch.testing.assert_close(merged(tokens), model(tokens), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(merged(tokens), plain_model(open_source(base)[1], "fp32")(tokens), atol=1e-2)


@torch.no_grad()
@pytest.mark.parametrize("targets", [("all-linear",), ("wq", "wk", "wv")])
def test_peft_loads_our_adapter(base, tmp_path, targets):
    config = settings(base, targets=targets)
    model, _ = build(config)
    trained = {name: p for name, p in model.named_parameters() if lora.is_adapter(name)}
    write_adapter(tmp_path / "adapter", config, trained, base)
    theirs = peft.PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base), tmp_path / "adapter")
    tokens = torch.from_numpy(batch().inputs)
    torch.testing.assert_close(theirs(tokens).logits, model(tokens), rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("rslora", [False, True])
def test_pefts_adapter_is_read_merged_and_converted(base, tmp_path, rslora):
    chosen = peft.LoraConfig(r=3, lora_alpha=9, target_modules="all-linear", use_rslora=rslora)
    theirs = peft.get_peft_model(LlamaForCausalLM.from_pretrained(base), chosen).eval()
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name:
            parameter.normal_(0, 0.05)
    theirs.save_pretrained(tmp_path / "theirs")
    tokens = torch.from_numpy(batch().inputs)
    expected = theirs(tokens).logits
    ours = plain_model(open_source(tmp_path / "theirs")[1], "fp32")
    torch.testing.assert_close(ours(tokens), expected, rtol=1e-4, atol=1e-4)
    convert(tmp_path / "theirs", tmp_path / "merged", "hf", "fp32")
    merged = LlamaForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(merged(tokens).logits, expected, rtol=1e-4, atol=1e-4)
    # Rounded once: what bf16 files hold is the fp32 sum, rounded.
    convert(tmp_path / "theirs", tmp_path / "rounded", "hf", "bf16")
    whole, rounded = (load_file(tmp_path / name / "model.safetensors") for name in ("merged", "rounded"))
    assert all(torch.equal(whole[name].bfloat16(), tensor) for name, tensor in rounded.items())


def test_dropout_follows_from_step_and_row_alone(base):
    def taken(micro: int, step: int, seed: int = 1) -> list[Tensor]:
        config = replace(settings(base, micro, dropout=0.3), seed=seed)
        model, optimizer = build(config)
        found: list[Tensor] = []
        optimizer.register_step_pre_hook(
            lambda *_: found.extend(p.grad.clone() for p in model.parameters() if p.grad is not None)
        )
        guard = OutlierGuard(0, torch.device("cpu"))
        train_step(model, optimizer, guard, batch(), 1, 1e-2, config, step=step)
        return found

    whole = taken(8, 2)
    for other in (taken(micro, 2) for micro in range(1, 8)):
        for a, b in zip(whole, other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(whole, taken(8, 2), strict=True))
    for other in (taken(8, 3), taken(8, 2, seed=2)):
        assert not all(torch.allclose(a, b, rtol=1e-2) for a, b in zip(whole, other, strict=True))


def test_the_gradient_with_dropout_is_that_of_the_masked_loss(base):
    """Against finite differences along a direction, of the loss with the same mask."""
    model, _ = build(settings(base, dropout=0.4))
    model.double()
    model.compute = torch.float64
    found = gradients(model)
    draw = torch.Generator().manual_seed(3)
    directions = {name: torch.randn(g.shape, generator=draw, dtype=g.dtype) for name, g in found.items()}
    named = dict(model.named_parameters())
    values = []
    for sign in (1e-4, -2e-4):
        with torch.no_grad():
            for name, direction in directions.items():
                named[name].add_(direction, alpha=sign)
        given = batch()
        arrays = (torch.from_numpy(array) for array in (given.inputs, given.targets))
        values.append(model.loss(*arrays, 0.1, torch.from_numpy(given.segments), 0)[0].item())
    expected = sum((found[name] * direction).sum().item() for name, direction in directions.items())
    assert (values[0] - values[1]) / 2e-4 == pytest.approx(expected, rel=1e-4)


def test_targets_are_checked():
    with pytest.raises(ValueError, match=r"lora\.targets names 'wx'; expected some of: q_proj"):
        adapted_roles(("wx",), MODEL)
    with pytest.raises(ValueError, match=r"names lm_head, which is tied to the embedding.*all-linear"):
        adapted_roles(("q_proj", "lm_head"), replace(MODEL, tied_embeddings=True))


def test_an_adapter_whose_base_is_gone_is_named(base, tmp_path):
    config = settings(base)
    model, _ = build(config)
    trained = {name: p for name, p in model.named_parameters() if lora.is_adapter(name)}
    write_adapter(tmp_path / "adapter", config, trained, tmp_path / "gone")
    with pytest.raises(ValueError, match=r"base model .*gone is not there; put it back"):
        open_source(tmp_path / "adapter")


def test_frozen_weights_have_no_gradient_beside_weights_that_train():
    config = TuneConfig(model=MODEL, compute=ComputeConfig(precision="fp32"))
    start = Start(trains=lambda name: name.endswith("wq"))
    whole, partly = (build_model(config, torch.device("cpu"), start=start)[0] for start in (Start(), start))
    for model in (whole, partly):
        initialise(model, 1)
    found, expected = gradients(partly), gradients(whole)
    assert set(found) == {"blocks.0.wq", "blocks.1.wq"}
    assert all(torch.equal(gradient, expected[name]) for name, gradient in found.items())
