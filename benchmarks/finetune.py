"""Finetuning speed and memory against transformers and PEFT, interleaved in one run.

    python benchmarks/finetune.py                 LoRA and full, SmolLM2-135M's shape with random weights
    python benchmarks/finetune.py --steps 6 --only puna-lora --only peft
    python benchmarks/finetune.py --quick         two layers, one turn: whether everything runs

Every contestant is a process of its own, idle while another trains. All get the same packed rows, whose
examples do not see each other (transformers masks them by their positions), the same adapters (r 16 on all
linear layers), fp32 products, fused AdamW, and the loss on the answers alone. Prints tokens/s (median and
range), peak memory, and the loss after the last step, which must be alike. transformers and PEFT are
development dependencies of puna.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from puna.config import (
    ComputeConfig,
    FinetuneConfig,
    LoraConfig,
    ModelConfig,
    OptimConfig,
    ScheduleConfig,
    TuneConfig,
)
from puna.devices import use_onednn_for_fp32
from puna.tokens.mixture import Batch
from puna.train.allocator import settings

CONTESTANTS = ["puna-lora", "peft", "peft+compile", "puna-full", "transformers", "transformers+compile"]
CONTEXT, ROWS, MEAN = 512, 4, 120  # tokens of a row, rows of a step, mean length of an example
RANK, ALPHA, LR = 16, 32.0, 2e-4
Step = Callable[[Batch], float]


def shape(layers: int) -> ModelConfig:
    return ModelConfig(
        dim=576, n_layers=layers, n_heads=9, n_kv_heads=3, ffn_dim=1536, vocab_size=49_152, context=2048,
        norm_eps=1e-5, tied_embeddings=True, rope_base=100_000.0,
    )  # fmt: skip


def batch(step: int) -> Batch:
    """Rows filled with examples of random lengths, the second half of each an answer."""
    draw = np.random.default_rng(step)
    inputs = draw.integers(0, 49_152, (ROWS, CONTEXT))
    targets, segments = np.full_like(inputs, -100), np.zeros_like(inputs)
    for row in range(ROWS):
        start, number = 0, 0
        while start < CONTEXT:
            end = min(start + int(draw.integers(MEAN // 2, MEAN * 3 // 2)), CONTEXT)
            segments[row, start:end] = number
            targets[row, (start + end) // 2 : end - 1] = inputs[row, (start + end) // 2 + 1 : end]
            start, number = end, number + 1
    return Batch(inputs, targets, np.zeros(ROWS, np.int64), int((targets != -100).sum()), segments)


def puna_step(layers: int, is_lora: bool) -> Step:
    from puna.finetune import lora
    from puna.model.llama import initial_weight
    from puna.train.setup import Start, build_model, initialise
    from puna.train.step import OutlierGuard, train_step

    config = TuneConfig(
        model=shape(layers),
        data=("-",),
        optim=OptimConfig(beta2=0.999, weight_decay=0.0),
        schedule=ScheduleConfig(batch_tokens=ROWS * CONTEXT, micro_batch=ROWS),
        compute=ComputeConfig(precision="fp32"),
        finetune=FinetuneConfig(context=CONTEXT),
        lora=LoraConfig(RANK, ALPHA) if is_lora else None,
    )

    class Random:
        """A model of random weights, as a source."""

        config = shape(layers)

        def read(self, part):
            return initial_weight(self.config, part.parameter, torch.Size(part.shape), 1)

    use_onednn_for_fp32()
    start = lora.start(Random(), config.lora, 1, {}) if is_lora else Start()
    model, optimizer = build_model(config, torch.device("cpu"), start=start)
    initialise(model, 1, weights=start.weights)
    guard = OutlierGuard(0, torch.device("cpu"))

    def step(given: Batch) -> float:
        return train_step(model, optimizer, guard, given, 1, LR, config).record(("all",))["loss"]

    return step


def peer_step(layers: int, is_lora: bool, is_compiled: bool) -> Step:
    import peft
    from transformers import LlamaConfig, LlamaForCausalLM

    from puna.formats.huggingface import config_values

    use_onednn_for_fp32()
    torch.manual_seed(1)
    values = config_values(shape(layers), torch.float32) | {"use_cache": False}
    model = LlamaForCausalLM(LlamaConfig(**values, attn_implementation="sdpa"))
    if is_lora:
        model = peft.get_peft_model(
            model, peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear")
        )
    model.train()
    run = torch.compile(model) if is_compiled else model
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LR, weight_decay=0.0, fused=True)

    def step(given: Batch) -> float:
        begins = np.diff(given.segments, axis=1, prepend=-1) != 0
        places = np.arange(CONTEXT)[None] - np.maximum.accumulate(begins * np.arange(CONTEXT)[None], axis=1)
        logits = run(torch.from_numpy(given.inputs), position_ids=torch.from_numpy(places)).logits
        targets = torch.from_numpy(given.targets).flatten()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def contestant(name: str, layers: int) -> None:
    """Read `N` lines, train N steps for each, answer a JSON line."""
    if name.startswith("puna"):
        step = puna_step(layers, name == "puna-lora")
    else:
        step = peer_step(layers, name.startswith("peft"), name.endswith("+compile"))
    number = 0
    for line in sys.stdin:
        seconds, loss = [], 0.0
        for _ in range(int(line)):
            given = batch(number)
            started = time.perf_counter()
            loss = step(given)
            seconds.append(time.perf_counter() - started)
            number += 1
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"seconds": seconds, "loss": loss, "peak_rss": peak}), flush=True)


def compete(names: list[str], layers: int, steps: int, turn: int) -> None:
    processes = {
        name: subprocess.Popen(
            [sys.executable, __file__, "--contestant", name, "--layers", str(layers)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | settings(),
        )
        for name in names
    }

    def ask(name: str, count: int) -> dict:
        processes[name].stdin.write(f"{count}\n")
        processes[name].stdin.flush()
        line = processes[name].stdout.readline()
        assert line, f"{name} ended"
        return json.loads(line)

    seconds: dict[str, list[float]] = {name: [] for name in names}
    last: dict[str, dict] = {}
    for name in names:
        ask(name, 1)  # kernels are compiled, memory is touched
    for _ in range(0, steps, turn):
        for name in names:
            last[name] = ask(name, turn)
            seconds[name] += last[name]["seconds"]
    for process in processes.values():
        process.stdin.close()
        process.wait()
    tokens = ROWS * CONTEXT
    print(f"{layers} layers, {tokens:,} tokens per step, {steps} steps each in turns of {turn}, fp32")
    print(f"{'':22}{'tokens/s':>10}{'range':>16}{'peak RSS':>12}{'last loss':>11}")
    for name, times in seconds.items():
        rates = sorted(tokens / one for one in times)
        found = (
            f"{name:22}{tokens / statistics.median(times):>10,.0f}{f'{rates[0]:,.0f}-{rates[-1]:,.0f}':>16}"
        )
        print(f"{found}{last[name]['peak_rss'] / 1e6:>9,.0f} MB{last[name]['loss']:>11.3f}")
    for ours, theirs in (("puna-lora", "peft"), ("puna-full", "transformers")):
        peers = [name for name in names if name.startswith(theirs)]
        if ours in seconds and peers:
            best = min(statistics.median(seconds[name]) for name in peers)
            print(f"{ours} is {best / statistics.median(seconds[ours]):.2f} times {theirs} at its best")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--turn", type=int, default=2)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--only", action="append", choices=CONTESTANTS)
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="two layers, one turn, without compilation")
    options = parser.parse_args()
    if options.contestant:
        contestant(options.contestant, options.layers)
        return
    quick = [name for name in CONTESTANTS if not name.endswith("+compile")]
    names = options.only or (quick if options.quick else CONTESTANTS)
    layers, steps = (2, options.turn) if options.quick else (options.layers, options.steps)
    compete(names, layers, steps, options.turn)


if __name__ == "__main__":
    main()
