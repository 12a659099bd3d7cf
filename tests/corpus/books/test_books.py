"""Gutenberg files become books: the author's words, in whatever form the licence stands around them."""

import random
import shutil
from functools import partial

import pytest

from puna.corpus.books.source import Book, Options, clean, decode, read
from puna.corpus.clean import clean_source
from puna.corpus.document import DamagedRecord, Document, Drop
from puna.corpus.parquet import read_documents
from puna.stages.stage import Executor, plan_shards
from tests.corpus.killed import run_killed

BODY = "\n".join(
    f"{number}. It was the best of times, it was the worst of times, and the llamas knew."
    for number in range(9)
)
MODERN = """The Project Gutenberg eBook of A Tale of Llamas

Title: A Tale
       of Llamas

Author: C. Dickens

Language: English

"""
LICENCE = "Updated editions will replace the previous one.\nProject Gutenberg is a trademark.\n"

SMALL_PRINT = (
    "***START**THE SMALL PRINT!**FOR PUBLIC DOMAIN ETEXTS**START***\n"
    'Why is this "Small Print!" statement here? You know: lawyers.\n'
    "*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*\n"
)

TITLE = "A TALE OF LLAMAS"
EBOOKS = SMALL_PRINT.replace("ETEXTS", "EBOOKS")
FORMS = {
    "2020s": f"{MODERN}*** START OF THE PROJECT GUTENBERG EBOOK {TITLE} ***\n\n\n{BODY}\n\n"
    f"*** END OF THE PROJECT GUTENBERG EBOOK {TITLE} ***\n\n{LICENCE}",
    "2000s": f"{MODERN}*** START OF THIS PROJECT GUTENBERG EBOOK {TITLE} ***\n\n\n"
    f"Produced by Ana Quispe and\nthe Online Distributed Proofreading Team\n\n{BODY}\n\n\n"
    f"End of the Project Gutenberg EBook of A Tale of Llamas, by C. Dickens\n\n"
    f"*** END OF THIS PROJECT GUTENBERG EBOOK {TITLE} ***\n\n***** This file should be named 1.txt\n"
    f"*** START: FULL LICENSE ***\n{LICENCE}",
    "title over two lines": f"{MODERN}*** START OF THIS PROJECT GUTENBERG EBOOK A TALE\nOF LLAMAS ***\n\n"
    f"{BODY}\n\n*** END OF THIS PROJECT GUTENBERG EBOOK A TALE\nOF LLAMAS ***\n{LICENCE}",
    "no space after the stars": f"{MODERN}***START OF THE PROJECT GUTENBERG EBOOK {TITLE}***\n\n{BODY}\n\n"
    f"***END OF THE PROJECT GUTENBERG EBOOK {TITLE}***\n{LICENCE}",
    "1990s": f"**The Project Gutenberg Etext of A Tale**\n\nTitle: A Tale of Llamas\n\n{SMALL_PRINT}\n\n"
    f"This etext was prepared by Ana Quispe, Puno.\n\n{BODY}\n\n"
    "End of The Project Gutenberg Etext of A Tale of Llamas\n",
    "1990s, possessive": f"Project Gutenberg's Etext\n\n{SMALL_PRINT}\n{BODY}\n\n"
    "End of Project Gutenberg's A Tale of Llamas\n",
    "2002, ebooks": f"{MODERN}{EBOOKS.replace('*END*THE', '*END THE')}\n{BODY}\n\n"
    f"*** END OF THE PROJECT GUTENBERG EBOOK {TITLE} ***\n",
    "2003, small print behind": f"{MODERN}*** START OF THE PROJECT GUTENBERG EBOOK, {TITLE} ***\n\n"
    f"{BODY}\n\n{EBOOKS}",
    "no marks at all": BODY,
}


def book(text: str) -> Document:
    document = clean(Book("pg1", text))
    assert isinstance(document, Document), document
    return document


@pytest.mark.parametrize("form", FORMS)
def test_header_and_footer_go_and_every_word_of_the_book_stays(form):
    assert book(FORMS[form]).text == BODY


@pytest.mark.parametrize("form", FORMS)
def test_the_marks_are_found_in_files_with_windows_line_ends(form):
    assert book(FORMS[form].replace("\n", "\r\n")).text == BODY


def test_the_header_gives_title_author_and_language():
    meta = {"title": "A Tale of Llamas", "author": "C. Dickens", "language": "English"}
    assert book(FORMS["2020s"]).meta == meta
    assert book(BODY).meta == {}


def test_a_sentence_about_the_end_inside_the_book_does_not_cut_it():
    inside = f"{BODY}\n\nEnd of Project Gutenberg's first part.\n\n{BODY}"
    text = FORMS["2020s"].replace(BODY, inside)
    assert book(text).text == inside


def test_a_long_first_paragraph_is_the_book_whatever_it_begins_with():
    text = "Produced by the hand of nature,\n" + BODY + BODY
    assert book(text).text == text


def test_notes_of_the_producer_before_the_book_are_trimmed():
    notes = (
        "E-text prepared by Ana Quispe",
        "[Transcriber's Note: spelling kept.]",
        "This eBook was produced by B.",
    )
    assert book(FORMS["2020s"].replace(BODY, "\n\n".join([*notes, BODY]))).text == BODY


def test_what_holds_no_book_is_dropped_with_its_reason():
    assert clean(Book("pg1", FORMS["2020s"].replace(BODY, ""))) == Drop("empty", detail="pg1")
    assert clean(Book("pg1", "A line.")) == Drop("too short", detail="pg1")


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("utf-8", "Grüße – “quoted” Ωμέγα"),
        ("utf-8-sig", "Grüße – “quoted” Ωμέγα"),
        ("utf-16", "Grüße – “quoted” Ωμέγα"),
        ("cp1252", "Ahab’s “boat” – café naïve"),
        ("latin-1", "café naïve \x81 ¿qué?"),
        ("ascii", "plain words"),
    ],
)
def test_every_encoding_that_gutenberg_used_is_read(encoding, text):
    decoded, damaged_at = decode(text.encode(encoding))
    assert (decoded.removeprefix("\ufeff"), damaged_at) == (text, None)


def test_a_broken_character_is_named_and_the_book_is_kept(tmp_path):
    path = tmp_path / "pg7.txt"
    data = f"Ωμέγα {BODY} Ωμέγα".encode()
    path.write_bytes(data[:20] + b"\xff" + data[20:])
    bad, record = read(path)
    assert isinstance(bad, DamagedRecord) and (bad.file, bad.offset) == (str(path), 20)
    assert isinstance(record, Book) and record.text.replace("\ufffd", "") == data.decode()
    assert record.name == "pg7"


def test_a_binary_file_is_bad_input(tmp_path):
    path = tmp_path / "picture.txt"
    path.write_bytes(b"\x89PNG\0\0\0\rIHDR" * 50)
    (record,) = read(path)
    assert isinstance(record, DamagedRecord)


def test_real_books_begin_and_end_with_their_own_words(realdata):
    ends = {
        "pg11": ("Alice’s Adventures in Wonderland", "happy summer\ndays.\n\nTHE END"),
        "pg1661": ("The Adventures of Sherlock Holmes", "met with considerable success."),
        "pg2701": ("Moby Dick; Or, The Whale", "only found another orphan."),
        "pg98": ("A Tale of Two Cities", "than I have ever known.”"),
    }
    paths = sorted((realdata / "books").glob("*.txt"))
    assert len(paths) == 17
    for path in paths:
        (record,) = read(path)
        document = clean(record)
        assert isinstance(document, Document)
        assert document.id == path.stem and document.meta["title"] and document.meta["language"] == "English"
        # Nearly all of the file is the book: a header is under 2 kB, a licence under 20 kB.
        assert len(document.text.encode()) > path.stat().st_size - 30_000
        for phrase in ("*** START", "*** END", "Gutenberg License", "Gutenberg Literary", "Produced by"):
            assert phrase not in document.text
        if path.stem in ends:
            title, end = ends[path.stem]
            assert document.meta["title"] == title and document.text.endswith(end)


# ---- books within books


def story(seed: int, n_words: int = 1200) -> str:
    chosen = random.Random(seed)
    return "\n".join(" ".join(f"w{chosen.randrange(3000)}" for _ in range(10)) for _ in range(n_words // 10))


@pytest.fixture
def library(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    for number in range(8):
        (folder / f"book{number}.txt").write_text(story(number), encoding="utf-8")
    edition = "[Transcriber's Note: italics.]\n\n" + story(3).replace("w1", "W1").replace("\n", "\r\n")
    (folder / "edition.txt").write_bytes(edition.encode())
    anthology = "\n\n".join(story(seed) for seed in (101, 102, 5, 103))
    (folder / "anthology.txt").write_text(anthology, encoding="utf-8")
    return folder


def kept(out) -> dict[str, str]:
    return {
        document.id: document.text
        for path in sorted(out.glob("0*.parquet"))
        for document in read_documents(path)
    }


def test_a_book_that_is_in_another_is_removed_and_said_so(library, tmp_path):
    manifest = clean_source(
        "books", [library], tmp_path / "out", executor=Executor(workers=1, keep_dropped=True)
    )
    ids = set(kept(tmp_path / "out"))
    assert manifest.counts["dropped: inside another book"] == 2 and manifest.counts["kept"] == 8
    assert {f"book{number}" for number in range(8)} - ids <= {"book3", "book5"} and "book5" not in ids
    assert len(ids & {"book3", "edition"}) == 1 and "anthology" in ids
    assert (tmp_path / "out" / "dropped" / "00000.parquet").is_file()


def test_the_same_books_are_kept_in_whatever_order_and_shards_they_come(library, tmp_path, monkeypatch):
    clean_source("books", [library], tmp_path / "one", executor=Executor(workers=1))
    monkeypatch.setattr("puna.corpus.pipeline.plan_shards", partial(plan_shards, shard_bytes=1))
    files = sorted(library.iterdir())
    random.Random(4).shuffle(files)
    clean_source("books", files, tmp_path / "many", executor=Executor(workers=2))
    assert len(list((tmp_path / "many").glob("0*.parquet"))) == 10
    assert kept(tmp_path / "one") == kept(tmp_path / "many")


def test_a_library_without_repetition_is_kept_whole_and_overlap_is_an_option(library, tmp_path):
    manifest = clean_source("books", [library], tmp_path / "out", Options(max_overlap=1), Executor(workers=1))
    assert manifest.counts["kept"] == 10
    with pytest.raises(ValueError, match="max-overlap is"):
        clean_source("books", [library], tmp_path / "x", Options(max_overlap=0.1))


def test_files_of_one_name_in_two_folders_are_two_books(library, tmp_path):
    other = tmp_path / "books3"
    other.mkdir()
    (other / "book1.txt").write_text(story(77), encoding="utf-8")
    clean_source("books", [library, other], tmp_path / "out", executor=Executor(workers=1))
    books = kept(tmp_path / "out")
    assert {"raw/book1", "books3/book1", "book2"} <= set(books)
    assert books["books3/book1"] == story(77) and books["raw/book1"] == story(1)


@pytest.mark.parametrize("step", ["overlaps", "."])
def test_a_run_that_is_killed_in_any_step_ends_with_the_same_books(library, tmp_path, step):
    out = tmp_path / "out"
    run_killed("books", library, out, step)
    clean_source("books", [library], out, executor=Executor(workers=1))
    clean_source("books", [library], tmp_path / "undisturbed", executor=Executor(workers=1))
    assert (out / "00000.parquet").read_bytes() == (tmp_path / "undisturbed" / "00000.parquet").read_bytes()


def test_other_editions_of_real_books_are_found_and_no_real_book_is_lost(realdata, tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    for name in ("books", "books_dup_editions"):
        for path in (realdata / name).glob("*.txt"):
            shutil.copy(path, folder)
    shutil.copy(realdata / "books_dup_editions" / "DerikGreeff-pg1342.txt", folder / "copy.txt")
    manifest = clean_source("books", [folder], tmp_path / "out", executor=Executor(workers=1))
    assert manifest.counts["dropped: inside another book"] == 4 and manifest.counts["kept"] == 17
    ids = set(kept(tmp_path / "out"))
    pairs = {"pg1342": "DerikGreeff-pg1342", "pg2701": "AmanSharma0710-2701-0", "pg1661": "clocasto-pg1661"}
    for first, second in pairs.items():
        assert len(ids & {first, second}) == 1
    assert {path.stem for path in (realdata / "books").glob("*.txt")} - set(pairs) <= ids
