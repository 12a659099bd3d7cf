"""Evaluation against lm-evaluation-harness with transformers: seconds, log-likelihoods, answers; in one run.

    python benchmarks/eval.py --data DIR             SmolLM2-135M, 2 threads, fp32; bf16 and int8 beside it
    python benchmarks/eval.py --data DIR --quick     a few examples of each task

Each runs its own task, with its own prompts, on the same examples, the whole of a task in one call, and they
take turns. Seconds include making token ids, not loading. Prints per task: seconds of both, how many times
faster, the largest difference of a log-likelihood, and for how many examples lm-eval's acc or acc_norm
differs from ours.
lm-eval runs in an environment of its own (`make peers`), or in that of --python.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from _peers import interpreter

from puna.api import find_model
from puna.evaluate.data import Data
from puna.evaluate.model import EngineModel, load_model
from puna.evaluate.normalise import Option, is_correct, score
from puna.evaluate.prompts import Prompter
from puna.evaluate.task import Example, Task
from puna.evaluate.tasks import TASKS

HERE = Path(__file__).parent
SUBJECTS = 10
# Task -> examples of a full run; for MMLU of each subject.
COUNTS = {
    "mmlu": 100,
    "arc_easy": 500,
    "arc_challenge": 500,
    "hellaswag": 300,
    "piqa": 500,
    "winogrande": 500,
}
Verdicts = list[tuple[bool, bool]]


def examples_of(task: Task, data: Data, count: int) -> list[Example]:
    """The first examples; of MMLU those of the first subjects."""
    found = list(task.read(data))
    if task.name != "mmlu":
        return found[:count]
    topics = list(dict.fromkeys(example.topic for example in found))[:SUBJECTS]
    return [e for topic in topics for e in [e for e in found if e.topic == topic][:count]]


def ours(task: Task, data: Data, model: EngineModel, examples: list[Example]) -> tuple[float, list[float]]:
    """Seconds, and the log-likelihoods of all options in order."""
    began = time.perf_counter()
    prepared = Prompter(task, data, model, with_base=False).prepare(examples)
    scored = model.score([row for p in prepared for row in p.rows], lambda tokens: None)
    return time.perf_counter() - began, [one.logprob for one in scored]


def verdicts(examples: list[Example], logprobs: list[float]) -> Verdicts:
    """Whether each example is right with these log-likelihoods: as they are, and per character."""
    values, found = iter(logprobs), []
    for e in examples:
        options = [Option(text, next(values), 1) for text in e.options]
        plain, char = ([score(option, rule) or 0.0 for option in options] for rule in ("none", "char"))
        found.append((is_correct(plain, e.gold), is_correct(char, e.gold)))
    return found


class Peer:
    """lm-eval in its own process."""

    def __init__(self, python: Path, *arguments: object) -> None:
        command = [str(python), str(HERE / "_eval_contestant.py"), *map(str, arguments)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        assert self._process.stdin and self._process.stdout
        self._in, self._out = self._process.stdin, self._process.stdout
        assert self._out.readline() == "ready\n", "lm-eval does not start"

    def score(self, task: Task, data: Data, examples: list[Example]) -> tuple[float, list[float], Verdicts]:
        """Seconds, log-likelihoods of all options, lm-eval's acc and acc_norm."""
        topics = Counter(example.topic for example in examples)
        seconds, logprobs, found = 0.0, list[float](), list[tuple[bool, bool]]()
        for topic, count in topics.items():
            name = f"{task.name}_{topic}" if topic else task.name
            asked = {"task": name, "data": str(data.directory), "count": count, "shots": task.shots}
            self._in.write(json.dumps(asked) + "\n")
            self._in.flush()
            reply = json.loads(self._out.readline())
            seconds += reply["seconds"]
            logprobs += [value for sample in reply["samples"] for value in sample["logprobs"]]
            found += [(sample["acc"] == 1, sample["acc_norm"] == 1) for sample in reply["samples"]]
        return seconds, logprobs, found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=os.environ.get("PUNA_EVALDATA", "data/eval"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--count", type=int, help="examples of each task; for MMLU of each subject")
    parser.add_argument("--fp32", action="store_true", help="without bf16 and int8")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--softmax64",
        action="store_true",
        help="lm-eval's softmax in fp64: in fp32 it gains up to 2e-5 nats at every token; not for its speed",
    )
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
    precisions = ("fp32",) if options.fp32 else ("fp32", "bf16", "int8")
    models = {weights: load_model(hub, "smollm2", weights) for weights in precisions}
    peer = None
    if options.python:
        softmax = "float64" if options.softmax64 else "float32"
        peer = Peer(options.python, hub, options.threads, softmax, directory)
    else:
        print("lm-eval is not installed; only our own speed: make peers")
    for name in options.only or COUNTS:
        task = TASKS[name]
        examples = examples_of(task, data, 4 if options.quick else options.count or COUNTS[name])
        seconds, found = ours(task, data, models["fp32"], examples)
        base, by = verdicts(examples, found), int(task.normalisation == "char")
        right = sum(one[by] for one in base)
        print(f"{name}: {len(examples)} examples, puna fp32 {seconds:.1f} s, {right} right", flush=True)
        if peer:
            theirs_seconds, theirs, theirs_verdicts = peer.score(task, data, examples)
            difference = float(np.abs(np.array(found) - np.array(theirs)).max())
            with_norm = 2 if name not in ("mmlu", "winogrande") else 1  # the others have no acc_norm
            pairs = zip(base, theirs_verdicts, strict=True)
            changed = sum(a[:with_norm] != b[:with_norm] for a, b in pairs)
            print(
                f"    lm-eval {theirs_seconds:.1f} s: puna is {theirs_seconds / seconds:.2f} times "
                f"as fast; largest difference {difference:.1e} nats; {changed} verdicts differ",
                flush=True,
            )
        for weights in () if options.fp32 else ("bf16", "int8"):
            seconds, less = ours(task, data, models[weights], examples)
            other = verdicts(examples, less)
            right = sum(one[by] for one in other)
            changed = sum(a[by] != b[by] for a, b in zip(base, other, strict=True))
            print(
                f"    {weights} {seconds:.1f} s: {right} right, {changed} verdicts differ from fp32",
                flush=True,
            )


if __name__ == "__main__":
    main()
