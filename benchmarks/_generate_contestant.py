"""One contestant of benchmarks/generate.py: a model loaded once, that answers as often as it is asked.

    _generate_contestant.py KIND MODEL THREADS DEVICE    KIND: puna:bf16, llama.cpp, transformers, …+compile

Reads JSON lines on stdin, `{"prompt": 64, "steps": 128, "sequences": 1}`: that many sequences of as many
tokens each, then greedy steps for all at once. Answers one JSON line: seconds of the first sequence's
prompt, seconds of the steps, peak memory. It imports puna only as the contestant `puna`, so that it runs in
the peers' environment too.
"""

import ctypes
import json
import sys
import time
from functools import partial
from pathlib import Path

CONTEXT = 1024  # tokens of all sequences together are at most twice this


def prompts(vocabulary: int, sequences: int, length: int) -> list[list[int]]:
    """Tokens, the same for everyone. What they are does not matter to the time."""
    return [[1000 + (7919 * i * i + 104_729 * s) % (vocabulary - 1000) for i in range(length)]
            for s in range(sequences)]  # fmt: skip


class Puna:
    def __init__(self, weights: str, model: str, threads: int, device: str) -> None:
        import torch

        from puna.formats.convert import open_source
        from puna.generate.load import load_runner
        from puna.generate.runners.cache import BLOCK

        torch.set_num_threads(threads)
        self.block = BLOCK
        source, n_blocks = open_source(Path(model))[1], 2 * CONTEXT // BLOCK + 16
        self.runner = load_runner(source, weights, n_blocks, device=torch.device(device))
        self.vocabulary = self.runner.config.vocab_size

    def run(self, tokens: list[list[int]], steps: int) -> tuple[float, float]:
        blocks = -(-(len(tokens[0]) + steps) // self.block)
        tables = [list(range(blocks * s, blocks * (s + 1))) for s in range(len(tokens))]
        started = time.perf_counter()
        last = [int(self.runner.prefill(tokens[0], 0, tables[0]).argmax())]
        first = time.perf_counter() - started
        for ids, table in zip(tokens[1:], tables[1:], strict=True):
            last.append(int(self.runner.prefill(ids, 0, table).argmax()))
        started = time.perf_counter()
        for step in range(steps):
            positions = [len(tokens[0]) + step] * len(tokens)
            last = self.runner.decode(last, positions, tables).argmax(-1).tolist()
        return first, time.perf_counter() - started


class LlamaCpp:
    """llama.cpp's own batches, as its llama-batched-bench uses them."""

    def __init__(self, model: str, threads: int, device: str) -> None:
        import llama_cpp
        import numpy

        assert device == "cpu", "llama.cpp is compared on CPUs alone"
        self.api, self.numpy = llama_cpp, numpy
        self.quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self.quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(
            model.encode(), llama_cpp.llama_model_default_params()
        )
        options = llama_cpp.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch = 2 * CONTEXT, 512, 512
        options.n_threads = options.n_threads_batch = threads
        options.n_seq_max, options.kv_unified = 16, True
        self.context = llama_cpp.llama_init_from_model(self.model, options)
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

    def decode(self, rows: list[tuple[int, int, int, bool]]) -> list[int]:
        """Rows of token, position, sequence, wanted -> the likeliest token after each that is wanted."""
        batch = self.api.llama_batch_init(len(rows), 0, 1)
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i] = token, position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            batch.logits[i] = wanted
        assert self.api.llama_decode(self.context, batch) == 0, "llama_decode failed"
        likeliest = []
        for i, row in enumerate(rows):
            if row[3]:
                logits = self.api.llama_get_logits_ith(self.context, i)
                likeliest.append(int(self.numpy.ctypeslib.as_array(logits, (self.vocabulary,)).argmax()))
        self.api.llama_batch_free(batch)
        return likeliest

    def run(self, tokens: list[list[int]], steps: int) -> tuple[float, float]:
        self.api.llama_memory_clear(self.memory, True)
        length, last = len(tokens[0]), []
        started = time.perf_counter()
        for s, ids in enumerate(tokens):
            last += self.decode([(token, i, s, i == length - 1) for i, token in enumerate(ids)])
            if s == 0:
                first = time.perf_counter() - started
        started = time.perf_counter()
        for step in range(steps):
            last = self.decode([(token, length + step, s, True) for s, token in enumerate(last)])
        return first, time.perf_counter() - started


class Transformers:
    """Its model with a growing cache; `compiled`: decoding compiled, with a cache of fixed size."""

    def __init__(self, model: str, threads: int, device: str, compiled: bool = False) -> None:
        import torch
        import transformers

        torch.set_num_threads(threads)
        transformers.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self.torch, self.device = torch, device
        self.model = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
        self.model.to(device).eval()
        self.decode = self.model
        if compiled:
            self.decode = torch.compile(self.model, mode="reduce-overhead", fullgraph=True)
        self.compiled = compiled
        self.vocabulary = self.model.config.vocab_size

    def cache(self):
        from transformers import DynamicCache, StaticCache

        config = self.model.config
        return (
            StaticCache(config=config, max_cache_len=CONTEXT)
            if self.compiled
            else DynamicCache(config=config)
        )

    def run(self, tokens: list[list[int]], steps: int) -> tuple[float, float]:
        tensor = self.torch.tensor(tokens, device=self.device)
        with self.torch.inference_mode():
            cache, started = self.cache(), time.perf_counter()
            state = self.model(tensor[:1], past_key_values=cache, use_cache=True, logits_to_keep=1)
            last = state.logits.argmax(-1).cpu()
            first = time.perf_counter() - started
            if len(tokens) > 1:
                cache = self.cache()
                state = self.model(tensor, past_key_values=cache, use_cache=True, logits_to_keep=1)
                last = state.logits.argmax(-1).cpu()
            started = time.perf_counter()
            for _ in range(steps):
                state = self.decode(last.to(self.device), past_key_values=cache, use_cache=True)
                last = state.logits.argmax(-1).cpu()
            return first, time.perf_counter() - started


def peak_bytes(device: str) -> int:
    """Memory that the process took, or on a GPU its tensors."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    return peak_rss()


def peak_rss() -> int:
    """Bytes. Not getrusage's: that begins with what the parent held when it started this process."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def main(kind: str, model: str, threads: str, device: str) -> None:
    if kind.startswith("puna"):
        contestant = Puna(kind.partition(":")[2], model, int(threads), device)
    else:
        compiled = partial(Transformers, compiled=True)
        kinds = {"llama.cpp": LlamaCpp, "transformers": Transformers, "transformers+compile": compiled}
        contestant = kinds[kind](model, int(threads), device)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        tokens = prompts(contestant.vocabulary, asked["sequences"], asked["prompt"])
        first, seconds = contestant.run(tokens, asked["steps"])
        print(json.dumps({"first": first, "seconds": seconds, "peak": peak_bytes(device)}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
