"""Small documents for the examples, so that they run from nothing."""

import json
import random
from pathlib import Path


def write_documents(file: Path, subjects: list[str], count: int = 200) -> Path:
    """Write JSON lines of short texts that a tiny model can learn."""
    draw = random.Random(len(subjects))
    verbs, objects = ["carries", "counts", "follows", "forgets"], ["the salt", "seven stones", "a letter"]
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8") as out:
        for _ in range(count):
            sentences = (
                f"{draw.choice(subjects)} {draw.choice(verbs)} {draw.choice(objects)}." for _ in range(20)
            )
            out.write(json.dumps({"text": " ".join(sentences)}) + "\n")
    return file


def train_small_model(run: Path) -> Path:
    """A tiny model, trained for a few steps: what the examples about weights begin with."""
    import puna

    documents = write_documents(Path("raw/notes.jsonl"), ["The llama", "A shepherd"])
    puna.clean("jsonl", documents, "documents/notes", source="notes")
    puna.train_tokenizer("documents/notes", "tokenizer", vocab_size=320)
    puna.write_shards("documents/notes", "tokenizer", "shards")
    puna.train(run, "shards", recipe="tiny", model={"vocab_size": 320}, train={"steps": 20})
    return run
