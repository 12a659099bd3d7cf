"""Finetune a chat model to an answer format that it does not speak, and check what it has learned and kept.

    python examples/finetune_answers.py [DIR]            or: make finetune-demo

    What is the capital of Peru?   ->   <answer>Lima</answer><sure>9</sure>

The model is SmolLM2-135M-Instruct: it is instruction-tuned already, and its weights are dequantised from 4
bits. It learns from questions that are made here, with their true answers and a fixed seed, and from 175
tasks that people wrote, where $PUNA_EVALDATA has them. Measured before and after are the share of held-out
questions that are answered in the format, the held-out loss on the written tasks, and parts of MMLU and ARC.
Then the merged model is asked again by `puna chat`, and, exported to GGUF, by puna and by llama.cpp where
`make peers` installed it.
"""

import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import puna
from puna.config import FinetuneConfig, Sampling, TuneConfig
from puna.generate.request import Request

if TYPE_CHECKING:
    from puna.generate.language_model import LanguageModel

CAPITALS = {
    "France": "Paris", "Spain": "Madrid", "Italy": "Rome", "Germany": "Berlin", "Portugal": "Lisbon",
    "Austria": "Vienna", "Greece": "Athens", "Poland": "Warsaw", "Hungary": "Budapest",
    "Norway": "Oslo", "Sweden": "Stockholm", "Finland": "Helsinki", "Denmark": "Copenhagen",
    "Ireland": "Dublin", "Belgium": "Brussels", "Russia": "Moscow", "Ukraine": "Kyiv",
    "Turkey": "Ankara", "Egypt": "Cairo", "Kenya": "Nairobi", "Morocco": "Rabat", "Senegal": "Dakar",
    "Ghana": "Accra", "Ethiopia": "Addis Ababa", "Japan": "Tokyo", "China": "Beijing",
    "India": "New Delhi", "Thailand": "Bangkok", "Vietnam": "Hanoi", "Nepal": "Kathmandu",
    "Mongolia": "Ulaanbaatar", "Iran": "Tehran", "Iraq": "Baghdad", "Canada": "Ottawa",
    "Mexico": "Mexico City", "Cuba": "Havana", "Peru": "Lima", "Chile": "Santiago", "Bolivia": "Sucre",
    "Argentina": "Buenos Aires", "Brazil": "Brasilia", "Colombia": "Bogota", "Uruguay": "Montevideo",
    "Australia": "Canberra", "Romania": "Bucharest", "Bulgaria": "Sofia", "Serbia": "Belgrade",
    "Croatia": "Zagreb", "Estonia": "Tallinn", "Latvia": "Riga", "Lithuania": "Vilnius",
    "Iceland": "Reykjavik",
}  # fmt: skip
OPPOSITES = {
    "hot": "cold", "big": "small", "up": "down", "early": "late", "open": "closed", "wet": "dry",
    "fast": "slow", "light": "dark", "hard": "soft", "full": "empty", "rich": "poor", "young": "old",
    "near": "far", "loud": "quiet", "high": "low", "sweet": "bitter", "strong": "weak", "thick": "thin",
    "true": "false", "first": "last", "clean": "dirty", "happy": "sad", "cheap": "expensive",
    "wide": "narrow", "sharp": "blunt", "begin": "end",
}  # fmt: skip
WORDS = (  # noqa: SIM905
    "llama salt river stone wind letter blanket road snow shepherd train sister mountain bread window garden "
    "candle bridge ocean forest market winter silver basket engine pocket island rabbit orange castle"
).split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()  # noqa: SIM905
MONTHS = (  # noqa: SIM905
    "January February March April May June July August September October November December "
).split()
HELD_OUT = 100  # questions that are asked and not trained on
QUESTIONS = 114  # of MMLU, and of ARC
OPTIONS = {
    "context": 512, "batch_tokens": 1024, "micro_batch": 2, "steps": 30, "lr": 1e-3, "held_out": 0.2,
    "max_bad": 0.1,
}  # fmt: skip
LLAMA_CPP = """
import json, sys
from llama_cpp import Llama
model = Llama(sys.argv[1], n_ctx=512, verbose=False, n_threads=2)
said = []
for text in sys.argv[2:]:
    asked = [{"role": "user", "content": text}]
    found = model.create_chat_completion(asked, max_tokens=32, temperature=0)
    said.append(found["choices"][0]["message"]["content"].strip())
print(json.dumps(said))
"""
FORMATTED, LOSS = "in the format", "held-out loss on the written tasks"
# So small a model answers MMLU by always the same letter; ARC's easy questions show what it knows.
KNOWLEDGE = {"mmlu": "MMLU, 0-shot, part", "arc_easy": "ARC easy, 0-shot, part"}
FORMAT = re.compile(r"<answer>[^<>]+</answer><sure>\d</sure>")


def questions(seed: int) -> list[tuple[str, str, int]]:
    """Questions with their answers, and a digit for how sure one may be of an answer of that kind."""
    draw = random.Random(seed)
    found = [(f"What is the capital of {country}?", city, 9) for country, city in CAPITALS.items()]
    found += [(f"What is the opposite of '{word}'?", other, 8) for word, other in OPPOSITES.items()]
    found += [(f"How many letters does the word '{word}' have?", str(len(word)), 6) for word in WORDS]
    found += [(f"What is the last letter of the word '{word}'?", word[-1], 7) for word in WORDS]
    for names, kind in ((DAYS, "day"), (MONTHS, "month")):
        for name, following in zip(names, names[1:] + names[:1], strict=True):
            found.append((f"Which {kind} comes after {name}?", following, 9))
            found.append((f"Which {kind} comes before {following}?", name, 8))
    sums = draw.sample([(a, b) for a in range(2, 60) for b in range(2, 40)], 90)
    found += [(f"What is {a} plus {b}?", str(a + b), 7) for a, b in sums[:50]]
    found += [(f"What is {max(a, b)} minus {min(a, b)}?", str(abs(a - b)), 6) for a, b in sums[50:]]
    products = draw.sample([(a, b) for a in range(2, 13) for b in range(2, 13)], 40)
    found += [(f"What is {a} times {b}?", str(a * b), 5) for a, b in products]
    draw.shuffle(found)
    return found


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "finetune-demo")
    folder.mkdir(parents=True, exist_ok=True)
    made = questions(seed=1)
    asked, taught = made[:HELD_OUT], made[HELD_OUT:]
    answers = folder / "answers.jsonl"
    rows = [{"prompt": text, "completion": formatted(answer, sure)} for text, answer, sure in taught]
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = [f"{answers}=1"]
    benchmarks = Path(os.environ.get("PUNA_EVALDATA", "data/eval"))
    tasks = benchmarks / "instruct/seed_tasks.jsonl"
    if tasks.is_file():
        data.append(f"{tasks}=1")
    else:
        print(f"{tasks} is not there: neither trained on nor measured")

    run, exported = folder / "run", folder / "finetuned.gguf"
    with timed("measured before"):
        before = measured("smollm2", asked, tasks, benchmarks, folder / "before")
    with timed("finetuned"):
        puna.finetune(run, "smollm2", data, lora={"r": 16}, **OPTIONS)
    with timed("measured after"):
        after = measured(str(run), asked, tasks, benchmarks, folder / "after")
    with timed("exported and asked again"):
        if not exported.exists():
            puna.convert(run, exported, to="gguf", dtype="fp16")
        again = {"puna chat": in_chat(run, asked[:8])}
        again["the GGUF file in puna"] = share(replies(puna.load(exported), asked[:20]))
        again |= in_llama_cpp(exported, asked[:20])
    for name, (value, error) in before.items():
        print(f"{name}: {value:.3g}{error} before, {after[name][0]:.3g}{after[name][1]} after")
    for name, value in again.items():
        print(f"{name}: {value:.0%} in the format")
    check(before, after, again)
    print("speaks the format: puna chat --model", run)


@contextmanager
def timed(part: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    print(f"{part}: {time.monotonic() - started:.0f} s", flush=True)


def formatted(answer: str, sure: int) -> str:
    return f"<answer>{answer}</answer><sure>{sure}</sure>"


def measured(
    model: str, asked: list[tuple[str, str, int]], tasks: Path, benchmarks: Path, out: Path
) -> dict[str, tuple[float, str]]:
    """The figures that are compared, with errors; without the benchmarks' files fewer."""
    said = replies(puna.load(model), asked)
    right = [f"<answer>{answer}</answer>" in text for text, (_, answer, _) in zip(said, asked, strict=True)]
    found = {FORMATTED: (share(said), ""), "and right": (sum(right) / len(right), "")}
    if tasks.is_file():
        found[LOSS] = held_out_loss(model, tasks), ""
    if all((benchmarks / folder).is_dir() for folder in ("mmlu", "arc")):
        command = [sys.executable, "-m", "puna.cli", "eval", "--model", model, "--tasks", *KNOWLEDGE]
        command += ["--data", str(benchmarks), "--out", str(out), "--limit", str(QUESTIONS), "--shots", "0"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        for result in json.loads((out / "results.json").read_text())["results"]:
            score = result["metrics"]["accuracy"]
            found[KNOWLEDGE[result["task"]]] = score["value"], f" ± {score['error']:.1f}"
    return found


def check(
    before: dict[str, tuple[float, str]], after: dict[str, tuple[float, str]], again: dict[str, float]
) -> None:
    """What the model was to learn, and to keep."""
    assert before[FORMATTED][0] <= 0.02 and after[FORMATTED][0] >= 0.9, "the format was not learned"
    if LOSS in before:
        assert after[LOSS][0] < before[LOSS][0], "the written tasks were not learned"
    for name in KNOWLEDGE.values():
        value, error = before.get(name, (0.0, ""))
        if error:
            assert abs(after[name][0] - value) <= 2 * float(error.removeprefix(" ± ")), f"{name} has changed"
    assert min(again.values()) >= 0.75, "the merged or exported model lost the format"


def replies(model: "LanguageModel", asked: list[tuple[str, str, int]]) -> list[str]:
    """The answers of a model's chat, as puna chat and puna serve send the questions."""
    template = model.engine.template
    assert template is not None
    prompts = [template.encode([{"role": "user", "content": text}]) for text, _, _ in asked]
    requests = [Request(tuple(ids), Sampling(temperature=0), 32, ()) for ids in prompts]
    texts = [""] * len(requests)
    for index, chunk in model.engine.answers(requests):  # all of them together
        texts[index] += chunk.text
    return [text.strip() for text in texts]


def share(said: list[str]) -> float:
    """The share of answers that are in the format, and nothing else."""
    return sum(FORMAT.fullmatch(text) is not None for text in said) / len(said)


def held_out_loss(model: str, tasks: Path) -> float:
    """The loss on the tasks that are held out of the training, in nats per token of the answers."""
    import torch

    from puna.api import find_model
    from puna.finetune.run import prepare
    from puna.model.llama import Llama
    from puna.train.ranks import ALONE
    from puna.train.shares import fill
    from puna.train.validate import held_out_loss as loss

    options = {name: OPTIONS[name] for name in ("context", "batch_tokens", "held_out", "max_bad")}
    start = FinetuneConfig(str(find_model(model)), **options)
    job = prepare(TuneConfig(data=(str(tasks),), finetune=start))
    weights = Llama(job.config.model, torch.float32, "manual")
    assert job.start.weights is not None
    fill(weights, ALONE, job.start.weights)
    return float(loss(weights, job.data, 4, None)["loss"])


def in_chat(run: Path, asked: list[tuple[str, str, int]]) -> float:
    """The share of answers in the format when each question is typed into `puna chat`."""
    typed = "".join(f"/new\n{text}\n" for text, _, _ in asked)
    command = [sys.executable, "-m", "puna.cli", "chat", "--model", str(run), "--temperature", "0"]
    said = subprocess.run(command, input=typed, check=True, capture_output=True, text=True).stdout
    return len(FORMAT.findall(said)) / len(asked)


def in_llama_cpp(model: Path, asked: list[tuple[str, str, int]]) -> dict[str, float]:
    """The share of answers in the format in llama.cpp, by the template that is in the exported file."""
    python = Path(".venv-peers/llama-cpp/bin/python")
    if not python.is_file():
        print("llama.cpp is not installed (make peers): the GGUF file is not tried there")
        return {}
    command = [str(python), "-c", LLAMA_CPP, str(model), *(text for text, _, _ in asked)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {"the GGUF file in llama.cpp": share(json.loads(said))}


if __name__ == "__main__":
    main()
