"""Verbs from documents to tokens: tokenizer train|encode|decode, shards, tokens inspect."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from puna.cli.common import Json, Many, print_result
from puna.config import RunConfig, read_config
from puna.recipes import recipe as recipe_of


def tokenizer_train(
    documents: list[Path],
    /,
    *,
    out: Path,
    vocab_size: int = 32_000,
    sample_bytes: int | None = None,
    weights: dict[str, float] | None = None,
    json: Json = False,
) -> int:
    """Train a SentencePiece BPE tokenizer on documents.

    Parameters
    ----------
    documents
        Directories that `puna corpus` wrote.
    out
        The directory to write.
    vocab_size
        Pieces, with the 256 bytes and 3 control pieces.
    sample_bytes
        Maximum bytes of text to train on; defaults to 100 MB, for which SentencePiece needs 1.3 GB of memory.
    weights
        Share of each source in the sample, as --weights.SOURCE NUMBER; defaults to the paper's Table 1.
    """
    from puna.files import human_bytes, human_seconds
    from puna.tokens.training import SAMPLE_BYTES, train_tokenizer

    manifest = train_tokenizer(documents, out, vocab_size, sample_bytes or SAMPLE_BYTES, weights)
    lines = [
        f"{source:>16}  {human_bytes(sample['bytes'])} in {sample['documents']:,} documents"
        for source, sample in manifest.details["sample"].items()
    ]
    lines += [
        f"{out}/tokenizer.model: {vocab_size:,} pieces in {human_seconds(manifest.seconds)}",
        f"next: puna shards {' '.join(map(str, documents))} --tokenizer {out}/tokenizer.model --out shards",
    ]
    print_result(manifest.to_json(), json, lines)
    return 0


def tokenizer_encode(text: str | None = None, /, *, tokenizer: Path, json: Json = False) -> int:
    """Text to token ids, on one line.

    Parameters
    ----------
    text
        Read from stdin when not given.
    tokenizer
        A tokenizer.model, or a directory that holds one.
    """
    from puna.tokens.tokenizer import Tokenizer

    ids = Tokenizer(tokenizer).encode(sys.stdin.read() if text is None else text)
    print_result({"ids": ids}, json, [" ".join(map(str, ids))])
    return 0


def tokenizer_decode(
    ids: Annotated[list[int] | None, Many] = None, /, *, tokenizer: Path, json: Json = False
) -> int:
    """Token ids to text.

    Parameters
    ----------
    ids
        Read from stdin when not given.
    tokenizer
        A tokenizer.model, or a directory that holds one.
    """
    from puna.tokens.tokenizer import Tokenizer

    given = [int(word) for word in sys.stdin.read().split()] if ids is None else ids
    text = Tokenizer(tokenizer).decode(given)
    print_result({"text": text}, json, [text])
    return 0


def shards(
    documents: list[Path],
    /,
    *,
    tokenizer: Path,
    out: Path,
    validation_share: float = 0.01,
    workers: int | None = None,
    json: Json = False,
) -> int:
    """Encode documents into token shards, with a part of the documents held out.

    Parameters
    ----------
    documents
        Directories that `puna corpus` wrote.
    tokenizer
        A tokenizer.model, tokenizer.json or GGUF file, or a directory that holds one of the first two.
    out
        The directory to write.
    validation_share
        The share of the documents that is held out, chosen by the hash of their ids.
    workers
        Processes; all cores when not given. The output is the same for any number.
    """
    from puna.files import human_bytes, human_seconds
    from puna.tokens.shards import write_shards

    manifest = write_shards(documents, tokenizer, out, validation_share, workers)
    lines = [
        f"{source:>16}  {held['train_tokens']:>14,} tokens to train on, {held['val_tokens']:,} held out"
        for source, held in manifest.details["sources"].items()
    ]
    lines += [
        f"{out}: {human_bytes(manifest.bytes)} in {human_seconds(manifest.seconds)} of work",
        f"next: puna train --recipe 15m --model.vocab-size {manifest.details['vocab_size']} "
        f"--data {out} --out runs/first",
    ]
    print_result(manifest.to_json(), json, lines)
    return 0


def tokens_inspect(
    data: list[str],
    /,
    *,
    step: int = 0,
    model: Annotated[Path | None, Parameter(name="--model")] = None,
    context: int | None = None,
    batch_tokens: int | None = None,
    seed: int | None = None,
    rows: int = 8,
    characters: int = 600,
    json: Json = False,
) -> int:
    """Show the decoded windows of a training step's batch, and where each comes from.

    Parameters
    ----------
    data
        Directories of token shards, or their URLs.
    step
        The step of training, from 0.
    model
        A run (its directory or config.json) whose context, batch, weights and seed to take; without one,
        what `puna train` takes when nothing is said.
    context
        Tokens a window.
    batch_tokens
        Tokens a step.
    seed
        Of the order of windows.
    rows
        Windows to print.
    characters
        Longest text to print of a window; its middle is left out. --json has it whole.
    """
    from puna.tokens.inspect import inspect_batch, shortened
    from puna.tokens.mixture import Mixture

    config = read_config(model) if model else recipe_of(RunConfig.recipe)
    window = context or config.model.context
    mixture = Mixture(
        data,
        config.mixture.weights,
        config.mixture.seed if seed is None else seed,
        window,
        max(1, (batch_tokens or config.train.batch_tokens) // window),
    )
    batch = inspect_batch(mixture, step)
    lines = []
    for row in batch[:rows]:
        lines.append(
            f"── row {row['row']}: {row['source']}, window {row['window'] + 1:,} of {row['windows']:,}, "
            f"epoch {row['epoch'] + 1}, {row['tokens']:,} tokens"
        )
        lines.append(shortened(row["text"], characters))
    lines.append(f"── step {step:,}: {len(batch):,} rows of {window:,} tokens; {min(rows, len(batch))} shown")
    print_result(
        {"step": step, "context": window, "fingerprint": mixture.fingerprint, "rows": batch}, json, lines
    )
    return 0
