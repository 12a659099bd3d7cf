"""Documents -> token shards: one memory-mapped array of ids for each Parquet file, source and split.

In:  directories of finished documents, a tokenizer.
Out: a directory that training needs nothing else beside.

    00000-books.parquet ──encode──┬─> 00000.books.train.npy   <s> ids </s> <s> ids </s> ...
                                  └─> 00000.books.val.npy     held-out documents
                                      tokenizer.model         the vocabulary, in whatever format
                                      manifest.json           files, tokens, documents, bytes by source

A document is held out when the hash of its id lies in the lowest `validation_share` of all hashes: it
stays so whatever other documents come or go. Where that would hold out none of a source, or all, the one
document of the smallest hash is held out, or the one of the largest is kept, so that a source of two
documents or more has both. A source of one document trains on it and has nothing held out.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.lib import format as npy
from numpy.typing import DTypeLike, NDArray

from puna.allowance import cores
from puna.corpus.finished import as_inputs, find_finished
from puna.corpus.parquet import read_documents
from puna.corpus.pipeline import by_size
from puna.files import atomic_file
from puna.manifest import Input, Manifest
from puna.stages.stage import Shard, run_stage
from puna.tokens.order import digest64, in_table_order
from puna.tokens.sample import sources_in
from puna.tokens.tokenizer import MODEL, Tokenizer

# Documents are encoded in groups of about so much text; a group's ids are what a worker holds in memory.
GROUP_CHARACTERS = 1 << 20
_COUNTED = ("train_tokens", "val_tokens", "documents", "val_documents", "bytes", "val_bytes")


def write_shards(
    docs: Sequence[Path],
    tokenizer: Path,
    out: Path,
    validation_share: float = 0.01,
    workers: int | None = None,
) -> Manifest:
    """Encode every document into shards in `out`, return the manifest; the bytes do not depend on `workers`.

    manifest.details["sources"][name] has "train" and "val" (lists of files), "train_tokens", "val_tokens",
    "documents", "val_documents", "bytes" and "val_bytes" (of UTF-8 text; "documents" and "bytes" are of
    both splits).

    Raises:
        ValueError: no documents, no such tokenizer, `out` of another configuration.
    """
    if not 0 < validation_share < 1:
        raise ValueError(f"validation_share is {validation_share}; it must be between 0 and 1")
    model = Tokenizer(tokenizer)
    documents = find_finished(docs)
    files = [file for item in documents for file in item.files]
    held_below = hold_out(files, validation_share)
    if not held_below:
        names = ", ".join(map(str, docs))
        raise ValueError(f"no document in {names}; give other inputs to: puna corpus SOURCE INPUT… --out DIR")
    dtype = token_dtype(model.vocab_size)
    shards = [Shard(f"{number:05d}", (file,)) for number, file in enumerate(files)]
    used = Input(str(model.path), stage="tokenizer", fingerprint=model.fingerprint)
    workers = workers or cores()
    return run_stage(
        stage="shards",
        work=partial(
            _write_shard, model.path, dtype, held_below, threads=max(1, workers // max(1, len(shards)))
        ),
        shards=shards,
        out=out,
        config={
            "tokenizer": model.fingerprint,
            "vocab_size": model.vocab_size,
            "dtype": dtype,
            "validation_share": validation_share,
            "documents": [item.fingerprint for item in documents],
        },
        workers=workers,
        label="tokens",
        finish=partial(_finish, model, dtype, out),
        made_from=(*as_inputs(documents), used),
    )


def token_dtype(vocab_size: int) -> str:
    """The smallest type that holds the ids: uint16 below a vocabulary of 65,536."""
    return "uint16" if vocab_size < 1 << 16 else "uint32"


def _nothing() -> dict[str, Any]:
    """What is recorded of a source, before its first document."""
    return {"train": [], "val": [], **dict.fromkeys(_COUNTED, 0)}


def _finish(model: Tokenizer, dtype: str, out: Path, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Copy the tokenizer in and add the records up by source, for the manifest."""
    model.save(out / MODEL)
    sources: dict[str, dict[str, Any]] = defaultdict(_nothing)
    for record in records:
        for source, part in record["sources"].items():
            for key, value in part.items():
                sources[source][key] += value
    return {
        "sources": {source: sources[source] for source in in_table_order(sources)},
        "vocab_size": model.vocab_size,
        "dtype": dtype,
    }


# ---- the held-out split ------------------------------------------------------------------------


def _place(source: str, id: str) -> int:
    return digest64("validation", source, id)


def hold_out(files: Sequence[Path], share: float) -> dict[str, int]:
    """For each source the number below which a document's hash must lie for it to be held out.

    Reads ids only, and of a source no further files once it has both a held-out and a training document.
    """
    below = round(share * (1 << 64))
    smallest: dict[str, int] = {}
    largest: dict[str, int] = {}

    def is_settled(source: str) -> bool:
        return source in smallest and smallest[source] < below <= largest[source]

    for file in files:
        if all(map(is_settled, sources_in(file))):
            continue
        with pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(columns=["id", "source"]):
                for row in batch.to_pylist():
                    source, place = row["source"], _place(row["source"], row["id"])
                    smallest[source] = min(place, smallest.get(source, place))
                    largest[source] = max(place, largest.get(source, place))
    # One document: smallest is largest, and the last rule keeps it for training.
    return {source: min(max(below, smallest[source] + 1), largest[source]) for source in smallest}


# ---- one shard, in a worker --------------------------------------------------------------------


def _write_shard(
    tokenizer: Path, dtype: str, held_below: Mapping[str, int], shard: Shard, out: Path, threads: int
) -> dict[str, Any]:
    """Encode one Parquet file; its record has files and counts by source."""
    model = Tokenizer(tokenizer)
    sources: dict[str, dict[str, Any]] = defaultdict(_nothing)
    outputs: list[Path] = []
    bos, eos = np.array([model.bos_id], np.uint32), np.array([model.eos_id], np.uint32)
    with ExitStack() as files:
        appenders: dict[tuple[str, str], Callable[[NDArray[Any]], None]] = {}
        documents = read_documents(shard.inputs[0])
        for group in by_size(documents, lambda document: len(document.text), GROUP_CHARACTERS):
            encoded = model.encode_arrays([document.text for document in group], threads)
            for document, ids in zip(group, encoded, strict=True):
                source = _checked(document.source, shard.inputs[0])
                split = "val" if _place(source, document.id) < held_below[source] else "train"
                total = sources[source]
                if (source, split) not in appenders:
                    path = out / f"{shard.name}.{source}.{split}.npy"
                    appenders[source, split] = files.enter_context(npy_file(path, dtype))
                    total[split].append(path.name)
                    outputs.append(path)
                appenders[source, split](np.concatenate([bos, ids, eos], dtype=dtype, casting="same_kind"))
                size = len(document.text.encode())
                total[f"{split}_tokens"] += len(ids) + 2
                total["documents"] += 1
                total["bytes"] += size
                if split == "val":
                    total["val_documents"] += 1
                    total["val_bytes"] += size
    counts = {
        "documents": sum(total["documents"] for total in sources.values()),
        "tokens": sum(total["train_tokens"] + total["val_tokens"] for total in sources.values()),
    }
    return {"outputs": sorted(outputs), "counts": counts, "sources": dict(sorted(sources.items()))}


def _checked(source: str, file: Path) -> str:
    if not re.fullmatch(r"[\w-]+", source):
        raise ValueError(
            f"{file} has a source named {source!r}, which is to be part of a file's name; "
            f"name it with letters, digits, - and _ only"
        )
    return source


@contextmanager
def npy_file(path: Path, dtype: DTypeLike) -> Iterator[Callable[[NDArray[Any]], None]]:
    """An append function for a one-dimensional .npy file whose length is known only at its end."""
    length = 0

    def header(file: Any) -> int:
        file.seek(0)
        # numpy pads the header so that a longer shape fits in the same place.
        descr = npy.dtype_to_descr(np.dtype(dtype).newbyteorder("<"))
        npy.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": (length,)})
        size: int = file.tell()
        return size

    with atomic_file(path) as temporary, temporary.open("wb") as file:
        begins = header(file)

        def append(ids: NDArray[Any]) -> None:
            nonlocal length
            file.write(ids.astype(np.dtype(dtype).newbyteorder("<"), copy=False).tobytes())
            length += len(ids)

        yield append
        ends = header(file)
        assert begins == ends, "the header of an .npy file changed its length"
