"""The verb shards: documents to token shards."""

from pathlib import Path

from puna.cli.common import Json, print_stage, quoted


def shards(
    documents: list[Path],
    /,
    *,
    tokenizer: Path,
    out: Path,
    validation_share: float = 0.01,
    workers: int | None = None,
    json: Json = False,
) -> None:
    """Encode documents into token shards; a share of the documents is held out for validation.

    Parameters
    ----------
    documents
        Directories that `puna corpus` wrote.
    tokenizer
        File tokenizer.model, tokenizer.json or *.gguf, or a directory that holds one of the first two.
    out
        Directory to write.
    validation_share
        Share of the documents to hold out, from 0 to 1; chosen by the hash of their ids.
    workers
        Number of processes; defaults to the number of CPU cores. The output does not depend on it.
    """
    from puna.tokens.shards import write_shards

    manifest = write_shards(documents, tokenizer, out, validation_share, workers)
    lines = [
        f"{source:>16}  {counts['train_tokens']:>14,} training tokens, {counts['val_tokens']:,} held out"
        for source, counts in manifest.details["sources"].items()
    ]
    size = manifest.details["vocab_size"]
    after = f"puna train --recipe 15m --model.vocab-size {size} --data {quoted(out)} --out runs/first"
    print_stage(manifest, json, lines, out, after)
