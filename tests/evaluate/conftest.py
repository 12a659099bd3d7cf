"""A small model, benchmarks of made-up rows, and those in the original formats that PUNA_EVALDATA names."""

import json
import os
import random
from pathlib import Path

import pytest

from puna.config import RunConfig, to_dict
from puna.evaluate.data import Data
from puna.evaluate.model import EngineModel, load_model
from puna.files import write_json
from puna.model.weights import save_weights
from tests.generate.conftest import CONFIG, random_model


@pytest.fixture(scope="session")
def real() -> Data:
    if not (path := os.environ.get("PUNA_EVALDATA")):
        pytest.skip("PUNA_EVALDATA names no benchmark data")
    return Data(Path(path))


@pytest.fixture(scope="session")
def directory(shards, tmp_path_factory) -> Path:
    """A model with the tokenizer of the suite's shards."""
    path = tmp_path_factory.mktemp("model")
    write_json(path / "config.json", to_dict(RunConfig(model=CONFIG)))
    save_weights(random_model(), path)
    tokenizer = next(p for p in sorted(Path(shards).iterdir()) if p.name.startswith("tokenizer."))
    (path / tokenizer.name).write_bytes(tokenizer.read_bytes())
    return path


@pytest.fixture(scope="session")
def model(directory) -> EngineModel:
    return load_model(directory, "small", "fp32")


WORDS = ["river", "stone", "apple", "light", "seven", "cloud", "green", "table", "paper", "north"]


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Data:
    """Benchmarks of a few made-up rows."""
    root = tmp_path_factory.mktemp("data")
    rng = random.Random(5)

    def words(n: int) -> str:
        return " ".join(rng.choice(WORDS) for _ in range(n))

    def write(name: str, rows: list) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    write("piqa/valid.jsonl", [{"goal": words(4), "sol1": words(2), "sol2": words(5)} for _ in range(40)])
    (root / "piqa/valid-labels.lst").write_text("".join(f"{rng.randrange(2)}\n" for _ in range(40)))
    sentences = [f"{words(2)} _ {words(3)}" for _ in range(12)]
    names = {"option1": "Ann", "option2": "Bob", "answer": "1"}
    write("winogrande/dev.jsonl", [{"qID": f"q{i}", "sentence": s, **names} for i, s in enumerate(sentences)])
    write("nq_open/NQ-open.dev.jsonl", [{"question": words(4), "answer": [words(1)]} for _ in range(10)])
    pool = [{"question": words(4), "answer": [words(1)]} for _ in range(30)]
    write("nq_open/NQ-open.efficientqa.dev.1.1.jsonl", pool)
    for split, count in (("dev", 5), ("test", 6)):
        (root / f"mmlu/{split}").mkdir(parents=True, exist_ok=True)
        for subject in ("anatomy", "astronomy"):
            rows = [
                f"{words(5)},{words(1)},{words(1)},None,{words(1)},{rng.choice('ABCD')}\n"
                for _ in range(count)
            ]
            (root / f"mmlu/{split}/{subject}_{split}.csv").write_text("".join(rows))
    return Data(root)
