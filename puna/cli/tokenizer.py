"""The verb tokenizer: train one; encode and decode text."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App

from puna.cli.common import Json, Many, print_result, print_stage, quoted
from puna.files import human_bytes

tokenizer = App(name="tokenizer")


@tokenizer.command
def train(
    documents: list[Path],
    /,
    *,
    out: Path,
    vocab_size: int = 32_000,
    sample_bytes: int = 100_000_000,
    weights: dict[str, float] | None = None,
    seed: int = 1,
    json: Json = False,
) -> None:
    """Train a SentencePiece BPE tokenizer on documents.

    Parameters
    ----------
    documents
        Directories that `puna corpus` wrote.
    out
        Directory to write: tokenizer.model and its manifest.
    vocab_size
        Size of the vocabulary, including 256 byte tokens and 3 control tokens.
    sample_bytes
        Maximum size of the text to train on, in bytes; training takes about 13 bytes of memory for each.
    weights
        Share of each source in the sample, as --weights.SOURCE NUMBER; defaults to the paper's Table 1.
    seed
        Random seed of the choice of documents.
    """
    from puna.tokens.training import train_tokenizer

    manifest = train_tokenizer(documents, out, vocab_size, sample_bytes, weights, seed)
    lines = [
        f"{source:>16}  {human_bytes(sample['bytes'])} in {sample['documents']:,} documents"
        for source, sample in manifest.details["sample"].items()
    ]
    lines.append(f"{vocab_size:>16,}  tokens in the vocabulary {out}/tokenizer.model")
    model = quoted(f"{out}/tokenizer.model")
    after = f"puna shards {quoted(*documents)} --tokenizer {model} --out shards"
    print_stage(manifest, json, lines, out, after)


@tokenizer.command
def encode(text: str | None = None, /, *, tokenizer: Path, json: Json = False) -> None:
    """Encode text; prints the token ids on one line.

    Parameters
    ----------
    text
        Text to encode; defaults to standard input.
    tokenizer
        File tokenizer.model, tokenizer.json or *.gguf, or a directory that holds one of the first two.
    """
    from puna.tokens.tokenizer import Tokenizer

    ids = Tokenizer(tokenizer).encode(sys.stdin.read() if text is None else text)
    print_result({"ids": ids}, json, [" ".join(map(str, ids))])


@tokenizer.command
def decode(ids: Annotated[list[int] | None, Many] = None, /, *, tokenizer: Path, json: Json = False) -> None:
    """Decode token ids; prints the text.

    Parameters
    ----------
    ids
        Token ids to decode; default to standard input.
    tokenizer
        File tokenizer.model, tokenizer.json or *.gguf, or a directory that holds one of the first two.
    """
    from puna.tokens.tokenizer import Tokenizer

    given = [int(word) for word in sys.stdin.read().split()] if ids is None else ids
    text = Tokenizer(tokenizer).decode(given)
    print_result({"text": text}, json, [text])
