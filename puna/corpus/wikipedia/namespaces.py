"""Names of the file, media and category namespaces in the paper's 20 Wikipedias, and disambiguation marks.

The siteinfo of a dump states the current names, but not older ones and aliases, which many articles still
use. All are lower-case; `hidden_namespaces("de")` contains `datei`, `bild`, `kategorie`, `file` ...
"""

import re
from pathlib import Path

from puna.files import read_table

# Media, file and category, the current name first. The English names are valid in every language.
_NAMES = read_table(Path(__file__).with_suffix(".txt"))
_DISAMBIGUATION = re.compile(
    rf"\{{\{{\s*(?:{'|'.join(_NAMES.pop('disambiguation'))})\s*[|}}]|__(?:DISAMBIG|BEGRIFFSKLÄRUNG)__",
    re.IGNORECASE,
)
LANGUAGES = tuple(_NAMES)


def hidden_namespaces(language: str) -> frozenset[str]:
    """Lower-case namespaces whose links show no text: files, media and categories."""
    return frozenset((*_NAMES["en"], *_NAMES.get(language, ())))


def is_disambiguation(wikitext: str) -> bool:
    """Whether a page is marked as a disambiguation page, which only lists the meanings of its title."""
    return _DISAMBIGUATION.search(wikitext) is not None
