"""One contestant of benchmarks/train.py: a model of a given size, trained step by step on request.

Reads `N` lines on stdin, trains N steps for each, answers one JSON line: seconds of each step, losses, peak
memory. Everyone gets the same batches, fp32 master weights and residual stream, bf16 products (or fp32
throughout), fused AdamW and clipping. It imports puna only as the contestant `puna`, so that it runs in the
peers' environment too.
"""

import json
import resource
import sys
import time
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

# name: dim, layers, heads, ffn, vocabulary, context; sequences per step on a CPU and on a GPU
SIZES = {
    "15m": (288, 6, 6, 768, 4096, 512, 16, 128),
    "110m": (768, 12, 12, 2048, 32_000, 512, 4, 32),
    "1b": (2048, 22, 16, 5632, 32_000, 2048, 1, 4),
}


def batches(vocabulary: int, context: int, sequences: int):
    """Text-like tokens: a random walk on a Zipfian bigram graph, the same for everyone."""
    generator = torch.Generator().manual_seed(0)
    ranks = torch.arange(1, vocabulary + 1, dtype=torch.float64)
    followers = torch.multinomial(1 / ranks, vocabulary * 8, replacement=True, generator=generator)
    followers = followers.view(vocabulary, 8)
    while True:
        tokens = torch.empty(sequences, context + 1, dtype=torch.long)
        tokens[:, 0] = torch.randint(vocabulary, (sequences,), generator=generator)
        choices = torch.randint(8, (sequences, context), generator=generator)
        for t in range(context):
            tokens[:, t + 1] = followers[tokens[:, t], choices[:, t]]
        yield tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


class PlainBlock(nn.Module):
    """What one writes first: fused products, RMSNorm, rotary pairs, scaled_dot_product_attention."""

    def __init__(self, dim: int, heads: int, ffn: int, context: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.RMSNorm(dim, 1e-6), nn.RMSNorm(dim, 1e-6)
        self.qkv, self.out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.gate_up, self.down = nn.Linear(dim, 2 * ffn, bias=False), nn.Linear(ffn, dim, bias=False)
        size = dim // heads
        angles = torch.outer(torch.arange(context), 10_000.0 ** (-torch.arange(0, size, 2) / size))
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def rotate(self, x: torch.Tensor) -> torch.Tensor:
        low, high = x.float().chunk(2, -1)
        return torch.cat((low * self.cos - high * self.sin, high * self.cos + low * self.sin), -1).to(x.dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, T, D = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        o = F.scaled_dot_product_attention(self.rotate(q), self.rotate(k), v, is_causal=True)
        x = x + self.out(o.transpose(1, 2).reshape(B, T, D))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class Plain(nn.Module):
    def __init__(self, dim, layers, heads, ffn, vocabulary, context) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, dim)
        self.blocks = nn.ModuleList(PlainBlock(dim, heads, ffn, context) for _ in range(layers))
        self.norm, self.output = nn.RMSNorm(dim, 1e-6), nn.Linear(dim, vocabulary, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.output(self.norm(x))


def initialise(model: nn.Module) -> None:
    """Everyone starts alike: N(0, 0.02²)."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 0.02)


def on_device(tensor: torch.Tensor, device: str) -> torch.Tensor:
    return tensor.pin_memory().to(device, non_blocking=True) if device == "cuda" else tensor


def transformers_model(dim, layers, heads, ffn, vocabulary, context):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=dim,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=context,
        rms_norm_eps=1e-6,
        use_cache=False,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config)
    return model, lambda run, tokens: run(tokens).logits


def litgpt_model(dim, layers, heads, ffn, vocabulary, context):
    from litgpt import GPT, Config

    config = Config(
        name="bench",
        block_size=context,
        n_layer=layers,
        n_embd=dim,
        n_head=heads,
        vocab_size=vocabulary,
        padded_vocab_size=vocabulary,
        intermediate_size=ffn,
        norm_class_name="RMSNorm",
        norm_eps=1e-6,
        mlp_class_name="LLaMAMLP",
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
    )
    model = GPT(config)
    return model, lambda run, tokens: run(tokens)


def peer_step(name: str, shape: tuple[int, ...], precision: str, device: str):
    """A training step of a peer, at its best: fused AdamW, autocast, compiled where asked."""
    base = name.partition("+")[0]
    if base == "plain":
        model, logits_of = Plain(*shape), lambda run, tokens: run(tokens)
    else:
        build = transformers_model if base == "transformers" else litgpt_model
        model, logits_of = build(*shape)
    model.to(device)
    initialise(model)
    model.train()
    run = model
    if "+" in name:
        mode = "reduce-overhead" if name.endswith("+graphs") else "default"
        run = torch.compile(model, mode=mode)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )

    def step(tokens: torch.Tensor, targets: torch.Tensor) -> float:
        tokens, targets = on_device(tokens, device), on_device(targets, device)
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            logits = logits_of(run, tokens)
        loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def puna_step(shape: tuple[int, ...], precision: str, device: str):
    """puna's own step, as puna.train takes it."""
    import numpy as np

    from puna.config import ModelConfig, OptimConfig, RunConfig, ScheduleConfig
    from puna.devices import configure
    from puna.kernels.elementwise import compile_kernels
    from puna.model.llama import Llama
    from puna.tokens.mixture import Batch
    from puna.train.graph import gradients_of
    from puna.train.optim import build_optimizer
    from puna.train.step import OutlierGuard, train_step

    dim, layers, heads, ffn, vocabulary, context = shape
    config = ModelConfig(
        dim=dim, n_layers=layers, n_heads=heads, ffn_dim=ffn, vocab_size=vocabulary, context=context
    )
    compile_kernels()
    place = torch.device(device)
    configure(place)
    model = Llama(config, torch.bfloat16 if precision == "bf16" else torch.float32, "manual", place)
    model.init_weights(1)
    initialise(model)
    optimizer = build_optimizer(model, OptimConfig())
    guard, gradients = OutlierGuard(0, place), gradients_of(model, RunConfig(model=config))
    run = RunConfig(model=config, schedule=ScheduleConfig(micro_batch=1024))

    def step(tokens: torch.Tensor, targets: torch.Tensor) -> float:
        sources = np.zeros(len(tokens), np.int64)
        batch = Batch(tokens.numpy(), targets.numpy(), sources, targets.numel())
        result = train_step(model, optimizer, guard, batch, 1, 1e-3, run, gradients=gradients)
        return result.record(("all",))["loss"]

    return step


def peak_bytes(device: str) -> int:
    """Memory that the process took, or on a GPU its tensors."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(name: str, size: str, precision: str, device: str) -> None:
    *shape, on_cpu, on_gpu = SIZES[size]
    make = puna_step if name == "puna" else partial(peer_step, name)
    step = make(tuple(shape), precision, device)
    data = batches(shape[4], shape[5], on_gpu if device == "cuda" else on_cpu)
    for line in sys.stdin:
        seconds, losses = [], []
        for _ in range(int(line)):
            tokens, targets = next(data)
            started = time.perf_counter()
            losses.append(step(tokens, targets))  # waits for the loss, and so for the step
            seconds.append(time.perf_counter() - started)
        print(json.dumps({"seconds": seconds, "losses": losses, "peak": peak_bytes(device)}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
