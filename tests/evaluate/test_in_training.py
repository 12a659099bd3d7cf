"""Scores in metrics.jsonl: at their own interval, at the end, and before a run that starts from weights."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from puna.config import EvalConfig
from puna.evaluate import harness
from puna.evaluate.in_training import evaluator
from puna.evaluate.model import load_model
from puna.evaluate.options import Options
from puna.evaluate.tasks import TASKS
from puna.files import read_json_lines
from puna.recipes import recipe
from puna.rundir import TOKENIZER
from puna.train.loop import train
from puna.train.setup import Start
from tests.conftest import changed

TINY = {
    "model": {"vocab_size": 512},
    "schedule": {"steps": 4},
    "compute": {"threads": 1, "precision": "fp32"},
    "watch": {"validate_every": 3, "validation_windows": 2},
}


@pytest.fixture(scope="module")
def run(shards, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    section = EvalConfig(("piqa,winogrande",), every=2, limit=8, data=str(data.directory))
    config = replace(changed(replace(recipe("tiny"), data=(str(shards),)), **TINY), eval=section)
    train(config, out, evaluate=evaluator(section, out / TOKENIZER))
    return config, out


def validations(out):
    return [record for record in read_json_lines(out / "metrics.jsonl") if record["kind"] == "validation"]


def test_scores_are_in_the_validation_records_at_their_own_interval(run):
    _, out = run
    records = validations(out)
    assert [record["step"] for record in records] == [2, 3, 4]
    assert ["evaluation" in record for record in records] == [True, False, True]
    assert all(record["loss"] > 0 for record in records)
    for task in ("piqa", "winogrande"):
        found = records[-1]["evaluation"][task]
        assert found.keys() == {"score", "error", "chance", "n"}
        assert (found["chance"], found["n"]) == (50, 8) and 0 <= found["score"] <= 100


def test_the_last_scores_are_those_of_the_finished_run(run, data, tmp_path):
    _, out = run
    options = Options(limit=8, answer_context=False)
    model = load_model(out, "run", "fp32")
    jobs, _ = harness.plan([TASKS["piqa"], TASKS["winogrande"]], data, model, options, {})
    for result in harness.run(jobs, model, tmp_path, options, lambda label, tokens: None):
        (metric,) = result["metrics"].values()
        found = validations(out)[-1]["evaluation"][result["task"]]
        assert (found["score"], found["error"], found["n"]) == (metric["value"], metric["error"], result["n"])


def test_evaluation_does_not_change_the_run(run, tmp_path):
    config, out = run
    train(replace(config, eval=EvalConfig()), tmp_path)
    losses = [
        [r["loss"] for r in read_json_lines(path / "metrics.jsonl") if r["kind"] == "train"]
        for path in (out, tmp_path)
    ]
    assert losses[0] == losses[1]


def test_a_run_from_given_weights_is_scored_before_its_first_step(run, tmp_path):
    config, _ = run

    def half(name, shape, where):
        return torch.full(shape, 0.01)[where]

    def fail(model):
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):  # after the one at step 0
        scores = iter([lambda model: {"own": {"score": 1.0}}, fail])
        train(config, tmp_path, evaluate=lambda m: next(scores)(m), start=Start(weights=half))
    train(config, tmp_path, evaluate=lambda model: {"own": {"score": 1.0}}, start=Start(weights=half))
    assert [r["step"] for r in validations(tmp_path) if "evaluation" in r] == [0, 2, 4]


def test_a_task_that_cannot_be_scored_is_one_line_before_the_first_step(data, tmp_path):
    section = EvalConfig(("arc",), data=str(data.directory))
    with pytest.raises(ValueError, match="no task 'arc'"):
        evaluator(section, tmp_path)
    with pytest.raises(ValueError, match=r"boolq/val\.jsonl.*puna fetch eval"):
        evaluator(replace(section, tasks=("boolq",)), tmp_path)
    with pytest.raises(ValueError, match=r"truthfulqa needs a judge \(truth\).*puna eval --tasks truthfulqa"):
        evaluator(replace(section, tasks=("truthfulqa",)), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_the_command_scores_a_run_also_under_torchrun(shards, data, tmp_path, ranks):
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if ranks == 2 else []
    verb = ["-m", "puna.cli", "train", "--recipe", "tiny", "--model.vocab-size", "512", "--data", str(shards)]
    verb += ["--schedule.steps", "2", "--out", str(tmp_path), "--eval.tasks", "piqa,winogrande"]
    verb += ["--eval.every", "1", "--eval.limit", "6", "--eval.data", str(data.directory)]
    if ranks == 2:
        verb += ["--parallel.dp-shard", "2"]
    done = subprocess.run([sys.executable, *start, *verb], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    records = validations(tmp_path)
    assert [set(record["evaluation"]) for record in records] == [{"piqa", "winogrande"}] * 2
