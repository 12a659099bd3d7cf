"""StackExchange dumps become questions with their answers, the best first, in whatever state the dump is."""

import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from xml.sax.saxutils import quoteattr

import py7zr
import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.corpus.clean import clean_source
from puna.corpus.document import DamagedRecord, Document, Drop
from puna.corpus.parquet import read_documents
from puna.corpus.stackexchange import source as stackexchange
from puna.corpus.stackexchange.html import text_of
from puna.corpus.stackexchange.posts import Post, read_posts
from puna.corpus.stackexchange.source import Options, Thread, clean, site_of
from puna.stages.stage import Executor


def row(number: int, kind: int = 1, body: str = "<p>Body.</p>", **more: object) -> str:
    attributes = {"Id": number, "PostTypeId": kind, "Score": 1, "Body": body, **more}
    if kind == 1:
        attributes.setdefault("Title", f"Title {number}")
    return f"  <row {' '.join(f'{name}={quoteattr(str(value))}' for name, value in attributes.items())} />\n"


def dump(rows: list[str]) -> str:
    return '\ufeff<?xml version="1.0" encoding="utf-8"?>\n<posts>\n' + "".join(rows) + "</posts>"


def write_site(folder: Path, rows: list[str], site: str = "tea.stackexchange.com") -> Path:
    (folder / site).mkdir(parents=True)
    path = folder / site / "Posts.xml"
    path.write_text(dump(rows), encoding="utf-8")
    return path


def documents(out: Path, manifest: dict) -> list[Document]:
    return [document for output in manifest.outputs for document in read_documents(out / output.path)]


def post(number: int, score: int = 0, body: str = "<p>x</p>", title: str = "") -> Post:
    return Post(number, "2", 1, score, title, body, "<a><b-c>", "2015-01-27", False)


# ---- one thread


def test_answers_stand_by_score_as_a_number_the_older_of_equals_first():
    answers = [
        post(7, 9, "nine"),
        post(5, 10, "ten"),
        post(4, -1, "minus"),
        post(9, 2, "later"),
        post(8, 2, "two"),
    ]
    document = clean(Thread("tea.com", post(1, 3, "<p>Why?</p>", "On  tea"), tuple(answers)))
    assert isinstance(document, Document)
    assert document.text == "Q: On tea\n\nWhy?\n\nA: ten\n\nA: nine\n\nA: two\n\nA: later\n\nA: minus"
    assert document.id == "tea.com/1" and document.meta["tags"] == ["a", "b-c"]
    assert [answer["score"] for answer in document.meta["answers"]] == [10, 9, 2, 2, -1]


def test_what_cannot_be_a_document_is_dropped_with_its_reason():
    thread = Thread("tea.com", post(1, body="<p>Why?</p>"), (post(2, body="<p> </p>"),))
    assert isinstance(clean(thread), Document)
    assert clean(thread, Options(min_answers=1)) == Drop("too few answers", "tea.com/1")
    assert clean(Thread("tea.com", post(1, body=" "), ())) == Drop("empty", "tea.com/1")
    assert clean(Thread("tea.com", post(1, body="<b>" * 100_000), ())) == Drop("too many tags", "tea.com/1")


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<p>a <b>b</b>\nc</p>\n\n<p>d<br>e &amp; &lt;f&gt; &eacute;</p>", "a b c\n\nd\ne & <f> é"),
        (
            "<pre><code>if x:\n    y  = 1\n\n\n    z\n</code></pre>\n<p>a</p>",
            "if x:\n    y  = 1\n\n\n    z\n\na",
        ),
        (
            "<p>Use <code>a  b</code>:</p><ul>\n<li>one</li>\n<li>two</li>\n</ul>b",
            "Use a b:\n\n- one\n- two\n\nb",
        ),
        ("<ol><li><p>a</p></li><li><p>b</p><p>c</p></li></ol>", "1. a\n2. b\n\nc"),
        ('<ol start="3"><li>a<ul><li>b</li></ul></li><li>c</li></ol>', "3. a\n  - b\n4. c"),
        ("<blockquote><p>a</p></blockquote><hr><h2>b</h2>c", "a\n\nb\n\nc"),
        ('<a href="x">a</a><img src="y" alt="z"><!-- c --><script>d</script> e', "a e"),
        ("<table><tr><th>a</th><th>b</th></tr><tr><td>c</td><td>d</td></tr></table>", "a | b\nc | d"),
        ("never <b>closed <li>a</ul> </x> <p", "never closed\n- a"),
        ("plain   words\n here", "plain words here"),
        ("10<sup>23</sup>, H<sub>2</sub>O, x<sub>1</sub><sup>2</sup>", "10^23, H2O, x1^2"),
        ("salt<sup>1</sup>.<p><sub>1: small</sub></p>", "salt^1.\n\n1: small"),
    ],
)
def test_html_becomes_what_a_reader_sees(html, text):
    assert text_of(html) == text


@given(st.text(alphabet='<>/="& abpreulio\n\0é', max_size=80))
def test_any_text_at_all_is_html(text):
    assert isinstance(text_of(text), str)


# ---- rows


def test_rows_come_with_their_characters_as_they_were(tmp_path):
    path = write_site(tmp_path, [row(1, body='<p>"a" &amp; é\n\tb</p>', Title="x > y 'z'", Tags="<t>")])
    (first,) = read_posts(path)
    assert isinstance(first, Post)
    assert (first.id, first.body, first.title) == (1, '<p>"a" &amp; é\n\tb</p>', "x > y 'z'")


def test_damaged_rows_are_named_and_the_rest_is_kept(tmp_path):
    good = row(1)
    rows = [
        good,
        row(2).replace('Score="1"', 'Score="1'),  # no end of a value
        row(3).replace("Body.", "\udcff"),  # not UTF-8
        row(4).replace("Body.", "&xxe;"),  # an entity from elsewhere
        row(5).replace('Id="5"', 'Id="five"'),
        row(6).replace(' PostTypeId="1"', ""),
        row(7).replace("Body.", "a&#x1;b&#55555;c"),  # control characters and half a pair
        row(8)[:40],
    ]
    path = write_site(tmp_path, [])
    text = '<!DOCTYPE posts [<!ENTITY xxe SYSTEM "file:///etc/passwd">]>\n' + dump(rows)[:-8]
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    items = list(read_posts(path))
    assert [item.id for item in items if isinstance(item, Post)] == [1, 7]
    assert next(item.body for item in items if isinstance(item, Post) and item.id == 7) == "<p>abc</p>"
    bad = [item for item in items if isinstance(item, DamagedRecord)]
    places = [path.read_bytes().find(b"<row ", path.read_bytes().find(good.encode()) + 9)]
    assert len(bad) == 7 and bad[0].offset == places[0] and {item.file for item in bad} == {str(path)}
    assert bad[-1].reason == "the dump has no end"


def test_rows_are_found_across_blocks_and_one_too_long_is_skipped(tmp_path, monkeypatch):
    path = write_site(tmp_path, [row(number, body="<p>é</p>" * number) for number in range(1, 30)])
    whole = list(read_posts(path))
    monkeypatch.setattr("puna.corpus.stackexchange.posts._READ_BYTES", 7)
    assert list(read_posts(path)) == whole and len(whole) == 29
    monkeypatch.setattr("puna.corpus.stackexchange.posts.MAX_ROW_BYTES", 400)
    short = list(read_posts(path))
    assert [item for item in short if isinstance(item, Post)] == whole[
        : len(short) - sum(isinstance(i, DamagedRecord) for i in short)
    ]
    assert any(isinstance(item, DamagedRecord) and "without a row" in item.reason for item in short)


def test_a_dump_read_in_parts_gives_the_rows_of_the_whole(tmp_path):
    path = write_site(tmp_path, [row(number, body="<p>é</p>" * number) for number in range(1, 30)])
    whole, size = list(read_posts(path)), path.stat().st_size
    for part in (97, 1000, size // 2):
        starts = [*range(0, size - part, part), size]
        assert [item for span in pairwise(starts) for item in read_posts(path, span)] == whole


def test_a_large_dump_is_divided_and_gives_the_same_documents(tmp_path, monkeypatch):
    write_site(tmp_path / "in", site(9))
    made = []
    for size in (1 << 30, 700):
        monkeypatch.setattr(stackexchange, "PART_BYTES", size)
        out = tmp_path / str(size)
        clean_source("stackexchange", [tmp_path / "in"], out, executor=Executor(workers=1))
        made.append({path.name: path.read_bytes() for path in out.glob("*.parquet")})
    assert made[0] == made[1] and len(list((out / "steps" / "posts").glob("*.arrow"))) > 2


@pytest.mark.parametrize("filters", [None, [{"id": py7zr.FILTER_BZIP2}]])
def test_an_archive_gives_the_rows_of_its_posts(tmp_path, filters):
    plain = write_site(tmp_path, [row(number, body="<p>x y</p>" * 99) for number in range(800)])
    path = tmp_path / "tea.stackexchange.com.7z"
    with py7zr.SevenZipFile(path, "w", filters=filters) as archive:
        archive.writestr("<badges />" * 2000, "Badges.xml")
        archive.write(plain, "Posts.xml")
        archive.writestr("<users />", "Users.xml")
    assert list(read_posts(path)) == list(read_posts(plain))
    for item in read_posts(path):  # a reader that stops early leaves no thread behind
        assert isinstance(item, Post)
        break
    data = path.read_bytes()
    half = bytearray(data)
    half[len(data) // 2] ^= 255
    path.write_bytes(half)
    items = list(read_posts(path))
    assert isinstance(items[-1], DamagedRecord) and items[-1].file == str(path)
    path.write_bytes(data[: len(data) // 2])
    (cut,) = read_posts(path)  # its directory is at its end
    assert isinstance(cut, DamagedRecord)


def test_what_is_no_dump_is_bad_input(tmp_path):
    (tmp_path / "x.7z").write_bytes(b"not an archive" * 99)
    with py7zr.SevenZipFile(tmp_path / "y.7z", "w") as archive:
        archive.writestr("<users />", "Users.xml")
    (tmp_path / "Posts.xml").write_text("hello")
    for name in ("x.7z", "y.7z", "Posts.xml"):
        (bad,) = read_posts(tmp_path / name)
        assert isinstance(bad, DamagedRecord) and bad.file == str(tmp_path / name)


# ---- the corpus


def site(count: int, step: int = 40_000) -> list[str]:
    """Questions far apart, each with answers before and after others'."""
    rows = [row(1 + number * step, body=f"<p>Question {number}?</p>") for number in range(count)]
    rows += [
        row(2 + number * step, 2, f"<p>First {number}</p>", ParentId=1 + number * step, Score=number % 12)
        for number in reversed(range(count))
    ]
    rows += [
        row(3 + number * step, 2, f"<p>Second {number}</p>", ParentId=1 + number * step, Score=5)
        for number in range(count)
    ]
    return rows


def test_questions_and_answers_meet_wherever_they_stand_in_the_dump(tmp_path, monkeypatch):
    monkeypatch.setattr(stackexchange, "SPILL_CHARACTERS", 500)
    rows = site(9)
    rows += [
        row(4, 2, ParentId=999),
        row(5, 4),
        row(6, 2, ParentId=1, DeletionDate="2020"),
        row(2, 2, ParentId=1),
    ]
    write_site(tmp_path / "in", rows)
    manifest = clean_source(
        "stackexchange", [tmp_path / "in"], tmp_path / "out", executor=Executor(workers=1)
    )
    found = documents(tmp_path / "out", manifest)
    assert [document.id for document in found] == [
        f"tea.stackexchange.com/{1 + n * 40_000}" for n in range(9)
    ]
    assert found[8].text == "Q: Title 320001\n\nQuestion 8?\n\nA: First 8\n\nA: Second 8"
    assert found[4].text.endswith("A: Second 4\n\nA: First 4")
    assert manifest.counts == {
        "characters": sum(len(document.text) for document in found),
        "dropped: answer without its question": 1,
        "dropped: deleted": 1,
        "dropped: not a question or an answer": 1,
        "dropped: repeated post": 1,
        "kept": 9,
    }


def test_the_largest_sites_are_kept_and_the_others_named(tmp_path):
    for name, count in (("a.com", 2), ("b.com", 5), ("c.com", 3), ("d.com", 3)):
        write_site(tmp_path / "in", site(count), name)
    manifest = clean_source(
        "stackexchange", [tmp_path / "in"], tmp_path / "out", Options(sites=2), Executor(workers=1)
    )
    assert manifest.details["sites"] == {"b.com": 15, "c.com": 9}
    assert manifest.details["sites_left_out"] == {"a.com": 6, "d.com": 9}
    assert {document.meta["site"] for document in documents(tmp_path / "out", manifest)} == {"b.com", "c.com"}


def test_a_site_is_named_by_its_folder_or_its_archive(tmp_path):
    assert site_of(tmp_path / "tea.com/Posts.xml") == "tea.com"
    assert site_of(Path("stackoverflow.com-Posts.7z")) == "stackoverflow.com"
    assert site_of(Path("coffee.stackexchange.com.7z")) == "coffee.stackexchange.com"
    with pytest.raises(ValueError, match="only archives of other tables"):
        stackexchange.pipeline([tmp_path / "x-Users.7z"], tmp_path, Options(), Executor())


def digests(manifest: dict) -> list[str]:
    return [output.sha256 for output in manifest.outputs]


def test_killed_in_the_middle_a_second_run_with_other_workers_ends_with_the_same_bytes(tmp_path):
    for name in ("a.com", "b.com"):
        write_site(tmp_path / "in", site(1000, 1800), name)
    whole = clean_source("stackexchange", [tmp_path / "in"], tmp_path / "whole", executor=Executor(workers=1))
    code = (
        "import sys; from pathlib import Path; from puna.stages.stage import Executor; "
        "from puna.corpus.clean import clean_source; "
        "clean_source('stackexchange', [Path(sys.argv[1])], Path(sys.argv[2]), executor=Executor(workers=1))"
    )
    for step in ("steps/posts", "."):
        out = tmp_path / "out"
        arguments = [sys.executable, "-c", code, str(tmp_path / "in"), str(out)]
        process = subprocess.Popen(arguments, start_new_session=True)
        while process.poll() is None and not any((out / step).glob(".*.partial")):
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not (out / "manifest.json").exists()
    again = clean_source("stackexchange", [tmp_path / "in"], out, executor=Executor(workers=2))
    assert digests(again) == digests(whole) and again.fingerprint == whole.fingerprint


def test_a_real_site_is_read_whole(realdata, tmp_path):
    manifest = clean_source("stackexchange", [realdata / "stackexchange"], tmp_path / "out")
    assert manifest.counts["kept"] == 225 and manifest.damaged == 0
    assert manifest.counts["dropped: not a question or an answer"] == 40
    found = documents(tmp_path / "out", manifest)
    assert sum(document.text.count("\n\nA: ") for document in found) == 327
    for document in found:
        scores = [answer["score"] for answer in document.meta["answers"]]
        assert scores == sorted(scores, reverse=True)
        assert document.text.startswith(f"Q: {document.meta['title'].strip()}")
        assert not any(mark in document.text for mark in ("<p>", "</", "&lt;", "&amp;", "&#"))
