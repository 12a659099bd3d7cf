"""lm-eval's `hf` backend for eval.py: lines of JSON pairs on stdin, [seconds, log-likelihoods] on stdout."""

import json
import sys
import time

import torch


def main() -> None:
    directory, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    out, sys.stdout = sys.stdout, sys.stderr
    model = HFLM(pretrained=directory, device="cpu", dtype="float32", batch_size=16)
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
