"""MediaWiki's magic words: `__NOTOC__`, `{{formatnum:4}}`, `{{!}}`, and their names in the paper's languages.

The names are those of MediaWiki's own messages and of its API (`siprop=magicwords`).
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from puna.files import read_table

REMOVED = "\ue002"  # marks where markup without text, or text that is not kept, was removed

# Words between double underscores that change the layout of a page and show nothing. Any other, such as
# __FILE__ or __init__, is text.
_TABLE = read_table(Path(__file__).with_suffix(".txt"))
SWITCHES = frozenset(f"__{word}__" for word in _TABLE["switch"])
# __index__ is Python's, where __INDEX__ is MediaWiki's.
_ANY_CASE = frozenset(f"__{word}__" for word in ("NOTOC", "FORCETOC", "TOC", "NOEDITSECTION", "NOGALLERY"))
_SWITCH = re.compile(r"__[^\W\d_]+(?:_[^\W\d_]+)*__")


def without_switches(text: str, mark: str) -> str:
    """The text with `mark` in place of the words that show nothing."""
    return _SWITCH.sub(
        lambda word: mark if word[0] in SWITCHES or word[0].upper() in _ANY_CASE else word[0], text
    )


# ---- functions ------------------------------------------------------------------------------------

# Templates with the same meaning in every wiki: a character that wikitext would read as markup, or a dash.
CHARACTERS = {
    **{"!": "|", "=": "=", "(": "{", ")": "}", "((": "{{", "))": "}}", "'": "'", '"': '"', "pipe": "|"},
    **{"'s": "'s", "pi": "π", "times": "×", "minus": "−", "1er": "1er", "'\"": "'\"", "\"'": "\"'"},
    **dict.fromkeys(("ndash", "en dash", "endash", "–"), "–"),
    **dict.fromkeys(("mdash", "em dash", "emdash", "—"), "—"),
    **dict.fromkeys(("snd", "spnd", "sndash", "spndash", "spaced ndash", "spaced en dash"), " – "),
    **dict.fromkeys(("nbsp", "space", "spaces", "thinsp", "hairsp"), " "),
    **dict.fromkeys(("·", "•", "dot", "middot", "bull", "bullet"), " · "),
}


def _kinds(prefix: str) -> dict[str, str]:
    """Name -> kind, from the lines of the table whose key is a prefix and a kind."""
    found = {key.removeprefix(prefix): names for key, names in _TABLE.items() if key.startswith(prefix)}
    return {name: kind for kind, names in found.items() for name in names}


_FUNCTIONS = _kinds("function ")
# Templates whose argument is the text of the page.
_TEMPLATES = {name.replace("_", " "): kind for name, kind in _kinds("template ").items()}
_CALL = re.compile(r"\s*(?:(?:safe)?subst:\s*)?([^:|{}\[\]]{1,40}?)\s*(?:(:)|\Z)", re.IGNORECASE)
# The rest of a call that the tokenizer does not recognise because it contains a link.
STRAY_CALL = re.compile(
    r"\{\{\s*(?:" + "|".join(re.escape(name) for name in _FUNCTIONS if name[0] != "#") + r"):", re.IGNORECASE
)


def function_of(start: str) -> tuple[str, str] | None:
    """(the function, the text after its colon) from the text after `{{`; None for most templates."""
    if not (match := _CALL.match(start)):
        return None
    name = match[1].lower()
    if not match[2] and (name := name.replace("_", " ")) in _TEMPLATES:
        return name, ""
    if not (function := _FUNCTIONS.get(name)):
        return None
    if function == "title":
        return (function, "") if match.end() == len(start) else None
    return (function, start[match.end() :]) if match[2] else None


def value_of(function: str, arguments: Sequence[str], title: str) -> str | None:
    """The text that a function shows, or None where only the wiki itself can compute it.

    Numbers are not grouped: a dump does not say how its language groups digits. A condition on a removed
    template has no known result.
    """
    if function in _DECIDED and REMOVED in arguments[0]:
        return None
    if function == "title":
        return title
    if kind := _TEMPLATES.get(function):
        return _argument(kind, arguments[1:])
    first = arguments[0].strip()
    rest = [argument.strip() for argument in arguments[1:]]
    if found := _TEXT.get(function):
        return found(first)
    if function in ("padleft", "padright"):
        width = int(rest[0]) if rest and rest[0].isdecimal() and len(rest[0]) < 4 else 0
        fill = (rest[1] if len(rest) > 1 and rest[1] else "0") * width
        missing = max(0, width - len(first))
        return fill[:missing] + first if function == "padleft" else first + fill[:missing]
    if function == "plural":
        return rest[0 if first.lstrip("-") == "1" else -1] if rest else ""
    if function == "grammar":
        return rest[0] if rest else ""
    if function == "if":
        return ([*rest, "", ""])[0 if first else 1]
    if function == "ifeq":
        other, yes, no = [*rest, "", "", ""][:3]
        return yes if first == other else no
    if function == "switch":
        return _chosen(first, rest)
    return None


_TEXT_ARGUMENT = re.compile(r"\s*(?:1|2|text|quote)\s*=")
_BETWEEN = ("to", "and", "or", "by", "x", "×", "-", "–", "+/-")
_POWERS = {"e3": "thousand ", "e6": "million ", "e9": "billion "}


def _argument(kind: str, arguments: Sequence[str]) -> str:
    """The text that a template shows: `convert|10|km|mi` is 10 km, `convert|5|to|7|kg` is 5 to 7 kg."""
    named = [argument[found.end() :] for argument in arguments if (found := _TEXT_ARGUMENT.match(argument))]
    unnamed = [argument.strip() for argument in arguments if "=" not in argument]
    if kind == "measure":
        end = 1
        while end + 1 < len(unnamed) and (
            unnamed[end] in _BETWEEN or (end + 2 < len(unnamed) and unnamed[end + 1].isdecimal())
        ):
            end += 2  # to 7 kg, or 11 in
        return re.sub(r"\be[369](?=[a-z])", lambda power: _POWERS[power[0]], " ".join(unnamed[: end + 1]))
    if kind == "joined":
        return "".join(unnamed)
    if kind == "fraction":
        return " ".join([*unnamed[:-2], "/".join(unnamed[-2:])])
    shown = (named or unnamed[kind == "second" :] or [""])[0].strip()
    return {"block": f"\n{shown}\n", "circa": f"c. {shown}"}.get(kind, shown) if shown else ""


_DECIDED = frozenset({"if", "ifeq", "switch", "plural", "expr"})
_TEXT: dict[str, Callable[[str], str]] = {
    "formatnum": str,
    "lc": str.lower,
    "uc": str.upper,
    "lcfirst": lambda text: text[:1].lower() + text[1:],
    "ucfirst": lambda text: text[:1].upper() + text[1:],
    "iferror": str,
}


def _chosen(value: str, cases: Sequence[str]) -> str:
    """`value | a = x | b | c = y | #default = z`: a case without `=` falls through to the next."""
    default, falls = "", False
    for place, case in enumerate(cases):
        name, equals, result = (part.strip() for part in case.partition("="))
        falls = falls or name == value
        if equals and falls:
            return result
        if equals and name == "#default":
            default = result
        elif not equals and place == len(cases) - 1:
            default = name
    return default
