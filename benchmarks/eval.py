"""Evaluation against lm-evaluation-harness with transformers: seconds, log-likelihoods, answers; in one run.

    python benchmarks/eval.py --data DIR             SmolLM2-135M, 2 threads, fp32; bf16 and int8 beside it
    python benchmarks/eval.py --data DIR --quick     a few examples of each task

Both score the same texts (our prompts, which are lm-eval's templates for these tasks), the whole of a task in
one call, and take turns. Seconds include making token ids, not loading. Prints per task: seconds of both, how
many times faster, the largest difference of a log-likelihood, and how many answers differ.
lm-eval runs in an environment of its own (`make peers`), or in that of --python.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from _peers import interpreter

from puna.api import find_model
from puna.evaluate.data import Data
from puna.evaluate.model import EngineModel, load_model
from puna.evaluate.normalise import Option, choose, score
from puna.evaluate.prompts import Prompter
from puna.evaluate.task import Example, Task
from puna.evaluate.tasks import TASKS

HERE = Path(__file__).parent
SUBJECTS = 10
# Task -> examples of a full run; for MMLU of each subject.
COUNTS = {"mmlu": 100, "arc_easy": 500, "hellaswag": 300, "piqa": 500}


def examples_of(task: Task, data: Data, count: int) -> list[Example]:
    """The first examples; of MMLU those of the first subjects."""
    found = list(task.read(data))
    if task.name != "mmlu":
        return found[:count]
    topics = list(dict.fromkeys(example.topic for example in found))[:SUBJECTS]
    return [e for topic in topics for e in [e for e in found if e.topic == topic][:count]]


def texts_of(task: Task, data: Data, model: EngineModel, examples: list[Example]) -> list[tuple[str, str]]:
    """The pairs of context and continuation that lm-eval scores."""
    prompter = Prompter(task, data, model, with_base=False)
    return [(p.context, option) for p in prompter.prepare(examples) for option in p.example.options]


def ours(task: Task, data: Data, model: EngineModel, examples: list[Example]) -> tuple[float, list[float]]:
    """Seconds, and the log-likelihoods of all options in order."""
    began = time.perf_counter()
    prepared = Prompter(task, data, model, with_base=False).prepare(examples)
    scored = model.score([row for p in prepared for row in p.rows], lambda tokens: None)
    return time.perf_counter() - began, [one.logprob for one in scored]


def answers(task: Task, examples: list[Example], logprobs: list[float]) -> list[int]:
    """What is chosen with these log-likelihoods."""
    values = iter(logprobs)
    rule = "none" if task.name == "mmlu" else "char"
    return [
        choose([score(Option(text, next(values), 1), rule) or 0.0 for text in e.options]) for e in examples
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=os.environ.get("PUNA_EVALDATA", "data/eval"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", action="append", choices=list(COUNTS))
    parser.add_argument("--python", type=Path, default=interpreter("lm-eval"))
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-eval"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if not Path(options.data).is_dir():
        print(f"no benchmark data at {options.data}; set PUNA_EVALDATA or give --data")
        return
    options.work.mkdir(parents=True, exist_ok=True)
    directory = find_model("smollm2")
    hub = options.work / "hf"
    if not (hub / "model.safetensors").is_file():
        command = [sys.executable, "-m", "puna.cli", "convert", str(directory), str(hub), "--to", "hf"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    data = Data(options.data)
    models = {weights: load_model(hub, "smollm2", weights) for weights in ("fp32", "bf16", "int8")}
    peer = None
    if options.python:
        command = [str(options.python), str(HERE / "_eval_contestant.py"), str(hub), str(options.threads)]
        command += [str(directory)]
        peer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert peer.stdout and peer.stdout.readline() == "ready\n", "lm-eval does not start"
    else:
        print("lm-eval is not installed; only our own speed: make peers")
    for name in options.only or COUNTS:
        task = TASKS[name]
        examples = examples_of(task, data, 4 if options.quick else COUNTS[name])
        gold = [example.gold[0] for example in examples]
        seconds, found = ours(task, data, models["fp32"], examples)
        print(f"{name}: {len(examples)} examples, puna fp32 {seconds:.1f} s", flush=True)
        if peer and peer.stdin and peer.stdout:
            request = texts_of(task, data, models["fp32"], examples)
            peer.stdin.write(json.dumps(request) + "\n")
            peer.stdin.flush()
            theirs_seconds, theirs = json.loads(peer.stdout.readline())
            difference = float(np.abs(np.array(found) - np.array(theirs)).max())
            pairs = zip(answers(task, examples, found), answers(task, examples, theirs), strict=True)
            changed = sum(a != b for a, b in pairs)
            print(
                f"    lm-eval {theirs_seconds:.1f} s: puna is {theirs_seconds / seconds:.2f} times "
                f"as fast; largest difference {difference:.1e} nats; {changed} answers differ",
                flush=True,
            )
        base = answers(task, examples, found)
        right = sum(a == g for a, g in zip(base, gold, strict=True))
        print(f"    fp32: {right} right", flush=True)
        for weights in ("bf16", "int8"):
            seconds, less = ours(task, data, models[weights], examples)
            other = answers(task, examples, less)
            right, changed = sum(map(int.__eq__, other, gold)), sum(map(int.__ne__, other, base))
            print(
                f"    {weights} {seconds:.1f} s: {right} right, {changed} answers differ from fp32",
                flush=True,
            )


if __name__ == "__main__":
    main()
