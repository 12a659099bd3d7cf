"""What a cleaner takes and gives: one Document type, and a Drop that says why.

record --clean--> Document(id, source, text, meta)   kept
              └-> Drop("no section")                 left out by a rule, counted by reason
file   --read---> Bad(file, offset, reason)          damaged input: named, counted, set aside
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

# Table 1's sources, in its order, with their share of the training tokens in per cent.
TABLE_1 = {
    "commoncrawl": 67.0,
    "c4": 15.0,
    "github": 4.5,
    "wikipedia": 4.5,
    "books": 4.5,
    "arxiv": 2.5,
    "stackexchange": 2.0,
}

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("text", pa.large_string()),
        ("meta", pa.string()),  # JSON, so that every source shares one schema
    ]
)


@dataclass(frozen=True)
class Document:
    """One cleaned text. `id` is unique within its source; `meta` holds JSON values."""

    id: str
    source: str
    text: str
    meta: dict[str, Any] = field(default_factory=dict)

    def row(self) -> dict[str, str]:
        """The document as a row of SCHEMA."""
        meta = json.dumps(self.meta, sort_keys=True, ensure_ascii=False)
        return {"id": self.id, "source": self.source, "text": self.text, "meta": meta}


@dataclass(frozen=True)
class Drop:
    """A record that a rule left out. `reason` is a short fixed phrase, counted; `detail` varies."""

    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Bad:
    """Damaged input. `file` may name a member (`dump.tar!paper.tex`); `offset` is in bytes."""

    file: str
    offset: int
    reason: str


Record = TypeVar("Record")
Reader = Callable[[Path], Iterator[Record | Bad]]
Cleaner = Callable[[Record], Document | Drop]
