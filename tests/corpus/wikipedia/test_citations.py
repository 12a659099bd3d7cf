"""The URLs of references: every form that they have in wikitext, and nothing else."""

import bz2

import pytest

from puna.corpus.wikipedia.citations import (
    normal_url,
    page_key,
    read_references,
    reference_urls,
    write_references,
    write_sorted,
)
from puna.files import read_json
from tests.corpus.wikipedia.dumps import head, page, write_dump


@pytest.mark.parametrize(
    ("wikitext", "urls"),
    [
        ("a<ref>http://a.org/x</ref>b", ["http://a.org/x"]),
        ("<ref name=n>[http://a.org/x Title]</ref>", ["http://a.org/x"]),
        ('<ref name="a > b/">https://a.org</ref>', ["https://a.org/"]),
        ("<REF group=g >\n * HTTP://A.Org:80/P?q=1#top\n</Ref >", ["http://a.org/P?q=1"]),
        (
            '<ref name="n" /> http://no.org <ref name=n/>http://no.org<ref>http://a.org/</ref>',
            ["http://a.org/"],
        ),
        ("<ref>{{cite web|url=http://a.org/x|title=T}}</ref>", ["http://a.org/x"]),
        ("<ref>{{cite web\n| url = //a.org/x\n| date=1}}</ref>", ["https://a.org/x"]),
        ("<ref>{{cite web|url=http://a.org/{{!}}x&amp;y}}</ref>", ["http://a.org/"]),
        (
            "<ref>[http://a.org/yes! Yes!] and http://a.org/no!</ref>",
            ["http://a.org/yes!", "http://a.org/no"],
        ),
        ("<ref>http://a.org/x?a=1&copy=2&#38;b=3</ref>", ["http://a.org/x?a=1&copy=2&b=3"]),
        ("<ref>See http://a.org/x, and (http://b.org/y).</ref>", ["http://a.org/x", "http://b.org/y"]),
        ("<ref>http://a.org/x_(y)</ref>", ["http://a.org/x_(y)"]),
        ("<ref>http://a.org/x?a=1&amp;b=2</ref>", ["http://a.org/x?a=1&b=2"]),
        ("<ref>''http://a.org/x''</ref>", ["http://a.org/x"]),
        ("<references><ref name=a>http://a.org/x</ref></references>", ["http://a.org/x"]),
        ("{{refn|A note.<ref>http://a.org/x</ref>}}", ["http://a.org/x"]),
        ("{{#tag:ref|See http://a.org/x|group=n}}", ["http://a.org/x"]),
        ("<ref>one http://a.org/x <ref>http://b.org/y</ref>", ["http://a.org/x", "http://b.org/y"]),
        ("<ref>http://a.org/x", ["http://a.org/x"]),
        # A copy in an archive is of a page.
        ("<ref>https://web.archive.org/web/20070101000000/http://a.org/x</ref>", ["http://a.org/x"]),
        ("<ref>http://web.archive.org/web/2007/http://a.org/x%3Ay%20z</ref>", ["http://a.org/x%3Ay%20z"]),
        ("<ref>http://archive.today/20120101/http://a.org/x?y=1</ref>", ["http://a.org/x?y=1"]),
        ("<ref>http://www.webcitation.org/5?url=http%3A%2F%2Fa.org%2Fx&date=2009</ref>", ["http://a.org/x"]),
        ("<ref>http://www.webcitation.org/5eWaHRbn4</ref>", []),
        ("<ref>https://archive.org/details/book</ref>", ["https://archive.org/details/book"]),
        # What is no reference.
        ("http://a.org [http://b.org x]", []),
        ("<!-- <ref>http://a.org</ref> --><nowiki><ref>http://b.org</ref></nowiki>", []),
        ("<ref>Smith, p. 3 // ftp://a.org http:// http://x</ref>", []),
        ("<references/>http://a.org<reference>http://b.org</reference>", []),
    ],
)
def test_each_form_of_a_reference_gives_its_urls(wikitext, urls):
    assert list(reference_urls(wikitext)) == urls


def test_addresses_of_one_page_have_one_key():
    same = ["http://www.a.org/x/", "https://a.org/x", "HTTPS://user@WWW.A.ORG:443/x#y", "http://a.org./x"]
    assert {page_key(url) for url in same} == {"a.org/x"}
    assert page_key("http://a.org/X") != page_key("http://a.org/x")
    assert [
        normal_url(url) for url in ("", "mailto:a@b.org", "http://", "http://a b.org/", "http://10.0.0.1/x")
    ] == [
        *[""] * 4,
        "http://10.0.0.1/x",
    ]


def cites(*urls: str) -> str:
    return "".join(f"Word.<ref>{url}</ref>" for url in urls)


def test_the_list_of_a_dump_is_sorted_and_holds_each_url_of_its_articles_once(tmp_path):
    pages = [
        page(1, cites("http://b.org", "http://a.org/2")),
        page(2, cites("http://b.org/", "http://a.org/10")),
        page(3, cites("http://talk.org"), namespace=1),
        page(4, "#REDIRECT [[x]]" + cites("http://gone.org"), extra='<redirect title="x" />'),
    ]
    plain = write_dump(tmp_path / "a.xml", pages[:2])
    packed = tmp_path / "b.xml.bz2"
    packed.write_bytes(bz2.compress((head() + "".join(pages[2:]) + "</mediawiki>").encode()))
    out = tmp_path / "urls.txt"
    manifest = write_references([plain, packed], out)
    assert out.read_text() == "http://a.org/10\nhttp://a.org/2\nhttp://b.org/\n"
    assert manifest.counts == {"pages": 2, "references": 4, "urls": 3}
    assert read_json(tmp_path / "urls.txt.json") == manifest.to_json()
    assert list(read_references(out)) == ["http://a.org/10", "http://a.org/2", "http://b.org/"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.xml",
        "b.xml.bz2",
        "urls.txt",
        "urls.txt.json",
    ]


def test_a_dump_without_references_and_one_with_too_much_damage_are_errors(tmp_path):
    with pytest.raises(ValueError, match="no reference has a URL in the 1 articles"):
        write_references([write_dump(tmp_path / "a.xml", [page(1)])], tmp_path / "urls.txt")
    cut = tmp_path / "b.xml"
    cut.write_text(head() + page(1, cites("http://a.org")) + page(2)[:200])
    with pytest.raises(ValueError, match=r"1 of 2 pages are damaged, over --max-bad 0.1"):
        write_references([cut], tmp_path / "urls.txt")
    assert write_references([cut], tmp_path / "urls.txt", max_bad=0.5).details["damaged"][0]["file"] == str(
        cut
    )
    with pytest.raises(ValueError, match="does not exist; make it with"):
        list(read_references(tmp_path / "none.txt"))


def test_sorting_in_pieces_is_sorting_at_once(tmp_path):
    lines = [f"http://{number * 7919 % 101}.org/é" for number in range(500)]
    assert write_sorted(lines, tmp_path / "pieces", at_once=30) == 101
    assert (tmp_path / "pieces").read_bytes().decode() == "".join(f"{line}\n" for line in sorted(set(lines)))
    assert [path.name for path in tmp_path.iterdir()] == ["pieces"]


def test_a_real_dump_gives_thousands_of_urls(realdata, tmp_path):
    manifest = write_references(sorted((realdata / "wikipedia").glob("enwiki*.bz2")), tmp_path / "urls.txt")
    assert manifest.counts["urls"] > 3000
    urls = list(read_references(tmp_path / "urls.txt"))
    assert urls == sorted(set(urls), key=str.encode)
    assert all(normal_url(url) == url for url in urls)
    assert not any(set(url) & set('[]{}<>|" ') for url in urls)
