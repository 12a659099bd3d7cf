"""lm-eval on its own tasks for eval.py: requests as lines of JSON on stdin, replies on stdout.

    _eval_contestant.py MODEL THREADS SOFTMAX VOCABULARY.gguf      lm-eval's `hf` backend
    _eval_contestant.py MODEL THREADS SOFTMAX --puna               our engine, by puna.evaluate.lm_eval_model

SOFTMAX is the precision of the `hf` backend's softmax: float32 is what lm-eval has by default.

{"task": "arc_easy", "data": DIR, "count": N, "shots": 0} -> {"seconds": of log-likelihoods, "samples": …},
one sample per example: its log-likelihoods, lm-eval's verdicts acc and acc_norm.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch


def hugging_face(directory: str, softmax: str, vocabulary: str) -> Any:
    """lm-eval's own backend in fp32."""
    from lm_eval.models.huggingface import HFLM
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoTokenizer

    gguf = Path(vocabulary)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # SmolLM2 divides numbers into digits before anything else. transformers does not read this from a GGUF
    # file, and makes other tokens of "  3" than the model was trained on.
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )
    options = {"device": "cpu", "dtype": "float32", "softmax_dtype": softmax, "batch_size": 16}
    return HFLM(pretrained=directory, tokenizer=tokenizer, **options)


def main() -> None:
    directory, threads, softmax, vocabulary = sys.argv[1:]
    torch.set_num_threads(int(threads))
    out, sys.stdout = sys.stdout, sys.stderr
    if vocabulary == "--puna":
        from puna.evaluate.lm_eval_model import PunaLM

        model: Any = PunaLM(directory, "fp32")
    else:
        model = hugging_face(directory, softmax, vocabulary)
    from _lm_eval_tasks import task_of
    from lm_eval import simple_evaluate

    seconds, score = 0.0, model.loglikelihood

    def timed(*arguments: Any, **options: Any) -> Any:
        nonlocal seconds
        began = time.perf_counter()
        found = score(*arguments, **options | {"disable_tqdm": True})
        seconds += time.perf_counter() - began
        return found

    model.loglikelihood = timed
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        task = task_of(asked["task"], Path(asked["data"]), asked["count"])
        seconds = 0.0
        found = simple_evaluate(
            model=model, tasks=[task], num_fewshot=asked["shots"], bootstrap_iters=0, log_samples=True
        )
        samples = sorted(found["samples"][asked["task"]], key=lambda sample: sample["doc_id"])
        reply = [
            {
                "logprobs": [float(one[0][0]) for one in sample["resps"]],
                "acc": float(sample["acc"]),
                "acc_norm": float(sample.get("acc_norm", sample["acc"])),
            }
            for sample in samples
        ]
        print(json.dumps({"seconds": seconds, "samples": reply}), file=out, flush=True)


if __name__ == "__main__":
    main()
