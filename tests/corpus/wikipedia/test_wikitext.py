"""The walk over the tokens against mwparserfromhell's own tree, and what must hold whatever is left open."""

import re

import mwparserfromhell
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mwparserfromhell import nodes
from mwparserfromhell.wikicode import Wikicode

from puna.corpus.wikipedia.magic_words import CHARACTERS, REMOVED
from puna.corpus.wikipedia.wikitext import HIDDEN, MAX_WORK, TangledError, plain_text
from puna.corpus.wikipedia.wikitext_lift import lift
from puna.corpus.wikipedia.wikitext_tidy import ITEM, LOST_LINK, Kept, tidy

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


def text_of_tree(wikicode: Wikicode | None, kept: Kept) -> str:
    """The same text from the tree of nodes that mwparserfromhell builds."""
    parts = []
    for node in wikicode.nodes if wikicode else ():
        match node:
            case nodes.Text():
                parts.append(node.value)
            case nodes.Heading():
                parts.append(f"\n\ue000{node.level}{text_of_tree(node.title, kept).strip()}\ue001\n")
            case nodes.HTMLEntity():
                parts.append(node.normalize())
            case nodes.Wikilink():
                parts.append(text_of_link(node, kept))
            case nodes.Tag():
                item = text_of_tag(node, kept)
                begun = item == ITEM and parts and parts[-1][-1:] not in ("\n", ITEM)
                parts.append(f"\n{ITEM}" if begun else item)
            case nodes.Template() if str(node.name).strip().lower() in CHARACTERS:
                parts.append(CHARACTERS[str(node.name).strip().lower()])
            case nodes.Argument() if node.default is not None:
                parts.append(text_of_tree(node.default, kept))
            case nodes.ExternalLink():
                parts.append(LOST_LINK)
            case _:
                parts.append(REMOVED)
    return "".join(parts)


def text_of_link(link: nodes.Wikilink, kept: Kept) -> str:
    title = text_of_tree(link.title, kept)
    if link.text is None and not title.strip():
        return kept.add(f"[[{title}]]")  # no link
    title = title.strip()
    prefix, colon, name = title.partition(":")
    if colon and prefix.strip().lower() in HIDDEN:
        return REMOVED
    if link.text is not None:
        return text_of_tree(link.text, kept) if text_of_tree(link.text, kept).strip() else name or title
    return title.removeprefix(":")


def text_of_tag(tag: nodes.Tag, kept: Kept) -> str:
    name = str(tag.tag).strip().lower()
    if name == "br":
        return "\n"
    if tag.wiki_markup and name in ("li", "dd", "dt"):
        return ITEM
    if name == "b":
        return text_of_tree(tag.contents, kept)
    block = name in ("div", "li", "p", "dd", "dt", "hr")
    return f"\n{text_of_tree(tag.contents, kept)}\n" if block else REMOVED


@settings(max_examples=400, deadline=None)
@given(wikitexts)
@example("[[]]")
@example("[[[[]]]]")
def test_the_walk_gives_the_text_of_the_parser_s_tree(wikitext):
    kept = Kept()
    tree = mwparserfromhell.parse(lift(wikitext, kept), skip_style_tags=True)
    assert plain_text(wikitext) == kept.restore(tidy(text_of_tree(tree, kept))).strip("\n")


@settings(max_examples=200, deadline=None)
@given(wikitexts.filter(lambda wikitext: "<nowiki>" not in wikitext))
@example("={{<p></p>==")  # a block within a heading
@example("[[]]")
def test_no_markup_is_left_whatever_is_open(wikitext):
    text = re.sub(r"\[\[\s*\]\]", "", plain_text(wikitext))  # empty brackets are no link
    for mark in ("[[", "<ref", "</ref", "\ue000", "\ue001", "\ue002", "\ue003", "\ue004"):
        assert mark not in text
    # Of three braces two may open or close a template. The third is the author's text then, and beside a bar
    # or a brace it reads like markup: `{{a|{{b}}}` is an open template that holds `a|`, a template, and `}`.
    braces = "{{{" in wikitext
    assert "{{" not in text or braces
    assert "{|" not in text or braces or wikitext.count("{|") > wikitext.count("|}")  # or a table without end
    assert "|}" not in text or "}}" in wikitext


def test_a_brace_after_a_bar_is_text_where_no_table_ends():
    assert plain_text("{{a|{{b}}}") == plain_text("{{a|{{b|}}}") == "a|}"
    assert plain_text("x\n{|\n| y\n|}\nz") == "x\nz"


@pytest.mark.parametrize(
    "text",
    [
        "x[a[0]] = 1 and {1,{2,3}}.",
        "The set {x : |x|} and the bars {|x|}.",
        "m = {{1,2},{3,4}} and {{1, 2}, {3}}.",
    ],
)
def test_brackets_and_braces_that_are_no_markup_stay(text):
    assert plain_text(text) == text


def test_a_definition_has_a_line_of_its_own():
    assert plain_text("; term : one\n; {{x}}other: two\n:: three") == "term\none\nother\ntwo\nthree"


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab12 ().,;:!?«»[{_-\n'\"|<é", max_size=60))
def test_what_holds_no_markup_is_as_the_author_wrote_it(text):
    text = text.replace("[", "(").replace("{", ")").replace("''", "x").replace("<", "x").replace("|", "x")
    text = text.replace("!", "a!").replace("_", "a_").replace("-", "a-").replace(":", "a:").replace(";", "a;")
    wanted = [" ".join(line.split(" ")).strip() for line in text.split("\n")]
    found = plain_text(text).split("\n")
    assert [" ".join(line.split()) for line in found if line] == [
        " ".join(line.split()) for line in wanted if line
    ]


@pytest.mark.parametrize(
    ("wikitext", "text"),
    [
        # What the author wrote stays, whatever it looks like.
        (
            "Java, .NET and a1, ..., an; f () or ( ) and x , y",
            "Java, .NET and a1, ..., an; f () or ( ) and x , y",
        ),
        ("In 1961 ... the . . . end", "In 1961 ... the . . . end"),
        ("« Oui ? » ; non ! 3 : 2", "« Oui ? » ; non ! 3 : 2"),
        ("__FILE__, __index__ and __notoc____SIN_TDC__", "__FILE__, __index__ and"),
        ("!Kung is\n|x| is absolute", "!Kung is\n|x| is absolute"),
        ("&lt;p&gt; &#91;&#91;x&#93;&#93; <nowiki>{{a}} ''b''</nowiki>", "<p> [[x]] {{a}} ''b''"),
        ("<code>''f''([[x]])  __LINE__ &lt;b&gt;</code>", "f(x)  __LINE__ <b>"),
        ("List<String> <html><a href=x>y</a>", "List<String> <html><a href=x>y</a>"),
        # Beside what is removed, what joined it goes too.
        ("seen {{cn}}. In {{x}}.NET and a, {{x}}, b; {{x}}.", "seen. In .NET and a, b."),
        ("a ({{x}}; {{y}}), b (see {{x}}), c ({{x}}, d) e « {{x}} »", "a, b (see), c (d) e"),
        ('mind."<ref>a</ref> "He is', 'mind." "He is'),
        ("mot<ref>a</ref> ; suite {{x}} : fin{{x}} !", "mot ; suite : fin !"),
        ("* {{x}}: words\n* {{x}}\n* {{x}}, –", "words"),
        # Code and formulas.
        ("<pre>\n  if a[[0]]:\n    ''b''\n</pre>", "  if a[[0]]:\n    ''b''"),
        ("<pre><nowiki>[[x]]</nowiki> &lt;</pre>", "[[x]] <"),
        ("<source lang=c>\nint x;\n\n\n\n&lt;\n</source>", "int x;\n\n\n\n&lt;"),
        ("{{a|<nowiki>}}</nowiki>|b}}c <syntaxhighlight inline>{{x}}</syntaxhighlight>", "c {{x}}"),
        ("<math>\\frac{a}{b} &lt; c</math>, <chem>H2O</chem>, <ce>CO2</ce>", "\\frac{a}{b} < c, H2O, CO2"),
        ("code:\n for x:\n   y  = 1\n z", "code:\nfor x:\n  y  = 1\nz"),
        # Text in tags.
        ("<mark>a</mark> <time>b</time> <data value=1>c</data> <q>d</q>", 'a b c "d"'),
        ("<ruby>漢<rp>(</rp><rt>kan</rt><rp>)</rp></ruby>", "漢(kan)"),
        ('<span style="display: none">0001</span>shown', "shown"),
        (
            "10<sup>23</sup> 10<sup>10<sup>2</sup></sup> km<sup>2</sup> x<sup>''n''</sup>",
            "10^23 10^10^2 km^2 x^n",
        ),
        ("19<sup>th</sup> XX<sup>e</sup> H<sub>2</sub>O log<sub>2</sub>8", "19th XXe H2O log_2 8"),
        (
            "<sup>235</sup><sub>92</sub>U 10<sub>2</sub> <sup>14</sup>C a<sup>[1]</sup>",
            "235_92U 10_2 14C a[1]",
        ),
        # Parser functions.
        (
            "{{formatnum:1234}} {{FORMATNUM: -9 }} {{lc:ÅB}} {{uc:ab}} {{ucfirst:ab}} {{lcfirst:AB}}",
            "1234 -9 åb AB Ab aB",
        ),
        ("{{#tag:nowiki|x}} {{#tag:ref|y}} {{#tag:math|z^2}} a{{!}}b {{=}}", "x z^2 a|b ="),
        ("{{#if:x|yes|no}} {{#if:|yes|no}} {{#if:{{x}}|yes|no}} {{#ifeq:a|b|s|d}}", "yes no d"),
        (
            "{{#switch:b|a=1|b|c=2|3}} {{plural:1|page|pages}} {{padleft:7|3}} {{padright:7|3|x}}",
            "2 page 007 7xx",
        ),
        ("1914{{ndash}}1918{{snd}}x {{lc:[[Foo]]}} '''{{PAGENAME}}'''", "1914–1918 – x Foo Llama"),
        ("{{DEFAULTSORT:x}}{{DISPLAYTITLE:''x''}}{{#invoke:a|b}}{{#time:Y}}seen", "seen"),
    ],
)
def test_the_author_s_text_stays_and_what_was_removed_leaves_nothing(wikitext, text):
    assert plain_text(wikitext, title="Llama") == text


def test_a_list_of_links_goes_with_its_links():
    links = "* [http://x Official site] – in English\n* ''[http://x T]'', by J. Smith\n* S., [http://x B]"
    for heading in ("External links", "Weblinks", "Liens externes", "Ссылки"):
        assert plain_text(f"Text.\n== {heading} ==\n{links}\n* {{{{official|x}}}}") == "Text."
    assert plain_text("== Uses ==\n* Wool, as [http://x here].") == "Uses\n\nWool, as."


@pytest.mark.parametrize(
    ("wikitext", "text"),
    [
        ("-{T|zh:标题;zh-hant:標題}-文-{H|zh-cn:宏;zh-tw:巨集}--{A|zh-cn:a;zh-tw:b}--{-|x}-", "文"),
        (
            "-{zh-hans:计算机; zh-hant:電腦;}-好 -{R|raw}- -{zh-cn;zh-tw|X}- -{plain; text}-",
            "计算机好 raw X plain; text",
        ),
        ("-{zh-hans:a-{zh:b;zh-tw:c}-d;zh-hant:e}- -{宏=>zh-cn:集;}- <nowiki>-{x}-</nowiki>", "abd 集 -{x}-"),
    ],
)
def test_of_several_variants_the_first_is_read(wikitext, text):
    assert plain_text(wikitext, variants=True) == text


def test_what_would_take_long_is_refused_by_its_marks_and_not_by_a_clock():
    with pytest.raises(TangledError):
        plain_text("{{a|" * 5000)
    balanced = "{{a|b}} [[c]] <ref>d</ref> words\n" * (MAX_WORK // 1000)
    assert plain_text(balanced).startswith("words" if balanced[0] == "[" else "c words")
