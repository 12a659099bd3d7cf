"""The records of a run: one JSON line per example, from which every number can be recomputed.

    OUT/run.json            model, precision, digests of data and scorer, options
    OUT/TASK.jsonl          prompt, token ids at the border, scores of every option or texts, verdict, reason
    OUT/results.json        the table

Lines are written in the order of the examples, each whole or not at all: after a kill the same command
continues behind the last whole line, and the file is the same bytes as without the kill. A line counts only
if its key is the one expected: the digest of weights, precision, tokenizer, exact token ids, sampling and
the scorer's version.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from puna.evaluate.model import Model
from puna.evaluate.prompts import Prepared
from puna.evaluate.task import Task
from puna.files import code_version, named_when_full

Record = dict[str, Any]
_SCORERS = ("evaluate", "generate", "kernels", "model", "tokens")  # the folders that scores depend on
_BORDER = 4  # token ids shown on either side of a border


def record_key(model: Model, task: Task, prepared: Prepared, sampling: Sequence[object], judge: str) -> str:
    """The digest of all that a record's content depends on."""
    digest = hashlib.sha256()
    rows = [row.tokens.tobytes() + bytes([0]) + str(len(row.context)).encode() for row in prepared.rows]
    parts = [model.digest, code_version(*_SCORERS), task.name, judge, repr(sampling), prepared.example.id]
    for part in parts:
        digest.update(part.encode() + b"\0")
    for tokens in (prepared.tokens.tobytes(), *rows):
        digest.update(tokens + b"\0")
    return digest.hexdigest()[:24]


def described(prepared: Prepared, key: str, bos: bool) -> Record:
    """The part of a record that does not depend on the model's answer."""
    example = prepared.example
    marks = {"groups": list(example.groups), "cluster": example.cluster}
    before, behind = prepared.tokens, prepared.tokens[:0]
    if prepared.rows:
        before, behind = prepared.rows[0].context, prepared.rows[0].continuation
    return {
        "id": example.id,
        "key": key,
        **{name: mark for name, mark in marks.items() if mark},
        "prompt": prepared.context,
        "shots": prepared.shots,
        "bos": bos,
        "tokens": len(prepared.tokens),
        "border": [before[-_BORDER:].tolist(), behind[:_BORDER].tolist()],
    }


class RecordFile:
    """The records of one task; opened to continue behind what is valid."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._known = iterate_records(path) if path.is_file() else iter(())
        self._size = 0  # bytes of the records that count
        self._file = path.open("ab")

    def take(self, key: str) -> Record | None:
        """The file's next record if it has this key; else everything from here on is to be recomputed."""
        record = next(self._known, None)
        if record is None or record["key"] != key:
            self._known = iter(())
            return None
        self._size += len(line(record).encode())
        return record

    def append(self, records: Sequence[Record]) -> None:
        """Write further records, in the order of the examples."""
        if self._file.seek(0, os.SEEK_END) != self._size:
            self._file.truncate(self._size)
        data = "".join(line(record) for record in records).encode()
        with named_when_full(self.path):  # a line that is cut off will not count
            self._file.write(data)
            self._file.flush()
            os.fsync(self._file.fileno())
        self._size += len(data)

    def close(self) -> None:
        """Close the file; what could not be written before is given up."""
        with suppress(OSError):
            self._file.close()


def line(record: Record) -> str:
    """A record as its line. Reading a line and writing it again gives the same bytes."""
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n"


def read_records(path: Path) -> list[Record]:
    """The whole records of a file: a last line that a kill cut off is not one.

    Raises:
        ValueError: a line in the middle that is not a record.
    """
    return list(iterate_records(path))


def iterate_records(path: Path) -> Iterator[Record]:
    """The whole records of a file, one by one."""
    with path.open("rb") as file:
        for number, data in enumerate(file, 1):
            if not data.endswith(b"\n"):
                return
            try:
                yield json.loads(data)
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{path}, line {number} is not a record ({error}); delete the file and score again"
                ) from error
