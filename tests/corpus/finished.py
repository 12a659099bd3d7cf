"""Small directories of finished documents."""

from collections.abc import Iterable
from pathlib import Path

from puna.corpus.document import Document
from puna.corpus.parquet import write_documents
from puna.files import MANIFEST, fingerprint, sha256_file, write_json


def finish(folder: Path, documents: Iterable[Document]) -> Path:
    """Write documents as a finished stage would."""
    path = folder / "00000.parquet"
    write_documents(documents, path)
    output = {"path": path.name, "bytes": path.stat().st_size, "sha256": sha256_file(path)}
    write_json(
        folder / MANIFEST,
        {"stage": "documents", "fingerprint": fingerprint(output["sha256"]), "outputs": [output]},
    )
    return folder
