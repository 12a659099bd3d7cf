"""Documents and token shards written by hand, and one tokenizer for all tests of tokens."""

import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from puna.corpus.document import Document
from puna.corpus.parquet import write_documents
from puna.files import fingerprint
from puna.manifest import Input, Manifest, Output, write_manifest
from puna.tokens.tokenizer import Tokenizer
from puna.tokens.training import train_tokenizer

PLAIN = "the of and to in grass llama high plain stone water river 1 22 1984 30567 def class été море 日本"
WORDS = [*PLAIN.split(), "return\n\tvalue"]


def prose(seed: int, words: int) -> str:
    draw = random.Random(seed)
    return " ".join(
        draw.choice(WORDS) + draw.choice(["", "", "", "s", "ing", ",", ".\n", "  "]) for _ in range(words)
    )


def _write_stage(
    directory: Path,
    stage: str,
    paths: Sequence[Path],
    config: dict | None = None,
    inputs: Sequence[Input] = (),
    **details: object,
) -> Path:
    outputs = tuple(map(Output.file, paths))
    manifest = Manifest(
        stage=stage,
        fingerprint=fingerprint([stage, [item.sha256 for item in outputs]]),
        config=config or {},
        code_version="",
        counts={},
        inputs=tuple(inputs),
        outputs=outputs,
        details=details,
    )
    write_manifest(directory, manifest)
    return directory


class Make:
    """Makers of finished directories, and a process that is killed where it is told to."""

    prose = staticmethod(prose)

    @staticmethod
    def documents(directory: Path, source: str, texts: Sequence[str], files: int = 1) -> Path:
        """Texts as the documents of a source, `source-0`, `source-1`, ... dealt to so many Parquet files."""
        documents = [Document(f"{source}-{number}", source, text) for number, text in enumerate(texts)]
        paths = []
        for number in range(files):
            paths.append(directory / f"{number:05d}.parquet")
            write_documents(documents[number::files], paths[-1])
        return _write_stage(directory, "documents", paths, config={"source": source})

    @staticmethod
    def shards(
        directory: Path,
        train: Mapping[str, Sequence[np.ndarray]],
        val: Mapping[str, Sequence[np.ndarray]] | None = None,
        vocab_size: int = 60_000,
        tokenizer: str = "f00d",
    ) -> Path:
        """Arrays as the token shards of sources."""
        directory.mkdir(parents=True)
        sources: dict[str, dict] = {}
        paths = []
        for source in train:
            entry = sources[source] = {"documents": 3, "val_documents": 1, "bytes": 30, "val_bytes": 10}
            for split, arrays in (("train", train[source]), ("val", (val or {}).get(source, []))):
                names = [f"{number:05d}.{source}.{split}.npy" for number in range(len(arrays))]
                for name, array in zip(names, arrays, strict=True):
                    np.save(directory / name, np.asarray(array, dtype=np.uint16))
                    paths.append(directory / name)
                entry |= {split: names, f"{split}_tokens": sum(map(len, arrays))}
        return _write_stage(
            directory,
            "shards",
            paths,
            sources=sources,
            vocab_size=vocab_size,
            dtype="uint16",
            inputs=[Input("tokenizer.model", stage="tokenizer", fingerprint=tokenizer)],
        )

    @staticmethod
    def killed_run(code: str) -> None:
        """Run Python code in a process of its own that must die by SIGKILL."""
        process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        assert process.returncode == -9, process.stderr


@pytest.fixture(scope="session")
def make() -> type[Make]:
    return Make


@pytest.fixture(scope="session")
def small_tokenizer(tmp_path_factory) -> Tokenizer:
    """512 pieces, trained once."""
    root = tmp_path_factory.mktemp("tokenizer")
    documents = Make.documents(root / "books", "books", [prose(seed, 400) for seed in range(20)])
    train_tokenizer([documents], root / "out", vocab_size=512)
    return Tokenizer(root / "out")
