"""lm-eval's `hf` backend for eval.py: lines of JSON pairs on stdin, [seconds, log-likelihoods] on stdout."""

import json
import sys
import time
from pathlib import Path

import torch


def main() -> None:
    directory, threads, vocabulary = sys.argv[1:]
    torch.set_num_threads(int(threads))
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer

    out, sys.stdout = sys.stdout, sys.stderr
    gguf = Path(vocabulary)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    options = {"device": "cpu", "dtype": "float32", "batch_size": 16}
    model = HFLM(pretrained=directory, tokenizer=tokenizer, **options)
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        pairs = json.loads(line)
        requests = [
            Instance(request_type="loglikelihood", doc={}, arguments=tuple(pair), idx=place)
            for place, pair in enumerate(pairs)
        ]
        began = time.perf_counter()
        found = model.loglikelihood(requests, disable_tqdm=True)
        seconds = time.perf_counter() - began
        print(json.dumps([seconds, [value for value, _ in found]]), file=out, flush=True)


if __name__ == "__main__":
    main()
