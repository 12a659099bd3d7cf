"""The training step on any device: on `meta`, mixing in a CPU tensor or waiting for a value is an error.

`meta` tensors have shapes and no values: an operator with a tensor of another device fails, and so does
`.item()` or a branch on a value. What passes here neither mixes devices nor waits.
"""

import sys
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from puna.generate.runners.cache import BlockCache
from puna.generate.runners.pytorch import PlainRunner
from puna.generate.runners.static_decode import StaticDecode
from puna.model.llama import Llama
from puna.recipes import recipe
from puna.tokens.mixture import Mixture
from puna.train.checkpoint import TrainState
from puna.train.graph import Recorder, launched
from puna.train.metrics import StepLog
from puna.train.optim import build_optimizer
from puna.train.step import OutlierGuard, train_step
from tests.conftest import changed

cuda = pytest.param(
    "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
)


@pytest.fixture(params=["meta", cuda])
def device(request, monkeypatch):
    if request.param == "cuda":
        return torch.device("cuda")
    # PyTorch's fused AdamW has a kernel for `meta`, but its constructor does not list the device.
    optimizer = sys.modules["torch.optim.optimizer"]
    monkeypatch.setattr(optimizer, "_get_fused_kernels_supported_devices", lambda: ["cpu", "cuda", "meta"])
    return torch.device("meta")


@contextmanager
def no_waits():
    """On `meta` a wait always is an error; on CUDA it is one in here."""
    if torch.cuda.is_available():
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("default")


def config(shards, **optim):
    base = recipe("tiny")
    return changed(
        replace(base, data=(str(shards),)),
        model={"vocab_size": 512, "n_kv_heads": 2},
        schedule={"micro_batch": 8},
        optim=optim,
    )


@pytest.mark.parametrize("activations", ["manual", "selective", "full", "none"])
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float32])
def test_a_step_mixes_no_devices_and_waits_for_nothing(shards, device, activations, precision):
    run = config(shards, skip_outliers=10.0)
    mixture = Mixture([shards], {}, 1, run.model.context, run.batch_sequences)
    model = Llama(run.model, precision, activations, device)
    model.init_weights(1)
    optimizer = build_optimizer(model, run.optim)
    guard = OutlierGuard(run.optim.skip_outliers, device, norms=(1.0, 2.0))
    written = []
    log = StepLog(mixture.sources, 1.0, 1.0, [written.append], may_skip=True)
    for step in range(2):
        with no_waits():
            result = train_step(model, optimizer, guard, mixture.batch(step), 2, 1e-3, run)
        for figure in (result.losses_S, result.tokens_S, result.grad_norm, result.finite, result.taken):
            assert figure.device.type == device.type
        if step == 0:  # taken, and not yet read
            with no_waits():
                log.add(TrainState(step=1), result, 1e-3, 1024)
    assert not written
    for parameter in model.parameters():
        assert parameter.device.type == device.type
        assert {value.device.type for value in optimizer.state[parameter].values()} == {device.type}


@torch.no_grad()
def test_held_out_losses_are_computed_where_the_model_is(shards, device):
    run = config(shards)
    model = Llama(run.model, torch.bfloat16, "manual", device)
    tokens = torch.zeros(2, 64, dtype=torch.long, device=device)
    with no_waits():
        losses_BT = model.losses(tokens, tokens)
    assert losses_BT.device.type == device.type


def test_a_decode_step_mixes_no_devices_and_waits_for_nothing(shards, device):
    model = Llama(config(shards).model, torch.bfloat16, device=device)
    cache = BlockCache(model.config, 9, torch.bfloat16, model.embedding.device)
    decode = StaticDecode(model, cache, padding=8, compiled=False)
    batch = torch.zeros(16, 2 + 8, dtype=torch.long, device=device)
    with torch.inference_mode(), no_waits():
        logits = decode.step(batch)
    assert logits.shape == (16, 512)
    assert logits.device.type == device.type


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
def test_a_recorded_step_is_the_launched_one(shards):
    """Three steps of three micro-batches, the last one shorter: weights and losses bit for bit."""
    run = config(shards)
    run = changed(run, schedule={"micro_batch": 3})
    mixture = Mixture([shards], {}, 1, run.model.context, run.batch_sequences)
    found = []
    for recorded in (False, True):
        model = Llama(run.model, torch.float32, "manual", "cuda")
        model.init_weights(1)
        gradients = Recorder(model) if recorded else launched(model)
        optimizer, guard = build_optimizer(model, run.optim), OutlierGuard(0, torch.device("cuda"))
        torch.use_deterministic_algorithms(True)
        try:
            results = [
                train_step(model, optimizer, guard, mixture.batch(step), 2, 1e-3, run, gradients=gradients)
                for step in range(3)
            ]
        finally:
            torch.use_deterministic_algorithms(False)
        assert not (recorded and gradients.failed)
        found.append(
            [result.record(mixture.sources) for result in results] + [dict(model.named_parameters())]
        )
    for launched_, recorded_ in zip(*found, strict=True):
        torch.testing.assert_close(recorded_, launched_, rtol=0, atol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
def test_cuda_decodes_like_the_cpu(shards):
    """Compiled and recorded: the likeliest tokens of 20 steps, from a prompt of two blocks."""
    model = Llama(replace(config(shards).model, context=128), torch.float32)
    model.init_weights(1)
    texts = []
    for device in ("cpu", "cuda"):
        runner = PlainRunner(model.to(device), 8, static=device == "cuda")
        last = [int(runner.prefill(list(range(70)), 0, [3, 1]).argmax())]
        text = [*last]
        for step in range(20):
            last = runner.decode(last, [70 + step], [[3, 1]]).argmax(-1).tolist()
            text += last
        texts.append(text)
    assert texts[0] == texts[1]
