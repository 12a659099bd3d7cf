"""Which licence a project is under, and whether it is one the paper keeps (section 2.1: GitHub).

In:  packaging metadata (METADATA, PKG-INFO), or else settings of tools and the text of licence files.
Out: an SPDX expression such as `MIT OR Apache-2.0`, and `is_permitted(expression)`.

If a project states several licences, all must be permitted. An unknown licence is not permitted.
"""

import json
import re
import tomllib
from collections.abc import Iterable
from configparser import ParsingError, RawConfigParser
from email.parser import HeaderParser
from functools import cache
from pathlib import Path
from typing import Any

from puna.corpus.github.licence_texts import TEXTS
from puna.files import read_table

# BSD is as in metadata older than SPDX, without the number of clauses.
_SPDX = (
    "Apache-2.0 MIT BSD-1-Clause BSD-2-Clause BSD-2-Clause-Patent BSD-2-Clause-Views BSD-3-Clause "
    "BSD-3-Clause-Clear BSD-4-Clause BSD"
)
PERMITTED = frozenset(_SPDX.split())
_PERMITTED = {name.lower() for name in PERMITTED}
_TOKEN = re.compile(r"\s*([()]|[A-Za-z0-9.+:-]+)")


def is_permitted(expression: str) -> bool:
    """Whether an SPDX expression allows use under the permitted licences alone.

    `A AND B` needs both, `A OR B` one of them; AND binds tighter. A malformed expression allows nothing.
    """
    tokens = _TOKEN.findall(expression)
    if "".join(tokens) != "".join(expression.split()):
        return False
    try:
        allowed, rest = _any_of(tokens)
    except (IndexError, RecursionError):
        return False
    return allowed and not rest


def _any_of(tokens: list[str]) -> tuple[bool, list[str]]:
    allowed, tokens = _all_of(tokens)
    while tokens and tokens[0].upper() == "OR":
        other, tokens = _all_of(tokens[1:])
        allowed = allowed or other
    return allowed, tokens


def _all_of(tokens: list[str]) -> tuple[bool, list[str]]:
    allowed, tokens = _one(tokens)
    while tokens and tokens[0].upper() == "AND":
        other, tokens = _one(tokens[1:])
        allowed = allowed and other
    return allowed, tokens


def _one(tokens: list[str]) -> tuple[bool, list[str]]:
    if tokens[0] == "(":
        allowed, tokens = _any_of(tokens[1:])
        return (allowed, tokens[1:]) if tokens and tokens[0] == ")" else (False, tokens)
    allowed = tokens[0].removesuffix("+").lower() in _PERMITTED
    if len(tokens) > 2 and tokens[1].upper() == "WITH":
        # SPDX's exceptions extend the licence before them; any other addition may restrict it.
        return allowed and "exception" in tokens[2].lower(), tokens[3:]
    return allowed, tokens[1:]


# ---- packaging metadata ---------------------------------------------------------------------------

# Files in which a project's tools state its licence.
SETTINGS = ("pyproject.toml", "setup.cfg", "package.json", "Cargo.toml")

# Names in use before SPDX expressions, without their case, punctuation and filler words.
_FILLER = re.compile(
    r"\b(the|software|open source|licen[sc]es?|licen[sc]ed|version|v|under|terms|of)\b|[^a-z0-9.]+"
)
_NAMES = {
    **dict.fromkeys(("mit", "expat", "mit expat", "expat mit"), "MIT"),
    "bsd": "BSD",
    **dict.fromkeys(("simplified bsd", "bsd 2 clause", "2 clause bsd"), "BSD-2-Clause"),
    **dict.fromkeys(
        ("new bsd", "modified bsd", "revised bsd", "bsd 3 clause", "3 clause bsd"), "BSD-3-Clause"
    ),
    **dict.fromkeys(("apache", "apache 2", "apache 2.0", "apache2", "apache2.0", "asl 2.0"), "Apache-2.0"),
}
_UNSTATED = re.compile(r"unknown|none|see licen[sc]e.*|", re.IGNORECASE)


def licence_of_metadata(metadata: str) -> str | None:
    """The SPDX expression that METADATA or PKG-INFO states, or None when it states nothing."""
    headers = HeaderParser().parsestr(metadata)
    if expression := headers.get("License-Expression"):
        return str(expression).strip()
    return _expression([headers.get("License", "")], headers.get_all("Classifier", []))


def licence_of_settings(name: str, text: str) -> str | None:
    """The SPDX expression that one of the files SETTINGS states, or None when it states nothing."""
    try:
        if name == "setup.cfg":
            parser = RawConfigParser(strict=False)
            parser.read_string(text)
            found: Any = dict(parser["metadata"]) if "metadata" in parser else {}
            found["classifiers"] = found.get("classifiers", "").split("\n")
        elif name == "package.json":
            found = json.loads(text)
        else:
            settings = tomllib.loads(text)
            found = settings.get("project", settings.get("package", {}))
            found = found if "license" in found else {**settings.get("tool", {}).get("poetry", {}), **found}
    except (ValueError, ParsingError):
        return None
    if not isinstance(found, dict):
        return None
    fields = found.get("licenses") or [found.get("license", "")]
    return _expression(fields if isinstance(fields, list) else [], found.get("classifiers", []))


def _expression(fields: Iterable[Any], classifiers: Iterable[str]) -> str | None:
    """The expression of all that the fields `license` and the classifiers state."""
    stated = [
        name.rpartition("::")[2]
        for name in map(str.strip, classifiers)
        if name.startswith("License ::") and name != "License :: OSI Approved"
    ]
    for field in fields:
        if isinstance(field, dict):
            field = field.get("type", field.get("text", ""))
        field = str(field).strip()
        if not _UNSTATED.fullmatch(field):
            # Some projects put the whole text here, which is more specific than the classifier.
            stated.append(field if "\n" not in field else licence_of_text(field) or "unrecognised")
    return all_stated(map(_name, stated))


def _name(words: str) -> str:
    words = " ".join(words.split())
    if "://" not in words:
        words = words.replace("/", " OR ")  # as in Cargo.toml before SPDX
    plain = " ".join(_FILLER.sub(" ", words.lower()).split())
    return words if is_permitted(words) else _NAMES.get(plain, words)


def all_stated(names: Iterable[str]) -> str | None:
    """The expression of a project that states all of these."""
    unique = list(dict.fromkeys(names))
    # `BSD` beside `BSD-3-Clause` states the same licence twice.
    if any(name.startswith("BSD-") for name in unique):
        unique = [name for name in unique if name != "BSD"]
    if len(unique) == 1:
        return unique[0]
    return " AND ".join(f"({name})" if " " in name else name for name in unique) or None


# ---- licence texts --------------------------------------------------------------------------------

_MIT = "permission is hereby granted free of charge to any person obtaining a copy"
_BSD = "redistribution and use in source and binary forms with or without modification are permitted"
_APACHE_NOTICE = "licensed under the apache license version 2 0"
_APACHE_BODY = (
    "grant of copyright license subject to the terms and conditions of this license each contributor"
)
_RUN = 5  # length of a run of words that must occur in a licence to be part of it
_MOST_OTHERS = 60  # words that may be the project's own: its name, its authors

# Lines of the project itself, and titles of licences.
_COPYRIGHT = re.compile(
    r"^[^\w\n]*(?:copyright\b|\(c\)|©|copr\.|(?:all|some) rights reserved|(?:portions|parts) copyright).*$"
    r"(?:\n[ \t]+(?:and |by )?[\w.@<>, -]{0,80}$(?=\n\s*\n))?",
    re.IGNORECASE | re.MULTILINE,
)
_NAMES_OF = r"(?:expat|mit|x11|isc|apache|(?:new|modified|revised|simplified|original|free)? ?bsd)"
_TITLE = re.compile(
    rf"^[^\w\n]*(?:the )?(?:\w+ )?(?:open source )?(?:software )?(?:{_NAMES_OF.replace('isc|', '')})"
    r"[ -]*(?:\d[- ]clause)?[ -]*(?:\w+[ -]+)?(?:(?:licen[sc]e)?,? ?"
    r"(?:agreement|v(?:ersion)? ?2(?:\.0)?(?:, january 2004)?)?)?"
    r"[^\w\n]*(?:\((?:mit|expat|\w+ ?bsd|\d-clause[^)]*|bsd[^)]*)\))?[^\w\n]*$",
    re.IGNORECASE | re.MULTILINE,
)
_ADDRESS = re.compile(r"<?(?:https?://|www\.)\S+|\S+@\S+\.\w+")
# Sentences of licences into which a project inserts its names.
_FILLED = (
    (re.compile(r"forms of the software as well as documentation with"), "forms with"),
    (re.compile(r"software and documentation (?=(?:is|are) provided|even)"), "software "),
    (re.compile(r"neither the names? of .{1,200}? nor the names? of (?:its|their|any|the|other)\b"),
     "neither the name of the copyright holder nor the names of its"),
    (re.compile(r"neither the names? of .{1,200}? nor (?=(?:its|their) contributors)"),
     "neither the name of the copyright holder nor the names of "),
    (re.compile(r"neither the names? of .{1,200}? may be used"),
     "neither the name of the copyright holder nor the names of its contributors may be used"),
    (re.compile(r"(?:the )?names? of .{1,120}? may not be used to endorse"),
     "neither the name of the copyright holder nor the names of its contributors may be used to endorse"),
    (re.compile(r"software is provided by .{1,200}? as is"),
     "software is provided by the copyright holders and contributors as is"),
    (re.compile(r"in no event shall .{1,200}? be liable for any (?=direct|claim)"),
     "in no event shall the copyright holder or contributors be liable for any "),
    (re.compile(r"includes software developed by .{1,120}?(?= neither|$| \d)"),
     "includes software developed by the organization"),
    (re.compile(
        r"(?:\w+ ){1,6}?(?:is|are)(?: \w+)? (?:released|licensed|distributed|available|covered|provided)"
        rf"(?: \w+)? (?:under|by|with)(?: the)?(?: terms of(?: the)?)?(?: \d clause)? {_NAMES_OF}"
        r"(?: \d clause)? licen[sc]e"
        r"(?: version 2 0)?(?: (?:given|reproduced|included|see) below)?"), ""),
    (re.compile(
        r"except when otherwise stated look for license files in directories or information at the "
        r"beginning of each file all software and documentation is licensed as follows|"
        r"(?:this software is )?available subject to the conditions and terms laid out below by downloading "
        r"and using this software you are agreeing to the following conditions|"
        r"(?:note )?this (?:\w+ ){1,15}?distributed under the terms of the "
        rf"{_NAMES_OF} licen[sc]e above"), ""),
)  # fmt: skip
# Words that occur in restrictions and other licences, but not in names; and those of them that tell of one
# even in a line about copyright.
_WORDS = read_table(Path(__file__).with_name("licence_words.txt"))
_TELLING = frozenset(_WORDS["telling"])
_TELLING_ANYWHERE = _TELLING - frozenset(_WORDS["naming"])
# A file that names the files with the licences.
_POINTER = re.compile(
    r"(?:(?:this|the) (?:\w+ )?is (?:made )?available |licensed )?under the terms of (?:either|both|any) of "
    r"the licenses found in .{1,80}?(?: contributions to .{1,60}? under .{0,20}?both these licenses)?"
)


def licence_of_texts(texts: Iterable[str]) -> str | None:
    """The licences of a project's LICENSE and COPYING files, all of which apply."""
    texts = list(texts)
    own = [text for text in texts if not _POINTER.fullmatch(plain_words(text))]
    return all_stated(licence_of_text(text) or "unrecognised" for text in own or texts)


def licence_of_text(text: str) -> str | None:
    """The SPDX name of a licence, from its words; None when it is none of the permitted ones.

    Text that is in no permitted licence must be short, such as a name or a list of authors. A restriction,
    another licence or a further grant is too much.
    """
    plain = plain_words(_COPYRIGHT.sub("\n", _ADDRESS.sub(" ", text.replace("\f", "\n"))))
    bare = plain_words(_TITLE.sub("\n", _COPYRIGHT.sub("\n", _ADDRESS.sub(" ", text))))
    found = []
    if _MIT in plain:
        found.append("MIT")
    if _BSD in plain:
        clauses = 4 if "all advertising materials" in plain else 3 if "neither the name" in plain else 2
        found.append(f"BSD-{clauses}-Clause")
    if _APACHE_NOTICE in plain or _APACHE_BODY in plain:
        found.append("Apache-2.0")
    if not found:
        return None
    others = words_of_no_licence(bare)
    if len(others) > _MOST_OTHERS or not _TELLING.isdisjoint(others):
        return None
    if not _TELLING_ANYWHERE.isdisjoint(words_of_no_licence(plain_words(_ADDRESS.sub(" ", text)))):
        return None
    return " AND ".join(found)


def plain_words(text: str) -> str:
    """The words of a text in lower case, with the names that a project inserts replaced by SPDX's."""
    words = " ".join(re.findall(r"[a-z0-9]+", text.lower()))
    for pattern, standard in _FILLED:
        words = pattern.sub(standard, words)
    return words


def words_of_no_licence(words: str) -> list[str]:
    """The words of a text that do not occur, with their neighbours, in a permitted licence."""
    sequence = [word for word in words.split() if not _NUMBERING.fullmatch(word)]
    runs = _runs()
    covered = bytearray(len(sequence))
    for start in range(len(sequence) - _RUN + 1):
        if tuple(sequence[start : start + _RUN]) in runs:
            covered[start : start + _RUN] = b"\1" * _RUN
    return [word for word, known in zip(sequence, covered, strict=True) if not known]


_NUMBERING = re.compile(r"[a-z]|\d{1,2}|i{2,3}|iv")


@cache
def _runs() -> frozenset[tuple[str, ...]]:
    """All runs of words of the permitted licences."""
    found: set[tuple[str, ...]] = set()
    for text in TEXTS.values():
        sequence = [word for word in plain_words(text).split() if not _NUMBERING.fullmatch(word)]
        found.update(tuple(sequence[start : start + _RUN]) for start in range(len(sequence) - _RUN + 1))
    return frozenset(found)
