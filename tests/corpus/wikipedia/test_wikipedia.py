"""Wikipedia dumps become prose: what a reader of the page sees, and no more."""

import bz2
import re
import tracemalloc
from itertools import pairwise
from pathlib import Path

import pytest

from puna.corpus.clean import clean_source, find_inputs
from puna.corpus.document import DamagedRecord, Document, Drop
from puna.corpus.wikipedia.source import Options, Page, Site, clean, read
from puna.stages.stage import Executor
from tests.corpus.wikipedia.dumps import END, PROSE, head, page, write_dump


def article(wikitext: str) -> Document | Drop:
    return clean(Page(Site("enwiki", "en"), "7", "Llama", "0", "11", False, wikitext))


def text_of(wikitext: str) -> str:
    """The cleaned text of some wikitext, with prose after it so that it is never too short."""
    document = article(f"{wikitext}\n\n{PROSE}")
    assert isinstance(document, Document), document
    return document.text.removesuffix(PROSE.strip()).strip()


def pages_and_bad(path: Path) -> tuple[list[Page], list[DamagedRecord]]:
    records = list(read(path))
    pages = [record for record in records if isinstance(record, Page)]
    return pages, [record for record in records if isinstance(record, DamagedRecord)]


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
        ("mass <math>m = E / c^2</math> here", "mass m = E / c^2 here"),
        ("H<sub>2</sub>O and <b>bold</b> and <nowiki>[[raw]]</nowiki>", "H2O and bold and [[raw]]"),
        ("[http://example.org the site] is down", "is down"),
        ("at https://example.org/x today", "at today"),
        ("salt&nbsp;flat &amp; sky &mdash; wide", "salt flat & sky — wide"),
        ("__NOTOC__ the __init__ method", "the __init__ method"),
        ("Llama ({{IPA|x}}; {{lang-es|llama}}) is", "Llama is"),
        ("Llama ({{IPA|x}}; {{lang|es|llama}}) is", "Llama (llama) is"),
        ("羊驼（{{IPA|x}}，{{lang-es|x}}）是", "羊驼是"),
        ("Llama ({{IPA|x}}; from Quechua) is", "Llama (from Quechua) is"),
        ("one<br />two", "one\ntwo"),
        ("* first\n* second\n:# third", "first\nsecond\nthird"),
        ("[[Llama (animal)|]] and [[Help:Herds|]]", "Llama and Herds"),
        ("see [[wikt:llama|the word]] [[wikt:llama]]", "see the word"),
        ("fact<ref name='a'>{{cite|title=[[x]]}}\nmore</ref><ref group=n>b</ref>.", "fact."),
        ("fact<REF>a</REF><ref name=open>never closed", "factnever closed"),
        ("{{{1|default}}} {{{2}}}seen &#x41;&#66;&#xD800;", "default seen AB\ufffd"),
        ("[[File:A.jpg|thumb|A [[File:B.jpg|10px|small [[c]]]] map]]seen", "seen"),
        ("<gallery mode=packed>\nFile:A.jpg|[[x]]\n</gallery>seen", "seen"),
        ("{{open|never closed [[link]] seen", "open|never closed link seen"),
        ("<div class='x' {{style}}>in a box</div>", "in a box"),
    ],
)
def test_wikitext_keeps_what_is_read_and_drops_what_is_not(wikitext, text):
    assert text_of(wikitext) == text


@pytest.mark.parametrize(
    ("wikitext", "text"),
    [
        ("{{convert|10|km|mi}} long, {{cvt|5|to|7|kg|0}}", "10 km long, 5 to 7 kg"),
        ("{{convert|22|e6acre|km2|abbr=on}} and {{convert|5|ft|11|in|m}}", "22 million acre and 5 ft 11 in"),
        ("{{nowrap|4 [[gram|g]]}} of {{lang|fr|2=sel}} {{unité|3|kg}}", "4 g of sel 3 kg"),
        ("{{math|1=''E'' = ''mc''<sup>2</sup>}} in km{{sup|2}}", "E = mc^2 in km^2"),
        ("said:\n{{quote|author=Ada|text=Salt.}}\nso", "said:\n\nSalt.\n\nso"),
        ("John{{'s}} salt, {{circa|1450}} {{small|}}there", "John's salt, c. 1450 there"),
        ("an empty [[ ]] in bash", "an empty [[ ]] in bash"),
        ("<tabs><tab name=a>salt</tab></tabs>", "salt"),
    ],
)
def test_templates_around_text_show_it(wikitext, text):
    assert text_of(wikitext) == text


def test_tables_and_galleries_are_removed_and_code_stays():
    table = '{| class="wikitable"\n|-\n! Head !! Other\n|-\n| cell || [[link|cell]]\n|}'
    gallery = "<gallery>\nFile:A.jpg|caption\n</gallery>"
    code = '<syntaxhighlight lang="c">int x;</syntaxhighlight>'
    assert text_of(f"Above.\n{table}\n{gallery}\n{code}\nBelow.") == "Above.\n\nint x;\n\nBelow."


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


@pytest.mark.parametrize(
    ("language", "file", "category", "older"),
    [
        ("de", "Datei", "Kategorie", "Bild"),
        ("fr", "Fichier", "Catégorie", "Image"),
        ("ru", "Файл", "Категория", "Изображение"),
        ("uk", "Файл", "Категорія", "Зображення"),
        ("sr", "Датотека", "Категорија", "Слика"),
        ("sl", "Slika", "Kategorija", "Datoteka"),
        ("pt", "Ficheiro", "Categoria", "Imagem"),
        ("hu", "Fájl", "Kategória", "Kép"),
        ("ro", "Fișier", "Categorie", "Imagine"),
    ],
)
def test_files_and_categories_go_by_their_names_in_each_language(tmp_path, language, file, category, older):
    links = (
        f"[[{file}:a.jpg|thumb|x [[y]]]]",
        f"[[{older}:a.jpg|thumb|x]]",
        f"[[{file.lower()}: a.jpg]]",
        f"[[{category}:Z]]",
        "[[File:a.jpg|x]]",
        "[[Category:Z]]",
        "[[en:Llama]]",
    )
    site = {"language": language, "media": "M", "file": file, "category": category}
    pages, bad = pages_and_bad(write_dump(tmp_path / "dump.xml", [page(1, PROSE + "".join(links))], **site))
    document = clean(pages[0])
    assert isinstance(document, Document) and not bad
    assert document.text == PROSE.strip() and document.meta["language"] == language
    assert document.id == f"{language}wiki/1"


def test_both_scripts_of_serbian_are_read_without_their_marks():
    site = Site("srwiki", "sr")
    wikitext = "Лама -{Lama glama}- живи -{sr-ec: овде; sr-el: ovde}- у Андима. " + PROSE
    document = clean(Page(site, "7", "Лама", "0", "11", False, wikitext))
    assert isinstance(document, Document)
    assert document.text.startswith("Лама Lama glama живи овде у Андима.")


def test_the_paper_keeps_twenty_languages_and_options_others(tmp_path):
    assert len(Options().languages) == 20
    (record,) = read(write_dump(tmp_path / "dump.xml", [page(1)], language="ja"))
    assert clean(record) == Drop("another language", detail="jawiki: ja")
    assert isinstance(clean(record, Options(languages=("ja",))), Document)
    with pytest.raises(ValueError, match="languages is empty"):
        Options(languages=()).validate()


@pytest.mark.parametrize("mark", ["{{disambig}}", "{{Begriffsklärung}}", "{{hndis|Smith}}", "__DISAMBIG__"])
def test_disambiguation_pages_and_stubs_are_the_user_s_choice(mark):
    record = Page(Site("enwiki", "en"), "7", "Llama", "0", "11", False, PROSE + mark)
    assert isinstance(clean(record), Document)
    assert clean(record, Options(keep_disambiguation=False)) == Drop("disambiguation", detail="Llama")
    assert clean(record, Options(min_characters=1000)) == Drop("too short", detail="Llama")


def test_words_of_external_links_are_kept_where_that_is_asked_for():
    record = Page(
        Site("enwiki", "en"), "7", "x", "0", "1", False, PROSE + "[http://x.org the ''site''] http://y.org"
    )
    document = clean(record, Options(external_labels=True))
    assert isinstance(document, Document) and document.text == PROSE + "the site"


@pytest.mark.parametrize("unit", ["{{a|", "[[a|<br><!--{{{a|", '<b a="', "{{a|<!--", "<div ", "{{a|[[b|<i>"])
def test_a_page_that_would_take_minutes_to_parse_is_dropped_at_once(unit):
    # By its marks that are left open, not by a clock: the same page is dropped on every machine.
    reason = "too short" if "<!--" in unit else "wikitext not understood"
    result = article(unit * 20_000)
    assert isinstance(result, Drop) and result.reason == reason


def test_an_index_of_a_dump_is_not_taken_for_one(tmp_path):
    names = ("a.xml", "enwiki-pages-articles1.xml-p1p41242.bz2", "b.xml.bz2")
    for name in (*names, "enwiki-pages-articles-multistream-index.txt.bz2"):
        (tmp_path / name).write_bytes(b"")
    assert {path.name for path in find_inputs("wikipedia", [tmp_path])} == set(names)


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


def multistream(path: Path, pages: list[str], each: int = 10) -> list[int]:
    """Writes a multistream dump; returns where its streams begin."""
    texts = [head(), *("".join(pages[start : start + each]) for start in range(0, len(pages), each)), END]
    streams = [bz2.compress(text.encode()) for text in texts]
    path.write_bytes(b"".join(streams))
    return [sum(map(len, streams[:number])) for number in range(len(streams))]


@pytest.mark.parametrize("damage", ["middle", "magic", "checksum"])
def test_a_damaged_stream_costs_its_own_pages_and_is_named(tmp_path, damage):
    path = tmp_path / "dewiki-latest-pages-articles-multistream.xml.bz2"
    starts = multistream(path, [page(number) for number in range(60)])
    data = bytearray(path.read_bytes())
    at = {"middle": (starts[2] + starts[3]) // 2, "magic": starts[2] + 5, "checksum": starts[3] - 6}[damage]
    data[at] ^= 0x55
    path.write_bytes(data)
    found, bad = pages_and_bad(path)
    assert [int(record.id) for record in found] == [*range(10), *range(20, 60)]
    assert [(item.file, item.offset) for item in bad] == [(str(path), starts[2])]
    assert "compressed data" in bad[0].reason


def test_a_dump_whose_head_is_lost_is_known_by_its_name(tmp_path):
    path = tmp_path / "dewiki-20260101-pages-articles-multistream.xml.bz2"
    starts = multistream(path, [page(number, PROSE + "[[Datei:A.jpg|x]]") for number in range(20)])
    data = bytearray(path.read_bytes())
    data[starts[1] // 2] ^= 0x55
    path.write_bytes(data)
    found, bad = pages_and_bad(path)
    assert len(found) == 20 and len(bad) == 1
    document = clean(found[3])
    assert isinstance(document, Document)
    assert (document.text, document.id) == (PROSE.strip(), "dewiki/3")


def test_streams_may_be_cut_anywhere_in_the_xml(tmp_path):
    text = (head() + "".join(page(number) for number in range(30)) + END).encode()
    path = tmp_path / "parallel.xml.bz2"
    path.write_bytes(b"".join(bz2.compress(text[start : start + 777]) for start in range(0, len(text), 777)))
    found, bad = pages_and_bad(path)
    assert len(found) == 30 and not bad


def test_memory_does_not_grow_with_the_dump(tmp_path):
    peaks = []
    for factor in (1, 8):
        path = tmp_path / f"{factor}.xml.bz2"
        multistream(path, [page(number, PROSE * 50) for number in range(60 * factor)], each=20)
        tracemalloc.start()
        assert sum(isinstance(clean(record), Document) for record in read(path)) == 60 * factor
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]


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
    monkeypatch.setattr("puna.corpus.wikipedia.source.MAX_PAGE_BYTES", 1 << 20)
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
    for markup in ("[[", "]]", "<ref", "</ref", "''", "|-", "thumb|", "http://", "&nbsp;", "\n\n\n"):
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


# ---- parts of a large dump


@pytest.mark.parametrize("cuts", [None, "pages", "anywhere", "tags", "one stream"])
def test_a_dump_read_in_parts_gives_the_pages_of_the_whole(tmp_path, cuts):
    xml = (head() + "".join(page(number, PROSE * (number % 5)) for number in range(40)) + END).encode()
    begins = [found.start() for found in re.finditer(b"<page>", xml)]
    places = {
        "pages": begins[::3],
        "anywhere": range(101, len(xml), 1709),
        "tags": [place + number % 7 for number, place in enumerate(begins[2::2])],
    }.get(cuts, [])
    edges = [0, *places, len(xml)]
    path = tmp_path / "enwiki-pages.xml"
    path.write_bytes(xml if cuts is None else b"".join(bz2.compress(xml[a:b]) for a, b in pairwise(edges)))
    whole, size = list(read(path)), path.stat().st_size
    assert len(whole) == 40
    for part in (173, size // 3):
        starts = [*range(0, size - part, part), size]
        assert [item for span in pairwise(starts) for item in read(path, span=span)] == whole


def test_a_large_dump_is_divided_and_any_number_of_workers_writes_the_same(tmp_path, monkeypatch):
    dump = write_dump(tmp_path / "enwiki-pages.xml", [page(number) for number in range(60)])
    monkeypatch.setattr("puna.corpus.wikipedia.source.PART_BYTES", 4000)
    made = {}
    for workers in (1, 2):
        out = tmp_path / str(workers)
        manifest = clean_source("wikipedia", [dump], out, executor=Executor(workers=workers))
        made[workers] = {path.name: path.read_bytes() for path in out.glob("*.parquet")}
    assert manifest.counts["kept"] == 60 and manifest.damaged == 0
    assert made[1] == made[2] and len(made[1]) == dump.stat().st_size // 4000
    assert [(item.path, item.bytes) for item in manifest.inputs] == [(str(dump), dump.stat().st_size)]
