"""lm-eval's own `local-completions` client, unmodified, scores a model through the server.

lm-eval lives in an environment of its own (`make peers`). With no tokenizer given it finds out the server's.
The oracle is the model's plain forward pass.
"""

import json
import subprocess
from pathlib import Path

import pytest
import torch

from tests.serve.conftest import NAME, live, tiny_engine

PYTHON = Path(__file__).parents[2] / ".venv-peers/lm-eval/bin/python"
CLIENT = """
import json, sys
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI

url, name, likelihoods, rolling, generations = json.loads(sys.argv[1])
model = LocalCompletionsAPI(base_url=url, model=name, max_length=512, num_concurrent=2, batch_size=3)
assert model.tokenizer_backend == "remote", model.tokenizer_backend
asked = lambda kind, arguments: [
    Instance(request_type=kind, doc={}, arguments=tuple(one), idx=i) for i, one in enumerate(arguments)
]
print(json.dumps({
    "likelihoods": model.loglikelihood(asked("loglikelihood", likelihoods)),
    "rolling": model.loglikelihood_rolling(asked("loglikelihood_rolling", rolling)),
    "generations": model.generate_until(asked("generate_until", generations)),
}))
"""
PAIRS = [("the llama", " carries"), ("the wind", " over the puna"), ("seven", " stones"), ("a", "b")]
ROLLING = [("the river carries the salt",)]


def has_client() -> bool:
    if not PYTHON.is_file():
        return False
    return subprocess.run([PYTHON, "-c", "import lm_eval"], capture_output=True).returncode == 0


@pytest.mark.slow
def test_lm_eval_scores_and_generates_through_the_server(vocabulary):
    if not has_client():
        pytest.skip("no lm-eval: make peers")
    engine = tiny_engine(vocabulary, max_batch=8)
    generations = [("the llama", {"until": ["salt"], "max_gen_toks": 12, "temperature": 0})]
    with live(engine) as one:
        asked = json.dumps([f"{one.url}/v1/completions", NAME, PAIRS, ROLLING, generations])
        done = subprocess.run([PYTHON, "-c", CLIENT, asked], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout.splitlines()[-1])
        tokenizer = engine.tokenizer
        ids = tokenizer.encode("the llama")  # lm-eval sends ids, and no BOS
        expected = one.complete(prompt=ids, max_tokens=12, stop="salt", ignore_eos=False)

    def score(context: list[int], continuation: list[int]) -> tuple[float, bool]:
        ids = torch.tensor([context + continuation])
        with torch.inference_mode():
            logprobs_TV = engine.runner.model(ids)[0].float().log_softmax(-1)[len(context) - 1 : -1]
        picked = logprobs_TV.gather(1, torch.tensor(continuation)[:, None])
        return float(picked.sum()), bool((logprobs_TV.argmax(-1) == torch.tensor(continuation)).all())

    for (context, continuation), (logprob, is_greedy) in zip(PAIRS, said["likelihoods"], strict=True):
        before = tokenizer.encode(context)
        after = tokenizer.encode(context + continuation)[len(before) :]
        wanted, wanted_greedy = score(before, after)
        assert logprob == pytest.approx(wanted, abs=1e-3)
        assert is_greedy == wanted_greedy
    (text,) = ROLLING[0]
    assert said["rolling"] == [pytest.approx(score([tokenizer.bos_id], tokenizer.encode(text))[0], abs=1e-3)]
    assert said["generations"] == [expected["choices"][0]["text"]]
