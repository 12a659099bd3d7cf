"""C4's rules, one by one, together, fast and slow; each shared line in one page only."""

import os
import re
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.corpus.c4.bad_words import BadWords, bad_words
from puna.corpus.c4.source import (
    Options,
    clean,
    clean_batch,
    clean_lines,
    n_sentences,
    normal_url,
    sentences,
    units,
)
from puna.corpus.clean import check_options, clean_source
from puna.corpus.document import Document, Drop
from puna.corpus.parquet import read_documents
from puna.corpus.web.pages import Page, read_pages
from puna.stages.stage import Executor, plan_shards
from tests.corpus.commoncrawl.test_commoncrawl import ENGLISH, everything, killed_in_the_middle
from tests.corpus.web.archives import write_wet

REAL = Path(os.environ.get("PUNA_REALDATA", ""))
real = pytest.mark.skipif(not os.environ.get("PUNA_REALDATA"), reason="PUNA_REALDATA is not set")
HERE = Executor(workers=1, max_bad=1.0)
CODE, PAPER = Options(), Options(compat="paper")
GOOD = [f"This is the line number {number} of a page." for number in range(6)]


def page(*lines: str, url: str = "https://example.org") -> Page:
    return Page("x:1", url, "", "\n".join(lines))


def kept(*lines: str, options: Options = CODE) -> list[str]:
    """The lines that are left of these, on a page that has enough others."""
    text = clean_lines("\n".join([*lines, *GOOD]), options)
    assert isinstance(text, str), text
    return text.split("\n")[: -len(GOOD)]


# ---- the rules


@pytest.mark.parametrize(
    ("line", "left"),
    [
        ("A line needs five words.", True),
        ("A line needs words.", False),
        ("Does it end like a question?", True),
        ("It ends with an exclamation mark!", True),
        ('She said that "it ends so."', True),
        ("It does not end at all", False),
        ("It ends with three full stops...", False),
        ("It ends with a Unicode ellipsis…", False),
        ("It ends with a colon, like this:", False),
        ("  White space around it is taken off.  ", True),
        (f"A word of {'x' * 1001} is too long.", False),
        (f"A word of {'x' * 1000} is long enough.", True),
        ("Please turn on JavaScript to see this page.", False),
        ("Read our Terms of Use before you go on.", False),
        ("Our privacy policy was updated on Monday last.", False),
        ("This site uses cookies for the best experience.", False),
        ("Read about the use of cookies on this site.", False),
        ("We use cookies and we bake them too.", False),
        ("See our Cookie Policy for all of this.", False),
    ],
)
def test_a_line_stays_or_goes(line, left):
    assert kept(line) == ([line.strip()] if left else [])


@pytest.mark.parametrize(
    ("line", "left"),
    [
        ("The llama[1] is a camelid[23] of the Andes[edit].", "The llama is a camelid of the Andes."),
        ("It carries up to 30 kilograms.[citation needed]", "It carries up to 30 kilograms."),
        ("This is [not a citation] at all.", "This is [not a citation] at all."),
        ("One two three four.[5]", None),  # four words are left
    ],
)
def test_marks_of_citations_are_removed_before_the_line_is_judged(line, left):
    assert kept(line) == ([left] if left else [])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("Here is lorem ipsum dolor sit amet.", "lorem ipsum"),
        ("LOREM IPSUM is filler text for layouts.", "lorem ipsum"),
        ("The function f() { return 1; } is one.", "a curly bracket"),
    ],
)
def test_a_line_that_drops_the_page(line, reason):
    assert clean_lines("\n".join([*GOOD, line]), CODE) == Drop(reason)


def test_lines_that_are_dropped_before_do_not_drop_the_page():
    # Not a sentence, or about JavaScript: gone before the rule on brackets is reached.
    assert kept("var x = {}", "lorem ipsum", "JavaScript { is needed for this } page.") == []


def test_the_first_line_that_drops_the_page_is_the_reason():
    brackets, filler = "The function f() { return 1; } is one.", "Here is lorem ipsum dolor sit amet."
    assert clean_lines("\n".join([brackets, filler, *GOOD]), CODE) == Drop("a curly bracket")
    assert clean_lines("\n".join([filler, brackets, *GOOD]), CODE) == Drop("lorem ipsum")


def test_pages_over_190000_characters_are_dropped():
    line = "A line of exactly fifty characters is needed here."
    assert len(line) == 50
    whole = "\n".join([line] * 3725)
    assert len(whole) <= 190_000 and isinstance(clean_lines(whole, CODE), str)
    assert clean_lines(whole + line * 10, CODE) == Drop("more than 190,000 characters")


def test_code_and_paper_differ_in_words_and_sentences():
    three = "It has three sentences. This is the second one. And the third is here."
    assert clean_lines(three, CODE) == three
    assert clean_lines(three, PAPER) == Drop("fewer than 5 sentences")
    assert clean_lines("Two sentences only here. And no third one.", CODE) == Drop("fewer than 3 sentences")
    assert kept("Three words stay.", "Two words.", options=PAPER) == ["Three words stay."]
    assert kept("Three words stay.") == []


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ('He said "no." She left.', ['He said "no."', "She left."]),
        ("It costs 3.50 at example.org today.", ["It costs 3.50 at example.org today."]),
        ("(One.) Two.", ["(One.)", "Two."]),
        (
            "On Jan. 5 Dr. A. B. Smith of Ash Inc. Sold it.",
            ["On Jan. 5 Dr. A. B. Smith of Ash Inc. Sold it."],
        ),
    ],
)
def test_sentences_end_with_a_mark_and_white_space(line, parts):
    assert sentences(line) == parts and n_sentences(line) == len(parts)


# ---- fast and slow


def plain(text: str, options: Options) -> str | Drop:
    """The rules as C4's authors tell them, line by line, without any shortcut."""
    if len(text) > 190_000:
        return Drop("more than 190,000 characters")
    valid, count = [], 0
    for line in text.splitlines():
        line = line.strip()
        if any(len(word) > 1000 for word in line.split()):
            continue
        line = re.sub(r"\[\d*\]|\[edit\]|\[citation needed\]", "", line)
        if not line.endswith((".", "?", "!", '"')) or line.endswith("..."):
            continue
        if len(line.split()) < options.min_words:
            continue
        lower = line.lower()
        if "lorem ipsum" in lower:
            return Drop("lorem ipsum")
        if "javascript" in lower:
            continue
        if "{" in line:
            return Drop("a curly bracket")
        policies = "terms of use,privacy policy,cookie policy,uses cookies,use of cookies,use cookies"
        if any(policy in lower for policy in policies.split(",")):
            continue
        count += n_sentences(line)
        valid.append(line)
    if count < options.min_sentences:
        return Drop(f"fewer than {options.min_sentences} sentences")
    return "\n".join(valid).strip()


PHRASES = [
    *(
        "lorem ipsum",
        "JavaScript",
        "java[1]script",
        "{",
        "terms of use",
        "Use cookies",
        "cookies",
        "[12]",
        "[edit]",
    ),
    *(
        "one two three four five.",
        "one two three.",
        'she said "so."',
        "...",
        "A. B. C? D!",
        "x" * 1001,
        "Σ",
        "İ",
    ),
    *(" ", "\n", "\n\n", "\r\n", "\u2028", "\x0b", ". ", "! ", '"', "word ", "a b c d ", "\u00a0", "\u3000"),
]
texts = st.lists(st.sampled_from(PHRASES) | st.text(max_size=20), max_size=40).map("".join)


@settings(max_examples=400, deadline=None)
@given(text=texts, compat=st.sampled_from(["code", "paper"]))
def test_the_fast_rules_are_the_plain_rules_on_any_text(text, compat):
    options = Options(compat=compat)
    assert clean_lines(text, options) == plain(text, options)


def real_pages() -> list[Page]:
    folders = (REAL / "ccnet_output", REAL / "commoncrawl")
    found = [item for folder in folders for path in sorted(folder.iterdir()) for item in read_pages(path)]
    return [item for item in found if isinstance(item, Page) and isinstance(item.content, str)]


@real
@pytest.mark.parametrize("compat", ["code", "paper"])
def test_the_fast_rules_are_the_plain_rules_on_real_pages(compat):
    options = Options(compat=compat)
    results = [clean_lines(str(item.content), options) for item in real_pages()]
    assert results == [plain(str(item.content), options) for item in real_pages()]
    assert sum(isinstance(result, str) for result in results) > 20


# ---- bad words


WORDS = ["ass", "2 girls", "g-spot", "s&m", "a.b", "🖕", "крыса", "馬鹿", "é", "x²"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("What an ass he is.", True),
        ("ASS", True),
        ("A classy bass.", False),
        ("ass_word and assé are others", False),
        ("“ass”", True),
        ("Two girls; 2  girls", False),
        ("Only 2 girls came.", True),
        ("The g-spot.", True),
        ("S&M and more", True),
        ("axb", False),
        ("a.b", True),
        ("so 🖕 there", True),
        ("Крыса здесь", True),
        ("крысами", False),
        ("大馬鹿者", True),
        ("馬と鹿", False),
    ],
)
def test_bad_words_are_whole_words_in_any_case_and_anywhere_in_scripts_without_spaces(text, found):
    assert BadWords(WORDS).in_text(text) is found
    assert BadWords(WORDS).in_each([text, "nothing here"]) == [found, False]


pieces = st.sampled_from(
    [*WORDS, "ASS", "é", "²", "\u0308", "_", "“", " ", "\n", ".", "-", "class", "鹿", "\u200b", "0"]
)


@settings(max_examples=300, deadline=None)
@given(batch=st.lists(st.lists(pieces | st.text(max_size=3), max_size=8).map("".join), max_size=5))
def test_looking_in_all_texts_at_once_finds_what_looking_in_each_finds(batch):
    words = BadWords(WORDS)
    assert words.in_each(batch) == [words.in_text(text) for text in batch]


@real
def test_the_real_list_finds_the_same_on_real_pages_both_ways():
    words = bad_words(str(REAL / "c4" / "naughty_words_en.txt"))
    given_texts = [str(item.content) for item in real_pages()]
    found = words.in_each(given_texts)
    assert found == [words.in_text(text) for text in given_texts]
    assert 0 < sum(found) < len(found) / 2


def test_a_page_with_a_bad_word_is_dropped(tmp_path):
    listed = tmp_path / "words.txt"
    listed.write_text("blanket\n\n", encoding="utf-8")
    bad, good = (
        page(*GOOD, "The llama wears a blanket of wool."),
        page(*GOOD, "The llama wears wool and blankets."),
    )
    results = clean_batch([bad, good], Options(bad_words=str(listed)))
    assert results[0] == Drop("a bad word") and isinstance(results[1], Document)


def test_a_list_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"bad-words .*missing\.txt cannot be read"):
        Options(bad_words=str(tmp_path / "missing.txt")).validate()
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(ValueError, match="holds no word"):
        Options(bad_words=str(tmp_path / "empty.txt")).validate()


# ---- language


def test_pages_in_another_language_are_dropped():
    german = "Die Lamas tragen das Salz über die Hochebene, und der Hirte folgt ihnen."
    assert clean(page(german, german, german)) == Drop("another language", "de")
    assert isinstance(clean(page(*GOOD)), Document)
    assert isinstance(clean(page(german, german, german), Options(languages=("de",))), Document)


def test_options_that_cannot_be_are_named():
    with pytest.raises(ValueError, match="language-threshold is 2"):
        check_options(Options(language_threshold=2.0))
    with pytest.raises(ValueError, match="compat is 'book'"):
        check_options(Options(compat="book"))  # type: ignore[arg-type]


# ---- what pages share


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        ("https://www.example.org/a/", "example.org/a"),
        ("http://example.org/a", "example.org/a"),
        ("https://example.org/a?utm_source=x&b=1", "example.org/a"),
        ("https://example.org/a?ref=x", "example.org/a"),
        ("https://example.org/a?page=2", "example.org/a?page=2"),
        ("https://wwwexample.org/", "wwwexample.org"),
    ],
)
def test_urls_of_one_page_are_one(url, normal):
    assert normal_url(url) == normal


def corpus(out: Path) -> dict[str, str]:
    return {
        document.meta["url"]: document.text
        for path in sorted(out.glob("*.parquet"))
        for document in read_documents(path)
    }


def run(folder: Path, out: Path, options: Options, monkeypatch) -> dict:
    monkeypatch.setattr("puna.corpus.pipeline.plan_shards", partial(plan_shards, shard_bytes=1))
    return clean_source("c4", [folder], out, options, HERE)


@pytest.fixture
def crawl(tmp_path) -> Path:
    """Five files of four pages, each page of eight lines; half of the lines are shared with other pages."""
    folder = tmp_path / "crawl"
    folder.mkdir()
    lines = [sentence for text in ENGLISH for sentence in re.findall(r"[^.]+\.", text)]
    lines = [f"In the year {1500 + place}, {line.strip().lower()}" for place, line in enumerate(lines)]
    for file in range(5):
        pages = {}
        for number in range(4):
            own = [lines.pop() for _ in range(4)]
            shared = [lines[(file * 7 + number * 3 + place) % 20].upper()[:-1] + "." for place in range(4)]
            pages[f"https://example.org/{file}/{number}"] = "\n".join([*own, *shared])
        pages[f"http://www.example.org/{(file + 1) % 5}/0/"] = "\n".join(lines.pop() for _ in range(4))
        write_wet(folder / f"{file}.warc.wet.gz", pages)
    return folder


def test_each_line_is_in_one_page_and_each_url_once(crawl, tmp_path, monkeypatch):
    alone = run(crawl, tmp_path / "alone", Options(deduplicate=False), monkeypatch)
    manifest = run(crawl, tmp_path / "out", CODE, monkeypatch)
    before, after = corpus(tmp_path / "alone"), corpus(tmp_path / "out")
    assert alone.counts["kept"] == 25 and len(after) == 20 == manifest.counts["kept"]
    assert manifest.counts["dropped: another page of the same URL"] == 5
    urls = Counter(normal_url(url) for url in after)
    assert set(urls.values()) == {1} and set(urls) == {normal_url(url) for url in before}
    lines = Counter(line.lower() for text in after.values() for line in text.split("\n"))
    assert set(lines.values()) == {1}
    # Of the pages that keep their URL, no line is lost.
    assert set(lines) == {line.lower() for url in after for line in before[url].split("\n")}


def test_which_page_keeps_what_does_not_depend_on_the_order_of_the_inputs(crawl, tmp_path, monkeypatch):
    run(crawl, tmp_path / "out", CODE, monkeypatch)
    for name in ("0", "1", "2", "3", "4"):
        (crawl / f"{name}.warc.wet.gz").rename(crawl / f"{9 - int(name)}.warc.wet.gz")
    run(crawl, tmp_path / "turned", CODE, monkeypatch)
    assert corpus(tmp_path / "out") == corpus(tmp_path / "turned")


def test_a_page_left_with_too_few_sentences_is_dropped(tmp_path, monkeypatch):
    folder = tmp_path / "crawl"
    folder.mkdir()
    pages = {
        "https://a.org": "\n".join(GOOD),
        "https://b.org": "\n".join([*GOOD, "And one line of its own here."]),
    }
    write_wet(folder / "x.warc.wet.gz", pages)
    manifest = run(folder, tmp_path / "out", CODE, monkeypatch)
    found = corpus(tmp_path / "out")
    if "https://a.org" in found:  # its hash is the smaller
        assert found == {"https://a.org": pages["https://a.org"]}
        assert manifest.counts["dropped: fewer than 3 sentences that are in no other page"] == 1
    else:
        assert found == {"https://b.org": pages["https://b.org"]}


def test_no_span_of_three_sentences_occurs_twice_by_the_paper(tmp_path, monkeypatch):
    folder = tmp_path / "crawl"
    folder.mkdir()
    said = [f"Sentence number {number} of the text is this." for number in range(60)]
    shared, pair = said[:4], said[4:6]
    pages = {
        "https://a.org": " ".join([*said[10:15], *shared, *said[15:20]]),
        "https://b.org": "\n".join([*said[20:26], *shared, *said[26:30]]),
        "https://c.org": "\n".join([*said[30:33], *pair, *said[33:36]]),
        "https://d.org": "\n".join([*said[40:43], *pair, *said[43:46]]),
    }
    write_wet(folder / "x.warc.wet.gz", pages)
    run(folder, tmp_path / "out", PAPER, monkeypatch)
    found = corpus(tmp_path / "out")
    assert (
        found["https://c.org"] == pages["https://c.org"] and found["https://d.org"] == pages["https://d.org"]
    )
    spans = Counter(span for text in found.values() for span in units(text, "paper"))
    assert set(spans.values()) == {1}
    holders = [url for url, text in found.items() if shared[0] in text]
    assert len(holders) == 1 and found[holders[0]] == pages[holders[0]]
    (other,) = {"https://a.org", "https://b.org"} - set(holders)
    left = " ".join(found[other].split("\n"))
    assert left == " ".join(line for line in sentences(pages[other].replace("\n", " ")) if line not in shared)


# ---- the same bytes


def test_two_workers_write_what_one_writes(crawl, tmp_path, monkeypatch):
    monkeypatch.setattr("puna.corpus.pipeline.plan_shards", partial(plan_shards, shard_bytes=1))
    clean_source("c4", [crawl], tmp_path / "one", CODE, Executor(workers=1))
    clean_source("c4", [crawl], tmp_path / "two", CODE, Executor(workers=2))
    assert everything(tmp_path / "one") == everything(tmp_path / "two")
    assert len(everything(tmp_path / "one")) > 20


@pytest.mark.parametrize(
    "sign",
    [
        pytest.param("steps/pages/00001.json", marks=pytest.mark.slow),
        pytest.param("steps/urls/range-00001.json", marks=pytest.mark.slow),
        "steps/lines/00002.json",
        pytest.param("00001.json", marks=pytest.mark.slow),
    ],
)
def test_killed_at_any_step_and_run_again_the_bytes_are_those_of_an_undisturbed_run(
    crawl, tmp_path, monkeypatch, sign
):
    run(crawl, tmp_path / "whole", CODE, monkeypatch)
    out = tmp_path / "out"
    assert killed_in_the_middle("c4", crawl, out, out / sign)
    run(crawl, out, CODE, monkeypatch)
    assert everything(out) == everything(tmp_path / "whole")


@real
@pytest.mark.parametrize("compat", ["code", "paper"])
def test_real_pages_are_cleaned(tmp_path, compat):
    options = Options(compat=compat, bad_words=str(REAL / "c4" / "naughty_words_en.txt"))
    manifest = clean_source("c4", [REAL / "commoncrawl", REAL / "ccnet_output"], tmp_path, options, HERE)
    counts = manifest.counts
    seen = counts["kept"] + sum(count for name, count in counts.items() if name.startswith("dropped: "))
    assert seen == 61 and manifest.damaged == 2  # as of CommonCrawl
    assert counts["kept"] > 40 and counts["dropped: a bad word"] > 1
    for text in corpus(tmp_path).values():
        assert all(line.endswith((".", "?", "!", '"')) for line in text.split("\n"))
