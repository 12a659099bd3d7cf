"""Which licence a project is under, and whether it is one the paper keeps (section 2.1: GitHub).

In:  packaging metadata (METADATA, PKG-INFO), or else the text of LICENSE and COPYING files.
Out: an SPDX expression such as `MIT OR Apache-2.0`, and `is_permitted(expression)`.

Where a project says several things, all of them must be permitted; what is not understood is not.
"""

import re
from collections.abc import Iterable
from email.parser import HeaderParser

PERMITTED = frozenset(
    {
        "Apache-2.0",
        "MIT",
        "BSD-1-Clause",
        "BSD-2-Clause",
        "BSD-2-Clause-Patent",
        "BSD-2-Clause-Views",
        "BSD-3-Clause",
        "BSD-3-Clause-Clear",
        "BSD-4-Clause",
        "BSD",  # as metadata before SPDX says it, without the number of clauses
    }
)
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
        # SPDX's exceptions add a permission to the licence before them; anything else may take one away.
        return allowed and "exception" in tokens[2].lower(), tokens[3:]
    return allowed, tokens[1:]


# ---- packaging metadata ---------------------------------------------------------------------------

# Names in use before SPDX expressions, without their case, punctuation and filler words.
_FILLER = re.compile(
    r"\b(the|software|open source|licen[sc]es?|licen[sc]ed|version|v|under|terms|of)\b|[^a-z0-9.]+"
)
_NAMES = {
    "mit": "MIT",
    "expat": "MIT",
    "mit expat": "MIT",
    "expat mit": "MIT",
    "bsd": "BSD",
    "new bsd": "BSD-3-Clause",
    "modified bsd": "BSD-3-Clause",
    "revised bsd": "BSD-3-Clause",
    "simplified bsd": "BSD-2-Clause",
    "bsd 2 clause": "BSD-2-Clause",
    "2 clause bsd": "BSD-2-Clause",
    "bsd 3 clause": "BSD-3-Clause",
    "3 clause bsd": "BSD-3-Clause",
    "apache": "Apache-2.0",
    "apache 2": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache2": "Apache-2.0",
    "apache2.0": "Apache-2.0",
    "asl 2.0": "Apache-2.0",
}
_UNSTATED = frozenset({"", "unknown", "none", "see licence", "see license"})


def licence_of_metadata(metadata: str) -> str | None:
    """The SPDX expression that METADATA or PKG-INFO states, or None when it states nothing."""
    headers = HeaderParser().parsestr(metadata)
    if expression := headers.get("License-Expression"):
        return str(expression).strip()
    stated = [
        name.rpartition("::")[2]
        for name in headers.get_all("Classifier", [])
        if name.startswith("License ::") and name.strip() != "License :: OSI Approved"
    ]
    field = str(headers.get("License", "")).strip()
    if field.lower() not in _UNSTATED:
        # Some put the whole text here, which says more than the classifier.
        stated.append(field if "\n" not in field else licence_of_text(field) or "unrecognised")
    return _all_stated(_name(words) for words in stated)


def _name(words: str) -> str:
    words = " ".join(words.split())
    plain = " ".join(_FILLER.sub(" ", words.lower()).split())
    return words if is_permitted(words) else _NAMES.get(plain, words)


def _all_stated(names: Iterable[str]) -> str | None:
    unique = list(dict.fromkeys(names))
    # `BSD` beside `BSD-3-Clause` is the same statement made twice.
    if any(name.startswith("BSD-") for name in unique):
        unique = [name for name in unique if name != "BSD"]
    if len(unique) == 1:
        return unique[0]
    return " AND ".join(f"({name})" if " " in name else name for name in unique) or None


# ---- licence texts --------------------------------------------------------------------------------

# A permitted grant beside one of these is not a permitted licence: a second one, or a restriction.
_OTHER = re.compile(
    r"gnu (?:lesser |library |affero )?general public licen[sc]e|mozilla public licen[sc]e|"
    r"eclipse public licen[sc]e|commons clause|good, not evil|creative commons|non-?commercial|"
    r"server side public licen[sc]e|business source licen[sc]e"
)
_MIT = "permission is hereby granted, free of charge, to any person obtaining a copy"
_BSD = "redistribution and use in source and binary forms, with or without modification, are permitted"
_APACHE = re.compile(r"apache licen[sc]e,? version 2\.0")


def licence_of_texts(texts: Iterable[str]) -> str | None:
    """The licences of a project's LICENSE and COPYING files, all of which apply."""
    return _all_stated(licence_of_text(text) or "unrecognised" for text in texts)


def licence_of_text(text: str) -> str | None:
    """The SPDX name of a licence, from its words; None when it is none of the permitted ones."""
    words = " ".join(re.sub(r"[*#\"“”`]", " ", text.lower()).split())
    if _OTHER.search(words):
        return None
    found = []
    if _MIT in words:
        found.append("MIT")
    if _BSD in words:
        clauses = 4 if "all advertising materials" in words else 3 if "neither the name" in words else 2
        found.append(f"BSD-{clauses}-Clause")
    if _APACHE.search(words):
        found.append("Apache-2.0")
    return " AND ".join(found) or None
