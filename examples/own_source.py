"""A source of your own: a module that reads raw files and cleans their records.

    python examples/own_source.py

In a package of yours, an entry point makes it a command, `puna corpus recipes RAW --out documents/recipes`:

    [project.entry-points."puna.sources"]
    recipes = "my_package.recipes"

puna gives the files to processes, writes Parquet and the manifest, and resumes after a crash. Here the same
functions are called directly, without a package.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from puna.corpus.document import Document, Drop

# ---- the module my_package/recipes.py ---------------------------------------------------------------

PATTERNS = ("*.recipe",)


@dataclass(frozen=True)
class Options:
    """The fields become options of the command; their docstrings become its help."""

    min_characters: int = 20
    """Shortest text that is kept, in characters."""

    def validate(self) -> None:
        """Raises ValueError naming an invalid option."""
        if self.min_characters < 0:
            raise ValueError(f"min-characters is {self.min_characters}; it must not be negative")


@dataclass(frozen=True)
class Recipe:
    """A record: what one file holds."""

    name: str
    text: str


def read(path: Path, options: Options) -> Iterator[Recipe]:
    """Raw file -> records. A damaged one is yielded as a DamagedRecord, counted and set aside."""
    yield Recipe(path.stem, path.read_text(encoding="utf-8"))


def clean(record: Recipe, options: Options) -> Document | Drop:
    """Record -> document, or the reason to drop it. A pure function: the rules in reading order."""
    lines = [line.strip() for line in record.text.splitlines() if not line.startswith("#")]
    text = "\n".join(lines).strip()
    if len(text) < options.min_characters:
        return Drop("too short")
    return Document(id=record.name, source="recipes", text=text)


# ---- try it -----------------------------------------------------------------------------------------

if __name__ == "__main__":
    raw = Path("raw/recipes")
    raw.mkdir(parents=True, exist_ok=True)
    (raw / "quinoa.recipe").write_text("# serves two\nRinse the quinoa.\nBoil it for fifteen minutes.\n")
    (raw / "water.recipe").write_text("# serves one\nWater.\n")
    for file in sorted(raw.glob(PATTERNS[0])):
        for record in read(file, Options()):
            print(clean(record, Options()))
