"""Scores of a model while it trains: what loop.train writes into metrics.jsonl beside the held-out loss.

    model ──a fast subset of each task──> {"piqa": {"score": 61.5, "error": 3.4, "chance": 50.0, "n": 200}}

Score, error and chance are in the unit of `puna eval`'s table: percent for all tasks with options.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from puna.config import EvalConfig
from puna.evaluate import harness
from puna.evaluate.data import Data
from puna.evaluate.model import EngineModel
from puna.evaluate.options import Options
from puna.evaluate.task import Example
from puna.evaluate.tasks import find
from puna.generate.engine import Engine
from puna.generate.runners.cache import BLOCK
from puna.generate.runners.pytorch import PlainRunner
from puna.model.llama import Llama
from puna.tokens.tokenizer import Tokenizer

Scores = dict[str, dict[str, Any]]


def evaluator(config: EvalConfig, tokenizer: Path) -> Callable[[Llama], Scores]:
    """A function that scores the model it is given on the first `config.limit` examples of each task.

    `tokenizer`, a file or the run directory that holds it, is read when the function is called: a run copies
    it into its directory when it starts.

    Raises:
        ValueError: an unknown task, one that needs a judge, a data file that is missing or truncated.
    """
    data = Data(Path(config.data))
    tasks = []
    for task in find(config.tasks):
        if task.judge:
            raise ValueError(
                f"--eval.tasks: {task.name} needs a judge ({task.judge}) and cannot run within training; "
                f"run it on the checkpoint: puna eval --tasks {task.name}"
            )
        examples = tuple(task.read(data))[: config.limit]
        task.prefix(data, task.shots, examples[0].topic)
        tasks.append(replace(task, read=partial(_given, examples)))

    def evaluate(model: Llama) -> Scores:
        runner = PlainRunner(model, 2 * model.config.context // BLOCK)
        scored = EngineModel(Engine(runner, Tokenizer(tokenizer)), "model", "in training")
        found: Scores = {}
        for task in tasks:
            needs_base = "answer-context" in (task.normalisation, *task.also)
            options = Options(answer_context=needs_base)
            jobs, _ = harness.plan([task], data, scored, options, {})
            with TemporaryDirectory() as records:
                (result,) = harness.run(jobs, scored, Path(records), options, lambda label, tokens: None)
            metric = next(iter(result["metrics"].values()), {"value": None, "error": None})
            found[task.name] = {
                "score": metric["value"],
                "error": metric["error"],
                "chance": result["chance"],
                "n": result["n"],
            }
        return found

    return evaluate


def _given(examples: tuple[Example, ...], data: Data) -> tuple[Example, ...]:
    return examples
