"""Generation against llama.cpp and transformers: speed, memory and quality, interleaved in one run.

    python benchmarks/generate.py                        SmolLM2-135M and a random 1.1B, all contestants
    python benchmarks/generate.py --quick                SmolLM2-135M alone, short rounds
    python benchmarks/generate.py --device cuda          in bf16, against transformers, also compiled
    python benchmarks/generate.py --only puna:int4 --only llama.cpp:q4_0 --rounds 5

Every contestant is a process of its own with its model loaded, idle while another runs; they take turns.
Each is compared at the same bits: bf16 with BF16, int8 with Q8_0, int4 with Q4_0 (heads of 8 bits in both
of the last). A round is a prompt of 512 tokens, 128 steps after a prompt of 64, and 32 steps of 16
sequences after prompts of 64. Prints medians (least-most); GB/s are the bytes of weights that a step must
read, times steps per second, beside what the machine's memory gives to a loop that only reads, in the same
run. Quality is measured on a text (--text FILE), against fp32.

The models are made once and kept in the cache. Peers that are not installed are skipped: `make peers`.
"""

import argparse
import ctypes
import json
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from _peers import interpreter

from puna.config import ModelConfig, RunConfig, read_config, to_dict
from puna.fetch.package_index import fetch_sample
from puna.files import cache_dir, write_json
from puna.formats.safetensors_stream import SafetensorsWriter
from puna.generate.runners import packed
from puna.kernels import build
from puna.model.parts import parts
from puna.model.sizes import matrix_parameters

HERE = Path(__file__).parent
# Where llama.cpp is not installed, its contestants do not run.
PEERS = interpreter("llama-cpp") or Path(sys.executable)
GGUF = {"llama.cpp:bf16": "bf16", "llama.cpp:q8_0": "q8_0", "llama.cpp:q4_0": "q4_0"}
BITS = {"bf16": (16, 16), "int8": (8.5, 8.5), "int4": (4.5, 8.5), "q8_0": (8.5, 8.5), "q4_0": (4.5, 8.5)}
RIVALS = {"puna:bf16": "llama.cpp:bf16", "puna:int8": "llama.cpp:q8_0", "puna:int4": "llama.cpp:q4_0"}
CONTESTANTS = [name for pair in RIVALS.items() for name in pair] + ["transformers:bf16"]
ON_GPUS = ["puna:bf16", "transformers:bf16", "transformers+compile:bf16"]
RANDOM = ModelConfig(
    dim=2048, n_layers=22, n_heads=32, n_kv_heads=4, ffn_dim=5632, vocab_size=32_000, context=2048,
    norm_eps=1e-5,
)  # fmt: skip


def convert(source: Path, target: Path, to: str, *options: str) -> Path:
    """`puna convert`, once."""
    done = target if to == "gguf" else target / ("manifest.json" if to == "puna" else "model.safetensors")
    if not done.is_file():
        command = [sys.executable, "-m", "puna.cli", "convert", str(source), str(target), "--to", to]
        subprocess.run([*command, *options], check=True, stdout=subprocess.DEVNULL)
    return target


def model_directory(model: str) -> Path:
    """A model in puna's own format, made or fetched once."""
    directory = cache_dir() / "benchmarks" / model
    if model == "135m":
        (source,) = fetch_sample("smollm2").glob("*.gguf")
        return convert(source, directory / "puna", "puna")
    directory /= "puna"
    if not (directory / "manifest.json").is_file():
        directory.mkdir(parents=True, exist_ok=True)
        generator = torch.Generator().manual_seed(1)
        layout = {part.parameter: (torch.bfloat16, part.shape) for part in parts(RANDOM)}
        with SafetensorsWriter(directory / "weights.safetensors", layout) as writer:
            for name, (_, shape) in layout.items():
                weight = torch.ones(shape) if len(shape) == 1 else torch.empty(shape)
                if weight.ndim == 2:
                    weight.normal_(0, 0.02, generator=generator)
                writer.append(name, weight.bfloat16())
        write_json(directory / "config.json", to_dict(RunConfig(recipe="random", model=RANDOM)))
        (directory / "tokenizer.model").write_bytes(made_up_vocabulary(RANDOM.vocab_size))
        write_json(directory / "manifest.json", {"stage": "benchmark"})
    return directory


def made_up_vocabulary(size: int) -> bytes:
    """A SentencePiece model of that many pieces: GGUF files must carry one. Protobuf, by hand."""

    def field(number: int, payload: bytes) -> bytes:
        assert len(payload) < 128
        return bytes((number << 3 | 2, len(payload))) + payload

    pieces = [("<unk>", 2), ("<s>", 3), ("</s>", 3), *((f"<0x{byte:02X}>", 6) for byte in range(256))]
    pieces += [(chr(0x4E00 + i), 1) for i in range(min(size - 259, 20_000))]
    pieces += [(chr(0x4E00 + i) + "一", 1) for i in range(size - len(pieces))]
    return b"".join(
        field(1, field(1, text.encode()) + b"\x15\0\0\0\0" + bytes((0x18, kind))) for text, kind in pieces
    ) + field(2, b"\x18\x02\x98\x02\x01")  # BPE, byte fallback


def start(name: str, directory: Path, options: argparse.Namespace) -> subprocess.Popen | None:
    """A contestant's process with its model loaded, or None where it is not installed."""
    kind, _, precision = name.partition(":")
    python, model = Path(sys.executable), directory
    if kind == "llama.cpp":
        python = options.llama_python
        if python.exists():
            model = convert(directory, directory.parent / f"{precision}.gguf", "gguf", "--dtype", precision)
    elif kind.startswith("transformers"):
        model = convert(directory, directory.parent / "hf", "hf", "--dtype", "bf16")
    if not python.exists():
        print(f"{name}: {python} does not exist; make peers", file=sys.stderr)
        return None
    contestant = name if kind == "puna" else kind
    process = subprocess.Popen(
        [python, HERE / "_generate_contestant.py", contestant, model, str(options.threads), options.device],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    if not process.stdout.readline():
        error = process.stderr.read().strip().splitlines()
        print(f"{name}: did not run: {error[-1] if error else 'no message'}", file=sys.stderr)
        return None
    return process


def ask(process: subprocess.Popen, prompt: int, steps: int, sequences: int) -> dict:
    """Let a contestant generate."""
    process.stdin.write(json.dumps({"prompt": prompt, "steps": steps, "sequences": sequences}) + "\n")
    process.stdin.flush()
    line = process.stdout.readline()
    assert line, f"a contestant died: {process.stderr.read()[-500:]}"
    return json.loads(line)


def bandwidth(memory: torch.Tensor) -> float:
    """What the memory gives just now to a loop that only reads, on a GPU to a copy: bytes/s, best of 3."""
    if memory.is_cuda:
        return max(_copied(memory) for _ in range(3))
    library = build.load(Path(packed.__file__).with_name("packed.cpp"))
    if library is None:
        return math.nan
    best = math.inf
    for _ in range(3):
        started = time.perf_counter()
        library.read_all(ctypes.c_void_p(memory.data_ptr()), ctypes.c_long(len(memory)))
        best = min(best, time.perf_counter() - started)
    return len(memory) / best


def _copied(memory: torch.Tensor) -> float:
    started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    started.record()
    memory.clone()
    ended.record()
    ended.synchronize()
    return 2 * len(memory) / (started.elapsed_time(ended) / 1e3)


def compete(model: str, names: list[str], rounds: int, quick: bool, options: argparse.Namespace) -> None:
    directory = model_directory(model)
    config = read_config(directory).model
    head = config.vocab_size * config.dim
    rest = matrix_parameters(config) - head
    processes = {}
    for name in names:
        if process := start(name, directory, options):
            processes[name] = process
    if options.device == "cuda":
        memory = torch.ones(1 << 30, dtype=torch.uint8, device="cuda")
    else:
        memory = packed._Memory(1 << 29).take(1 << 29).fill_(1)
    torch.set_num_threads(options.threads)
    prompt, steps, batch_steps = (128, 16, 4) if quick else (512, 128, 32)
    figures: dict[str, dict[str, list[float]]] = {
        name: {"prefill": [], "decode": [], "first": [], "batch": []} for name in processes
    }
    peaks, bandwidths = {}, []
    for turn in range(rounds + 1):  # the first warms up and is not counted
        bandwidths.append(bandwidth(memory))
        for name, process in processes.items():
            long = ask(process, prompt, 0, 1)
            one = ask(process, 64, steps if turn else 4, 1)
            many = ask(process, 64, batch_steps if turn else 2, 16)
            peaks[name] = many["peak"]
            if turn:
                figures[name]["prefill"].append(prompt / long["first"])
                figures[name]["decode"].append(steps / one["seconds"])
                figures[name]["first"].append(1e3 * one["first"])
                figures[name]["batch"].append(16 * batch_steps / many["seconds"])
    for process in processes.values():
        process.stdin.close()
        process.wait()

    peak = statistics.median(bandwidths)
    where = "cuda" if options.device == "cuda" else f"{options.threads} threads"
    print(f"\n{model}, {where}, {rounds} rounds; tokens/s, median (least-most)")
    print(f"memory read at {peak / 1e9:.1f} GB/s ({min(bandwidths) / 1e9:.1f}-{max(bandwidths) / 1e9:.1f})")
    print(
        f"{'':18}{f'prefill {prompt}':>20}{'decode':>20}{'decode 16':>20}{'first token ms':>18}"
        f"{'GB/s':>7}{'of read':>9}{'memory':>11}"
    )
    for name, of in figures.items():
        bits, head_bits = BITS[name.partition(":")[2]]
        rate = statistics.median(of["decode"]) * (rest * bits + head * head_bits) / 8
        print(
            f"{name:18}{_range(of['prefill']):>20}{_range(of['decode']):>20}{_range(of['batch']):>20}"
            f"{_range(of['first']):>18}{rate / 1e9:>7.1f}{rate / peak:>9.0%}{peaks[name] / 1e6:>8,.0f} MB"
        )
    for name in figures:
        for rival in (RIVALS.get(name), *(ON_GPUS[1:] if name in RIVALS else [])):
            if rival in figures:
                ratios = [
                    statistics.median(figures[name][what]) / statistics.median(figures[rival][what])
                    for what in ("prefill", "decode", "batch")
                ]
                print(
                    f"{name} / {rival}: prefill {ratios[0]:.2f}, decode {ratios[1]:.2f}, "
                    f"decode 16 {ratios[2]:.2f}"
                )


def _range(values: list[float]) -> str:
    middle, low, high = statistics.median(values), min(values), max(values)
    digits = 0 if middle >= 100 else 1
    return f"{middle:,.{digits}f} ({low:,.{digits}f}-{high:,.{digits}f})"


def measure_quality(directory: Path, names: list[str], text: Path, tokens: int) -> None:
    from _quality import quality

    from puna.tokens.tokenizer import Tokenizer

    tokenizer = next(directory.glob("tokenizer.[gjm]*"))
    ids = Tokenizer(tokenizer).encode(text.read_text(encoding="utf-8")[: 8 * tokens])[:tokens]
    print(f"\nquality on {len(ids)} tokens of {text.name}, windows of 512")
    for name in names:
        if name.startswith("puna"):
            found = quality(directory, ids, name.partition(":")[2])
            print(
                f"{name:18} perplexity {found.perplexity:.3f} (fp32 {found.perplexity_fp32:.3f}), "
                f"KL {found.kl:.5f}, same top {found.same_top:.1%}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", action="append", choices=["135m", "1.1b"])
    parser.add_argument("--only", action="append", choices=[*CONTESTANTS, ON_GPUS[-1]])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, help="default 3, with --quick 1")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="135m, prompts of 128, answers of 16 tokens")
    parser.add_argument("--llama-python", type=Path, default=PEERS, help="a Python with llama-cpp-python")
    parser.add_argument("--text", type=Path, help="for quality; default: the sample corpus's sonnets")
    parser.add_argument("--quality-tokens", type=int, default=4096, help="0: no quality")
    options = parser.parse_args()
    names = options.only or (ON_GPUS if options.device == "cuda" else CONTESTANTS)
    for model in options.model or (["135m"] if options.quick else ["135m", "1.1b"]):
        compete(model, names, options.rounds or (1 if options.quick else 3), options.quick, options)
        if model == "135m" and options.quality_tokens and not options.quick and options.device == "cpu":
            text = options.text or fetch_sample("books") / "sonnets_gut.txt"
            measure_quality(model_directory(model), names, text, options.quality_tokens)


if __name__ == "__main__":
    main()
