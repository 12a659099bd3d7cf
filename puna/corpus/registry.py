"""The sources of documents: puna's own, and those that other installed packages register.

In:  the name of a source.
Out: the source, a module or any other object with these attributes:

    PATTERNS    file names as glob patterns; folders are searched for them
    Options     a frozen dataclass: its fields become the options of `puna corpus NAME`; with
                `puna.validation.strict` they are checked by their types
    read        (path, options) -> records, with a DamagedRecord in the place of each damaged one
    clean       (record, options) -> Document | Drop
    pipeline    (inputs, out, options, executor) -> manifest; instead of read and clean, for several steps
    PART_BYTES  optional: a file of twice this size or more is divided; then read has a third argument, the
                first byte of a part and the first after it
    find        (folder) -> input files; optional, for sources whose unit is not a file

A package registers a source by an entry point in its pyproject.toml:

    [project.entry-points."puna.sources"]
    recipes = "my_package.recipes"
"""

import importlib
import logging
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

log = logging.getLogger(__name__)

GROUP = "puna.sources"

# puna's own sources, each with its line in `puna corpus --help`.
SOURCES = {
    "commoncrawl": "Web pages by the rules of CCNet: no repeated lines, filtered by language and perplexity.",
    "c4": "Web pages by the rules of C4, the Colossal Clean Crawled Corpus.",
    "github": "Source code under Apache, BSD and MIT licences.",
    "wikipedia": "Wikipedia articles without their markup.",
    "books": "Project Gutenberg books without licence texts and without near-copies.",
    "arxiv": "Scientific papers from their LaTeX sources.",
    "stackexchange": "Questions with their answers, the highest score first.",
    "jsonl": "Documents that exist already: JSON lines or Parquet files with a text field.",
}


@cache
def registered() -> dict[str, EntryPoint]:
    """The sources of other packages by name."""
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=GROUP):
        if entry.name in SOURCES or entry.name in found:
            log.warning("ignored the source %s of %s: the name is taken", entry.name, _package(entry))
        else:
            found[entry.name] = entry
    return found


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else entry.value


def source_names() -> dict[str, str]:
    """Every registered source with one line about it. No source is imported."""
    others = {name: f"Source of the package {_package(entry)}." for name, entry in registered().items()}
    return SOURCES | dict(sorted(others.items()))


@cache
def load_source(name: str) -> Any:
    """Import a source.

    Raises:
        ValueError: when no source has this name, or it lacks an attribute or cannot be imported.
    """
    if name in SOURCES:
        return importlib.import_module(f"puna.corpus.{name}.source")
    if name not in registered():
        raise ValueError(f"unknown source {name!r}; choose one of: {', '.join(source_names())}")
    entry = registered()[name]
    where = f"the source {name} of the package {_package(entry)}"
    try:
        source = entry.load()
    except (ImportError, AttributeError) as error:
        raise ValueError(f"cannot import {where}: {error}") from error
    needed = ("PATTERNS", "Options", *(() if hasattr(source, "pipeline") else ("read", "clean")))
    if missing := [attribute for attribute in needed if not hasattr(source, attribute)]:
        raise ValueError(f"{where} has no {' and no '.join(missing)}; see the docstring of {__name__}")
    return source
