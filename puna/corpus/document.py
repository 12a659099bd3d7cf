"""What readers and cleaners return: a Document, a Drop with its reason, or a DamagedRecord.

file   --read---> record
              └-> DamagedRecord(file, offset, reason)    named, counted, set aside
record --clean--> Document(id, source, text, meta)       kept
              └-> Drop("no section")                     dropped by a rule, counted by reason
"""

import json
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from puna import paper

# Table 1's sources, in its order, with their share of the training tokens in per cent.
TABLE_1 = {source: row.proportion for source, row in paper.TABLE_1.items()}

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
    """A record dropped by a rule. `reason` is a short fixed phrase that is counted; `detail` varies."""

    reason: str
    detail: str = ""


@dataclass(frozen=True)
class DamagedRecord:
    """A damaged record. `file` may name a member (`dump.tar!paper.tex`); `offset` is in bytes."""

    file: str
    offset: int
    reason: str
