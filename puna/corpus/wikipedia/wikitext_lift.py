"""Comments, extension tags and variants, which MediaWiki takes out of wikitext before it parses the rest.

In:  wikitext.
Out: wikitext without them. The content of extension tags (code, formulas, nowiki) is kept unchanged, with a
     private character in its place; references and galleries are replaced by the mark of something removed.
"""

import html
import re
from functools import lru_cache

from puna.corpus.wikipedia.magic_words import REMOVED
from puna.corpus.wikipedia.wikitext_tidy import Kept


def names(words: str) -> frozenset[str]:
    """The words of a line, as a set."""
    return frozenset(words.split())


# Extension tags: their content is not wikitext, or not part of the page's text. Tags that show their content:
CODE = names("pre syntaxhighlight source")
FORMULAS = names("math chem ce")
LIFTED = (
    CODE
    | FORMULAS
    | names(
        "nowiki ref references gallery imagemap timeline score graph hiero inputbox categorytree charinsert "
        "templatedata templatestyles indicator mapframe maplink section abschnitt dynamicpagelist includeonly"
    )
)
# HTML that MediaWiki permits, and its own tags around wikitext. Anything else in angle brackets is text:
# `List<String>`, `<html>`.
INLINE = names(
    "abbr b bdi bdo big cite data del dfn em font i ins mark noinclude onlyinclude q rb rbc rt rtc ruby s "
    "small span strike strong sub sup time tab tabs translate tvar u phonos langconvert"
)
CODE_WORDS = names("code kbd samp tt var")
BLOCK = names("blockquote center dd div dl dt h1 h2 h3 h4 h5 h6 hr li ol p poem ul")
_UNSEEN = names("table caption tr td th thead tbody tfoot col colgroup link meta img languages rp br wbr")
_TAGS = LIFTED | INLINE | CODE_WORDS | BLOCK | _UNSEEN

_TAG = re.compile(r"<(?:!--|(/?)([a-zA-Z][a-zA-Z0-9]*)(?!\w|://))")
_OPEN_REF = re.compile(r"<ref\b[^<>]*(?<!/)>", re.IGNORECASE)
_ENTITY = re.compile(r"&(?:[a-zA-Z][a-zA-Z0-9]*|#\d+|#x[0-9a-fA-F]+);")
_NOWIKI_TAG = re.compile(r"</?nowiki\s*/?>", re.IGNORECASE)
_INLINE_CODE = re.compile(r"(?:^|\s)inline(?:\s|=|$)", re.IGNORECASE)

# Wikis with several scripts or spellings, which mark where these differ.
VARIANT_LANGUAGES = names("ban crh gan iu kk ku sh shi sr tg tly uz wuu zgh zh")
_VARIANT = re.compile(r"-\{((?:(?!-\{).)*?)\}-", re.DOTALL)
_FLAGS = re.compile(
    r"\s*((?:[A-Z+-]|[a-z]{2,4}(?:-[a-z]+)*)(?:\s*;\s*(?:[A-Z+-]|[a-z]{2,4}(?:-[a-z]+)*))*|)\s*\|"
)
_SILENT_FLAGS = frozenset("ADHNT-+")
_RULE = re.compile(r"\s*(?:[^;:{}]*=>\s*)?[a-z]{2,4}(?:-[a-z]+)*\s*:")
_NEXT_RULE = re.compile(r";\s*(?:[^;:{}]*=>\s*)?[a-z]{2,4}(?:-[a-z]+)*\s*:")
_MAX_NESTED_VARIANTS = 10


def without_variants(wikitext: str) -> str:
    """The wikitext with the first variant of each `-{...}-`; these may be nested."""
    for _ in range(_MAX_NESTED_VARIANTS):
        wikitext, n_found = _VARIANT.subn(_first_variant, wikitext)
        if not n_found:
            break
    return wikitext


def _first_variant(match: re.Match[str]) -> str:
    """`-{Lama}-` is Lama in every script; `-{sr-ec: Лама; sr-el: Lama}-` is the first here.

    Flags before a bar mark other uses: a title (T) or a rule for the rest of the page (H, A, -), which show
    nothing, and text that is never converted (R).
    """
    content = match[1]
    if flags := _FLAGS.match(content):
        if not _SILENT_FLAGS.isdisjoint(flag.strip() for flag in flags[1].split(";")):
            return REMOVED
        content = content[flags.end() :]
    if not (rule := _RULE.match(content)):
        return content
    following = _NEXT_RULE.search(content, rule.end())
    return content[rule.end() : following.start() if following else None].strip(" \n;")


def lift(wikitext: str, kept: Kept) -> str:
    """The wikitext without comments and extension tags; the content that these show is in `kept`."""
    parts: list[str] = []
    done = position = 0
    never_closed: set[str] = set()
    while tag := _TAG.search(wikitext, position):
        start, position = tag.start(), tag.end()
        name = (tag[2] or "").lower()
        if not name:  # a comment, which hides the rest of the page if it is not closed
            end = wikitext.find("-->", position)
            position = len(wikitext) if end < 0 else end + 3
            alone = start == 0 or wikitext[start - 1] == "\n"
            if alone and wikitext.startswith("\n", position):
                position += 1
            parts.append(wikitext[done:start])
            done = position
            continue
        if name not in _TAGS:
            parts += (wikitext[done:start], kept.add("<"))
            done = start + 1
            continue
        if name not in LIFTED or tag[1] or name in never_closed:
            continue
        end = wikitext.find(">", position)
        if end < 0:
            break
        body, after = "", end + 1
        if wikitext[end - 1] != "/":
            close = _closing(name).search(wikitext, after)
            if close is None:
                never_closed.add(name)
                continue
            body = wikitext[after : close.start()]
            if name == "ref" and _OPEN_REF.search(body):
                body = ""  # not closed: the text before the next reference is part of the page
            else:
                after = close.end()
        parts += (wikitext[done:start], shown(name, wikitext[position:end], body, kept))
        done = position = after
    return "".join(parts) + wikitext[done:] if parts else wikitext


@lru_cache(maxsize=64)
def _closing(name: str) -> re.Pattern[str]:
    return re.compile(rf"</{name}\s*>", re.IGNORECASE)


def shown(name: str, attributes: str, body: str, kept: Kept) -> str:
    """The text that an extension tag shows: unchanged code and formulas, or nothing."""
    if name == "nowiki":
        return kept.add(_unescaped(body))
    if name in FORMULAS:
        formula = _unescaped(body).strip(" \n~")
        is_block = "block" in attributes
    elif name in CODE:
        formula = body if name == "syntaxhighlight" else _NOWIKI_TAG.sub("", body)
        is_block = _INLINE_CODE.search(attributes) is None
        formula = formula.strip("\n").rstrip() if is_block else formula.strip()
        formula = _unescaped(formula) if name == "pre" else formula
    else:
        return REMOVED
    if not formula.strip():
        return REMOVED
    return f"\n{kept.add(formula)}\n" if is_block else kept.add(formula)


def _unescaped(text: str) -> str:
    return _ENTITY.sub(lambda entity: html.unescape(entity[0]), text) if "&" in text else text
