"""A small corpus of our own, cleaned, tokenized and sharded once for all tests that train on it."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from puna.config import RunConfig
from puna.corpus.document import Document
from puna.corpus.parquet import write_documents
from puna.files import fingerprint
from puna.manifest import Manifest, Output, write_manifest
from puna.tokens.shards import write_shards
from puna.tokens.training import train_tokenizer

SUBJECTS = ["the llama", "a shepherd", "the old train", "my sister", "the river", "the puna wind"]
VERBS = ["carries", "watches", "follows", "remembers", "crosses", "forgets", "counts"]
OBJECTS = ["the salt", "seven stones", "a letter", "12 blankets", "an empty road", "the first snow"]


def sentences(seed: int, count: int) -> str:
    """Text with a grammar, so that a small model has something to learn."""
    draw = random.Random(seed)
    return " ".join(
        f"{draw.choice(SUBJECTS)} {draw.choice(VERBS)} {draw.choice(OBJECTS)}.".capitalize()
        for _ in range(count)
    )


def byte_level(controls: list[str]) -> tokenizers.Tokenizer:
    """A byte-level vocabulary of 400 tokens, with control tokens first, as the hub's files hold it."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=controls,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([sentences(seed, 20) for seed in range(5)], trainer)
    return made


def functions(seed: int, count: int) -> str:
    """Python with a grammar."""
    draw = random.Random(seed)
    return "\n\n".join(
        f"def {draw.choice(VERBS)}_{i}(value):\n    return value {draw.choice('+-*')} {draw.randrange(100)}"
        for i in range(count)
    )


def write_corpus(directory: Path, source: str, texts: list[str]) -> Path:
    """A finished documents directory, as `puna corpus` would leave it."""
    path = directory / "00000.parquet"
    write_documents((Document(f"{source}-{i}", source, text) for i, text in enumerate(texts)), path)
    output = Output.file(path)
    manifest = Manifest(
        stage="documents",
        fingerprint=fingerprint([source, output.sha256]),
        config={"source": source},
        code_version="",
        counts={"kept": len(texts), "characters": sum(map(len, texts))},
        outputs=(output,),
        bytes=output.bytes,
    )
    write_manifest(directory, manifest)
    return directory


def changed(config: RunConfig, **sections: dict[str, Any]) -> RunConfig:
    """A configuration with some fields changed: changed(config, schedule={"steps": 3}, save={"keep": 1})."""
    return replace(
        config, **{name: replace(getattr(config, name), **fields) for name, fields in sections.items()}
    )


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> Path:
    """Token shards of two sources, books and github, with a vocabulary of 512."""
    root = tmp_path_factory.mktemp("corpus")
    documents = [
        write_corpus(root / "books", "books", [sentences(seed, 60) for seed in range(40)]),
        write_corpus(root / "github", "github", [functions(seed, 40) for seed in range(40)]),
    ]
    train_tokenizer(documents, root / "tokenizer", vocab_size=512)
    write_shards(documents, root / "tokenizer", root / "shards", workers=1)
    return root / "shards"
