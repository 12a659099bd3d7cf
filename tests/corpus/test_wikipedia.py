"""Wikipedia dumps become prose: what a reader of the page sees, and no more."""

import bz2
from pathlib import Path

import pytest

from puna.corpus.document import Bad, Document, Drop
from puna.corpus.wikipedia import Page, Site, clean, read
from tests.corpus.dumps import END, PROSE, head, page, write_dump


def article(wikitext: str) -> Document | Drop:
    return clean(Page(Site("enwiki", "en"), "7", "Llama", "0", "11", False, wikitext))


def text_of(wikitext: str) -> str:
    """The cleaned text of some wikitext, with prose after it so that it is never too short."""
    document = article(f"{wikitext}\n\n{PROSE}")
    assert isinstance(document, Document), document
    return document.text.removesuffix(PROSE.strip()).strip()


def pages_and_bad(path: Path) -> tuple[list[Page], list[Bad]]:
    records = list(read(path))
    pages = [record for record in records if isinstance(record, Page)]
    return pages, [record for record in records if isinstance(record, Bad)]


# ---- wikitext


@pytest.mark.parametrize(
    ("wikitext", "text"),
    [
        ("a [[camel]] of the [[Andes|high Andes]]", "a camel of the high Andes"),
        ("see [[:Category:Camels]] there", "see Category:Camels there"),
        ("''thin'' and '''thick''' and '''''both'''''", "thin and thick and both"),
        ("''Anna'''s llama\nl'''Aleph''", "Anna's llama\nl'Aleph"),
        ("dell'''Iliade'' and ''''x'''", "dell'Iliade and 'x"),
        ("before<!-- a note -->after", "beforeafter"),
        ("known{{citation needed|date=May 2020}} widely", "known widely"),
        ("nested {{a|{{b|c}}|d}}templates", "nested templates"),
        ("fact<ref>A book, p. 3</ref>, fact<ref name=x />.", "fact, fact."),
        ("mass <math>m = E / c^2</math> here", "mass here"),
        ("H<sub>2</sub>O and <b>bold</b> and <nowiki>[[raw]]</nowiki>", "H2O and bold and raw"),
        ("[http://example.org the site] is down", "is down"),
        ("at https://example.org/x today", "at today"),
        ("salt&nbsp;flat &amp; sky &mdash; wide", "salt flat & sky — wide"),
        ("__NOTOC__ the __init__ method", "the __init__ method"),
        ("Llama ({{IPA|x}}; {{lang|es|llama}}) is", "Llama is"),
        ("Llama ({{IPA|x}}; from Quechua) is", "Llama (from Quechua) is"),
        ("one<br />two", "one\ntwo"),
        ("* first\n* second\n:# third", "first\nsecond\nthird"),
    ],
)
def test_wikitext_keeps_what_is_read_and_drops_what_is_not(wikitext, text):
    assert text_of(wikitext) == text


def test_tables_galleries_and_code_blocks_are_removed():
    table = '{| class="wikitable"\n|-\n! Head !! Other\n|-\n| cell || [[link|cell]]\n|}'
    gallery = "<gallery>\nFile:A.jpg|caption\n</gallery>"
    code = '<syntaxhighlight lang="c">int x;</syntaxhighlight>'
    assert text_of(f"Above.\n{table}\n{gallery}\n{code}\nBelow.") == "Above.\n\nBelow."


def test_a_table_that_a_template_closes_leaves_no_rows_behind():
    assert text_of("{|\n|-\n| cell\n{{end}}\n\nBelow.") == "Below."


def test_images_with_captions_and_categories_are_removed():
    image = "[[File:Llama.jpg|thumb|left|A [[llama]] in [[Peru]]]]"
    assert text_of(f"{image}Herds graze.\n[[Category:Camelids]]\n[[Image:B.png]]") == "Herds graze."


def test_file_and_category_names_come_from_the_dump(tmp_path):
    wikitext = f"[[Datei:Lama.jpg|mini|Ein Lama]]{PROSE}[[Kategorie:Kamele]][[Bild]]"
    site = {"language": "de", "media": "Medium", "file": "Datei", "category": "Kategorie"}
    pages, bad = pages_and_bad(write_dump(tmp_path / "dewiki.xml", [page(1, wikitext)], **site))
    assert not bad
    document = clean(pages[0])
    assert isinstance(document, Document)
    assert document.text == PROSE + "Bild"
    assert document.meta["language"] == "de"
    # The same text is another thing where `Datei` is no namespace.
    assert "Datei:" not in document.text and "Ein Lama" in text_of("[[Datei:Lama.jpg|Ein Lama]]")


def test_links_to_other_languages_are_removed():
    assert text_of("Text.\n[[de:Lama (Kamel)]]\n[[zh-min-nan:X]]") == "Text."


def test_headings_stay_as_lines_and_empty_sections_go():
    wikitext = (
        "Lead.\n== History ==\n=== Early ===\nOld text.\n=== Late ===\n{{gone}}\n"
        "== References ==\n{{reflist}}\n== See also ==\n* [[Alpaca]]\n== Notes ==\n<references />"
    )
    document = article(f"{PROSE}{wikitext}")
    assert isinstance(document, Document)
    assert document.text == f"{PROSE}Lead.\n\nHistory\n\nEarly\n\nOld text.\n\nSee also\n\nAlpaca"


# ---- records


def test_an_article_carries_its_title_language_and_revision():
    document = article(PROSE)
    assert isinstance(document, Document)
    assert (document.id, document.source) == ("enwiki/7", "wikipedia")
    assert document.meta == {"title": "Llama", "language": "en", "revision": "11"}


def test_pages_without_an_article_are_dropped_with_their_reason(tmp_path):
    dump = write_dump(
        tmp_path / "dump.xml",
        [
            page(1, "#REDIRECT [[Llama]]", extra='<redirect title="Llama" />'),
            page(2, "#WEITERLEITUNG [[Llama]]"),
            page(3, PROSE, title="Talk:Llama", namespace=1),
            page(4, "{{only|templates}}"),
            page(5, "Too little."),
            page(6, ""),
        ],
    )
    pages, bad = pages_and_bad(dump)
    dropped = [clean(record) for record in pages]
    reasons = [drop.reason for drop in dropped if isinstance(drop, Drop)]
    assert reasons == ["redirect", "redirect", "not an article", "empty", "too short", "empty"]
    assert not bad


def test_the_last_revision_is_the_article(tmp_path):
    two = page(1, "Old.").replace("  </page>", "<revision><id>9</id><text>New.</text></revision></page>")
    pages, _ = pages_and_bad(write_dump(tmp_path / "dump.xml", [two]))
    assert (pages[0].revision, pages[0].wikitext) == ("9", "New.")


# ---- dumps, whole and damaged


def test_plain_packed_and_multistream_dumps_hold_the_same_pages(tmp_path):
    pages = [page(number) for number in range(50)]
    plain = write_dump(tmp_path / "dump.xml", pages)
    packed = tmp_path / "dump.xml.bz2"
    packed.write_bytes(bz2.compress(plain.read_bytes()))
    multistream = tmp_path / "multistream.xml.bz2"
    streams = [head(), *("".join(pages[start : start + 10]) for start in range(0, 50, 10)), END]
    multistream.write_bytes(b"".join(bz2.compress(stream.encode()) for stream in streams))
    expected = pages_and_bad(plain)
    assert len(expected[0]) == 50 and not expected[1]
    assert pages_and_bad(packed) == expected == pages_and_bad(multistream)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_dump_cut_at_any_byte_keeps_its_whole_pages_and_names_the_cut(tmp_path, share):
    whole = (head() + "".join(page(number) for number in range(40)) + END).encode()
    cut = whole[: int(len(whole) * share)]
    path = tmp_path / "cut.xml"
    path.write_bytes(cut)
    pages, bad = pages_and_bad(path)
    assert len(pages) == cut.count(b"</page>")
    assert [item.file for item in bad] == [str(path)]
    # From the offset on, nothing of a whole page is left out.
    assert bad[0].offset == cut.rindex(b"</page>") + len(b"</page>")


def test_a_cut_bz2_keeps_what_can_be_unpacked_and_names_the_cut(tmp_path):
    streams = [head(), *(page(number) for number in range(20)), END]
    packed = [bz2.compress(stream.encode()) for stream in streams]
    path = tmp_path / "cut.xml.bz2"
    path.write_bytes(b"".join(packed[:11]) + packed[11][:-20])
    pages, bad = pages_and_bad(path)
    assert [record.id for record in pages] == [str(number) for number in range(10)]
    assert len(bad) == 1 and "compressed data" in bad[0].reason


def test_a_damaged_page_costs_that_page_alone(tmp_path):
    pages = [page(number) for number in range(6)]
    pages[2] = pages[2].replace("<title>", "<title>\x00")
    pages[4] = pages[4].replace("</page>", "")
    dump = write_dump(tmp_path / "dump.xml", pages)
    found, bad = pages_and_bad(dump)
    assert [record.id for record in found] == ["0", "1", "3", "5"]
    data = dump.read_bytes()
    starts = [offset for offset in range(len(data)) if data.startswith(b"<page>", offset)]
    assert [item.offset for item in bad] == [starts[2], starts[4]]


def test_another_format_is_bad_input_and_not_an_exception(tmp_path):
    path = tmp_path / "other.xml"
    path.write_text("<html><body>Not a dump.</body></html>", encoding="utf-8")
    pages, bad = pages_and_bad(path)
    assert not pages and [item.reason for item in bad] == ["not a MediaWiki dump"]


def test_memory_is_bounded_by_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr("puna.corpus.wikipedia.MAX_PAGE_BYTES", 1 << 20)
    dump = write_dump(tmp_path / "dump.xml", [page(2, "word " * 600_000), page(3)], language="fr")
    pages, bad = pages_and_bad(dump)
    assert [(record.id, record.site.language) for record in pages] == [("3", "fr")]
    assert bad and "without the end of a page" in bad[0].reason


# ---- the real ones


def test_a_real_dump_is_read_to_its_end_and_leaves_no_markup(realdata):
    (path,) = (realdata / "wikipedia").glob("enwiki*.bz2")
    pages, bad = pages_and_bad(path)
    assert len(pages) == bz2.decompress(path.read_bytes()).count(b"<page>") == 206
    assert not bad
    results = [clean(record) for record in pages]
    documents = [result for result in results if isinstance(result, Document)]
    assert len(documents) == 106
    assert len({document.id for document in documents}) == 106
    text = "\n".join(document.text for document in documents)
    for markup in ("[[", "]]", "{{", "}}", "<ref", "</", "''", "|-", "thumb|", "http://", "&nbsp;", "\n\n\n"):
        assert markup not in text, markup
    anarchism = next(document for document in documents if document.meta["title"] == "Anarchism")
    assert anarchism.text.startswith(
        "Anarchism is a political philosophy that advocates self-governed societies"
    )
    assert "\n\nEtymology and terminology\n\n" in anarchism.text


def test_a_dump_of_another_version_gives_its_last_revisions(realdata):
    pages, bad = pages_and_bad(realdata / "wikipedia" / "mwxml-dump.xml")
    assert not bad
    assert [(record.title, record.wikitext) for record in pages] == [
        ("Foo", "Revision 2 text"),
        ("Bar", "Revision 3 text"),
    ]
    assert clean(pages[1]) == Drop("not an article", detail="Bar")
