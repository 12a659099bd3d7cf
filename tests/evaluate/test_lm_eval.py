"""lm-eval drives our engine: its requests, its task loop. It has an environment of its own (`make peers`)."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from puna.generate.likelihood import Row

PACKAGES = sorted((Path(__file__).parents[2] / ".venv-peers/lm-eval/lib").glob("python3.*/site-packages"))
# Our environment first: what both have, such as torch, is ours.
SCRIPT = """
import json, sys
sys.path.append(sys.argv[1])
from datasets import Dataset, DatasetDict
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager
from puna.evaluate.lm_eval_model import PunaLM

model = PunaLM(sys.argv[2], "fp32")
asked = lambda kind, arguments: [
    Instance(request_type=kind, doc={}, arguments=tuple(one), idx=i) for i, one in enumerate(arguments)
]
rows = [{"q": "river stone", "options": ["apple", "light cloud"], "gold": i % 2} for i in range(4)]
task = ConfigurableTask(config={
    "task": "own", "custom_dataset": lambda **_: DatasetDict({"test": Dataset.from_list(rows)}),
    "test_split": "test",
    "output_type": "multiple_choice", "doc_to_text": "{{q}}", "doc_to_choice": "options",
    "doc_to_target": "gold", "metric_list": [{"metric": "acc"}],
})
pairs = [("river stone", " apple"), ("river stone", " light cloud")]
manager = TaskManager(include_defaults=False)  # the index of its own tasks takes seconds
found = simple_evaluate(model=model, tasks=[task], task_manager=manager, bootstrap_iters=0)
greedy = {"until": ["\\n"], "max_gen_toks": 5, "do_sample": False}
print(json.dumps({
    "pairs": model.loglikelihood(asked("loglikelihood", pairs)),
    "rolling": model.loglikelihood_rolling(asked("loglikelihood_rolling", [("river stone apple",)])),
    "texts": model.generate_until(asked("generate_until", [("river stone", greedy)])),
    "accuracy": found["results"]["own"]["acc,none"],
    "samples": [[one[0][0] for one in s["resps"]] for s in found["samples"]["own"]],
}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not PACKAGES, reason="lm-eval is not installed: make peers")
def test_lm_eval_scores_and_generates_with_our_engine(directory, model):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(PACKAGES[0]), str(directory)],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    context, *wholes = model.encode(["river stone", "river stone apple", "river stone light cloud"])
    rows = [Row(whole[: len(context)], whole[len(context) :]) for whole in wholes]
    own = [scored.logprob for scored in model.score(rows, lambda tokens: None)]
    assert [logprob for logprob, _ in found["pairs"]] == own
    assert found["samples"] == [own] * 4 and found["accuracy"] == 0.5
    (whole,) = model.score([Row(wholes[0][:1], wholes[0][1:])], lambda tokens: None)
    assert found["rolling"] == [pytest.approx(whole.logprob)] and np.isfinite(whole.logprob)
    assert isinstance(found["texts"][0], str) and "\n" not in found["texts"][0]
