"""Pages come out of every form that archives store them in, as text in the right encoding."""

import gzip
import json
import os
import zlib
from pathlib import Path

import brotli
import pytest

from puna.corpus.document import DamagedRecord, Drop
from puna.corpus.web.pages import Page, page_text, read_pages
from tests.corpus.web.archives import record, response, wet

REAL = Path(os.environ.get("PUNA_REALDATA", ""))
real = pytest.mark.skipif(not os.environ.get("PUNA_REALDATA"), reason="PUNA_REALDATA is not set")
HTML = "<html><head><title>Lamas &amp; salt</title></head><body><p>Déjà vu.</p><p>Ünd so</p></body></html>"
TEXT = ["Lamas & salt", "Déjà vu.", "Ünd so"]


def pages(folder: Path, *records: bytes, name: str = "x.warc") -> list[Page | DamagedRecord]:
    (folder / name).write_bytes(b"".join(records))
    return list(read_pages(folder / name))


def page(folder: Path, *records: bytes) -> Page:
    (found,) = pages(folder, *records)
    assert isinstance(found, Page), found
    return found


def lines(found: Page) -> list[str]:
    text = page_text(found)
    assert isinstance(text, str), text
    return [line.strip() for line in text.split("\n") if line.strip()]


def chunked(data: bytes, size: int = 10) -> bytes:
    parts = [data[place : place + size] for place in range(0, len(data), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


@pytest.mark.parametrize(
    ("coding", "headers"),
    [
        (lambda data: data, {}),
        (chunked, {"Transfer_Encoding": "chunked"}),
        (gzip.compress, {"Content_Encoding": "gzip"}),
        (zlib.compress, {"Content_Encoding": "deflate"}),
        (lambda data: zlib.compress(data)[2:-4], {"Content_Encoding": "deflate"}),
        (brotli.compress, {"Content_Encoding": "br"}),
        (lambda data: gzip.compress(data[:20]) + gzip.compress(data[20:]), {"Content_Encoding": "gzip"}),
        (gzip.compress, {}),
        (
            lambda data: chunked(gzip.compress(data)),
            {"Transfer_Encoding": "chunked", "Content_Encoding": "gzip"},
        ),
        # Decoded by the crawler, which left the server's headers as they were.
        (lambda data: data, {"Transfer_Encoding": "chunked"}),
        (lambda data: data, {"Content_Encoding": "gzip"}),
        (lambda data: b"\n  " + data, {"Content_Encoding": "br"}),
    ],
)
def test_a_body_is_read_in_every_coding_that_servers_use(tmp_path, coding, headers):
    assert lines(page(tmp_path, response(coding(HTML.encode()), **headers))) == TEXT


@pytest.mark.parametrize(
    ("payload", "headers", "reason"),
    [
        (chunked(HTML.encode())[:50], {"Transfer_Encoding": "chunked"}, "the chunked body breaks off after"),
        (
            chunked(HTML.encode())[:-5] + b"zz\r\n",
            {"Transfer_Encoding": "chunked"},
            "the chunked body breaks off",
        ),
        (
            gzip.compress(HTML.encode(), mtime=0)[:60],
            {"Content_Encoding": "gzip"},
            "the gzip body is damaged or breaks off",
        ),
        (
            zlib.compress(HTML.encode())[:60],
            {"Content_Encoding": "deflate"},
            "the deflate body is damaged or breaks off",
        ),
        (b"\x00nothing", {"Content_Encoding": "br"}, "the br body is damaged or breaks off"),
    ],
    ids=["chunk", "size of a chunk", "gzip", "deflate", "br"],
)
def test_a_body_that_breaks_off_is_named_and_the_next_page_is_read(tmp_path, payload, headers, reason):
    broken, whole = response(payload, **headers), response(HTML.encode())
    bad, good = pages(tmp_path, broken, whole)
    assert isinstance(bad, DamagedRecord) and bad.offset == 0 and bad.reason.startswith(reason)
    assert isinstance(good, Page) and lines(good) == TEXT


@pytest.mark.parametrize(
    ("encoding", "media", "meta"),
    [
        ("utf-8", "text/html; charset=utf-8", ""),
        ("utf-8", "text/html", ""),
        ("latin-1", "text/html; charset=ISO-8859-1", ""),
        ("latin-1", 'text/html; charset="iso-8859-1"', ""),
        ("latin-1", "text/html", '<meta charset="iso-8859-1">'),
        ("latin-1", "text/html; charset=nonsense", '<meta charset="windows-1252">'),
        ("latin-1", "text/html; charset=utf-8", ""),  # the server is wrong: no UTF-8 at all
        ("utf-8-sig", "text/html; charset=iso-8859-1", ""),  # a byte order mark knows better
        ("utf-16", "text/html", ""),
    ],
)
def test_the_encoding_is_found_as_browsers_find_it(tmp_path, encoding, media, meta):
    html = HTML.replace("<head>", f"<head>{meta}").encode(encoding)
    assert lines(page(tmp_path, response(html, media=media))) == TEXT


def test_code_and_captions_in_a_figure_are_text_and_its_picture_is_not():
    html = (
        b'<p>See:<FIGURE class="highlight"><pre>one\n  two</pre></FIGURE><figure><img alt="alternative">'
        b"<object>fallback</object><figcaption>A llama</figcaption></figure>after"
    )
    text = page_text(Page("1", "http://a", "", html, "text/html"))
    assert isinstance(text, str)
    assert [line for line in text.split("\n") if line] == ["See:", "one", "  two", "A llama", "after"]


def test_scripts_styles_comments_and_templates_are_no_text():
    hidden = "<script>var x = 1;</script><style>p {}</style><!-- no --><template>no</template>"
    found = Page(
        "x:0",
        "https://example.org",
        "",
        f"<body>{hidden}<ul><li>one<li>two</ul></body>".encode(),
        "text/html",
    )
    assert lines(found) == ["one", "two"]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (response(b"<p>no</p>", status="404 Not Found"), "not a page: HTTP status"),
        (response(b"\x89PNG", media="image/png"), "not a page: media type"),
    ],
)
def test_what_is_no_page_is_dropped_with_the_reason(tmp_path, given, reason):
    dropped = page_text(page(tmp_path, given))
    assert isinstance(dropped, Drop) and dropped.reason == reason


def test_plain_text_that_a_server_sent_is_a_page(tmp_path):
    found = page(tmp_path, response("Déjà vu.\nÜnd so".encode("latin-1"), media="text/plain; charset=latin1"))
    assert lines(found) == TEXT[1:]


def test_records_that_are_no_documents_are_passed_over(tmp_path):
    kinds = ("warcinfo", "request", "metadata", "revisit", "resource")
    assert pages(tmp_path, *(record(kind, b"{}") for kind in kinds)) == []


@pytest.mark.parametrize(
    "url", ["", "metadata://gnu.org/wget", "https://a b.org/", "<https://example.org", "page"]
)
def test_a_bad_target_uri_is_named(tmp_path, url):
    bad, good = pages(tmp_path, wet("no", url), wet("yes"))
    assert isinstance(bad, DamagedRecord) and "WARC-Target-URI" in bad.reason and bad.offset == 0
    assert isinstance(good, Page) and good.content == "yes"


def test_the_brackets_that_wget_puts_around_a_url_are_taken_off(tmp_path):
    assert page(tmp_path, wet("yes", "<https://example.org/a>")).url == "https://example.org/a"


def test_a_wet_record_that_is_not_utf8_is_named(tmp_path):
    bad, good = pages(tmp_path, wet(b"caf\xe9 au lait"), wet("yes"))
    assert (
        isinstance(bad, DamagedRecord)
        and bad.reason == "the record is not UTF-8 (invalid continuation byte at its byte 3)"
    )
    assert isinstance(good, Page)


def test_json_lines_of_c4_and_ccnet_are_pages(tmp_path):
    rows = [
        {"url": "https://a.org", "text": "one\ntwo", "timestamp": "2019-04-25T12:57:54Z"},
        {"url": "https://b.org", "raw_content": "three", "date_download": "2020-03-29T09:04:10Z"},
    ]
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    for name, packed in (("x.jsonl", data), ("x.json.gz", gzip.compress(data))):
        found = pages(tmp_path, packed, name=name)
        assert [(item.id, item.url, item.content, item.date) for item in found if isinstance(item, Page)] == [
            (f"{name}:1", "https://a.org", "one\ntwo", "2019-04-25T12:57:54Z"),
            (f"{name}:2", "https://b.org", "three", "2020-03-29T09:04:10Z"),
        ]


def test_damaged_json_lines_are_named_and_the_others_kept(tmp_path):
    good = json.dumps({"url": "https://a.org", "text": "one"}).encode() + b"\n"
    damaged = [
        b"{cut\n",
        b"[1]\n",
        b'{"url": "https://a.org"}\n',
        b'{"url": "u", "text": "\\ud800"}\n',
        b"\xff\n",
    ]
    found = pages(tmp_path, good, *damaged, good, name="x.jsonl")
    assert [isinstance(item, Page) for item in found] == [True, *[False] * 5, True]
    offsets = [item.offset for item in found if isinstance(item, DamagedRecord)]
    assert offsets == [len(good) + sum(map(len, damaged[:number])) for number in range(5)]
    cut = gzip.compress(good * 500)[:-20]
    *kept, last = pages(tmp_path, cut, name="x.jsonl.gz")
    assert all(isinstance(item, Page) for item in kept)
    assert isinstance(last, DamagedRecord) and "cut off" in last.reason


@real
def test_the_same_real_page_reads_alike_from_warc_and_from_wet():
    (from_html,) = read_pages(REAL / "commoncrawl" / "whirlwind.warc.gz")
    (from_wet,) = read_pages(REAL / "commoncrawl" / "whirlwind.warc.wet.gz")
    assert isinstance(from_html, Page) and isinstance(from_wet, Page)
    assert from_html.url == from_wet.url == "https://an.wikipedia.org/wiki/Escopete"
    ours, theirs = set(lines(from_html)), set(lines(from_wet))
    assert len(ours & theirs) / len(theirs) > 0.85 and len(ours - theirs) <= 12


@real
@pytest.mark.parametrize(
    ("name", "urls", "n_bad"),
    [
        (
            "ccnet-sample.warc.wet.txt",
            ["http://sample_english.com", "http://sample_chinese.zh", "http://sample_russian.ru"],
            0,
        ),
        ("resiliparse-clipped.warc.gz", [], 1),
        ("warcio-example.warc.gz", ["http://example.com/"], 0),
        ("warcio-example-bad-non-chunked.warc.gz", ["http://example.com/"], 0),
        ("warcio-example-iana.org-chunked.warc", ["http://www.iana.org/"], 0),
        ("warcio-example-trunc.warc", [], 1),
        ("warcio-example-wget-bad-target-uri.warc.gz", ["http://example.com/"], 0),
        ("whirlwind.warc.wat.gz", [], 0),
    ],
)
def test_each_real_file_gives_exactly_its_whole_pages(name, urls, n_bad):
    found = list(read_pages(REAL / "commoncrawl" / name))
    assert [item.url for item in found if isinstance(item, Page)] == urls
    assert sum(isinstance(item, DamagedRecord) for item in found) == n_bad


@real
def test_ccnets_own_sample_gives_ccnets_own_documents():
    english, chinese, russian = read_pages(REAL / "commoncrawl" / "ccnet-sample.warc.wet.txt")
    assert isinstance(english, Page) and isinstance(chinese, Page) and isinstance(russian, Page)
    assert lines(english)[0] == "Famous Mark Twain Quotes" and lines(english)[-1].endswith("Truth isn't.")
    assert lines(chinese)[0] == "馬克·吐溫名言" and lines(russian)[0] == "Цитаты знаменитого Марка Твена"
    assert [item.date for item in (english, chinese, russian)] == [
        f"2019-03-18T00:00:0{n}Z" for n in range(3)
    ]


@real
def test_every_page_of_a_real_crawl_has_text():
    found = list(read_pages(REAL / "commoncrawl" / "dolma-sample-0000.warc.gz"))
    assert len(found) == 22
    for item in found:
        assert isinstance(item, Page) and item.url.startswith("https://") and len(" ".join(lines(item))) > 900
