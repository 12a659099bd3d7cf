"""The walk over the tokens against mwparserfromhell's own tree, and what must hold whatever is left open."""

import mwparserfromhell
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mwparserfromhell import nodes
from mwparserfromhell.wikicode import Wikicode

from puna.corpus.wikitext import HIDDEN, MAX_WORK, TangledError, plain_text, tidy

MARKS = [
    *(
        "{{",
        "}}",
        "{{a|",
        "{{{b|",
        "}}}",
        "[[",
        "]]",
        "[[File:x|",
        "[[c|",
        "|",
        "[http://x.org ",
        "]",
        "\n\n",
    ),
    *("<b>", "</b>", "<ref>", "</ref>", "<ref name=n />", "<br>", "<div class=a>", "</div>", "<nowiki>"),
    *(
        "</nowiki>",
        "\n{|\n",
        "\n|-\n| ",
        "\n|}\n",
        "\n== ",
        " ==\n",
        "\n* ",
        "\n;t: ",
        "''",
        "'''",
        "&amp;",
        "&#65;",
    ),
    *("word ", "two words", "Ωμέγα", "__TOC__", "<li>", "<p>", "</p>", "<!-- c -->", "=", ":", "(", ")"),
]
wikitexts = st.lists(st.sampled_from(MARKS), max_size=30).map("".join)


def text_of_tree(wikicode: Wikicode | None) -> str:
    """The same text from the tree of nodes that mwparserfromhell builds."""
    parts = []
    for node in wikicode.nodes if wikicode else ():
        match node:
            case nodes.Text():
                parts.append(node.value)
            case nodes.Heading():
                parts.append(f"\n\ue000{node.level}{text_of_tree(node.title).strip()}\ue001\n")
            case nodes.HTMLEntity():
                parts.append(node.normalize())
            case nodes.Wikilink():
                parts.append(text_of_link(node))
            case nodes.Tag():
                parts.append(text_of_tag(node))
    return "".join(parts)


def text_of_link(link: nodes.Wikilink) -> str:
    title = text_of_tree(link.title).strip()
    prefix, colon, name = title.partition(":")
    if colon and prefix.strip().lower() in HIDDEN:
        return ""
    if link.text is not None:
        return text_of_tree(link.text) if text_of_tree(link.text).strip() else name or title
    return title.removeprefix(":")


def text_of_tag(tag: nodes.Tag) -> str:
    name = str(tag.tag).strip().lower()
    if name == "br":
        return "\n"
    if tag.wiki_markup and name in ("li", "dd", "dt"):
        return ""
    if name in ("b", "nowiki"):
        return text_of_tree(tag.contents)
    return f"\n{text_of_tree(tag.contents)}\n" if name in ("div", "li", "p", "dd", "dt", "hr") else ""


@settings(max_examples=400, deadline=None)
@given(wikitexts)
def test_the_walk_gives_the_text_of_the_parser_s_tree(wikitext):
    tree = mwparserfromhell.parse(wikitext.replace("<!-- c -->", ""), skip_style_tags=True)
    assert plain_text(wikitext) == tidy(text_of_tree(tree))


@settings(max_examples=200, deadline=None)
@given(wikitexts)
def test_no_markup_is_left_whatever_is_open(wikitext):
    text = plain_text(wikitext)
    for mark in ("{{", "[[", "|}", "{|", "<ref", "</ref", "\ue000", "\ue001"):
        assert mark not in text


def test_what_would_take_long_is_refused_by_its_marks_and_not_by_a_clock():
    with pytest.raises(TangledError):
        plain_text("{{a|" * 5000)
    balanced = "{{a|b}} [[c]] <ref>d</ref> words\n" * (MAX_WORK // 1000)
    assert plain_text(balanced).startswith("words" if balanced[0] == "[" else "c words")
