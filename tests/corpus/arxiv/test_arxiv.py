"""ArXiv sources become documents: in every form they come in, and nothing is lost without a reason."""

import gzip
import io
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from puna.corpus.arxiv.main_file import main_file
from puna.corpus.arxiv.source import Options, Paper, clean, decode, find, read
from puna.corpus.clean import check_options, clean_source
from puna.corpus.document import DamagedRecord, Document, Drop
from puna.corpus.parquet import read_documents
from puna.stages.stage import Executor

WORDS = "The llamas of Puna graze above four thousand metres, where nights are cold. " * 4
PAPER = (
    "\\documentclass{article} % a note\n\\newcommand{\\beast}[1]{\\emph{#1}}\n\\title{On \\beast{Llamas}}\n"
    "\\begin{document}\n\\maketitle\nFront.\n\\section{One}\n"
    f"{WORDS}\\beast{{llama}} 5\\% % hidden\n"
    "\\input{parts/two}\n\\bibliography{refs}\n\\appendix\n\\section{Proof}\nAppended.\n\\end{document}\nAfter.\n"
)
TWO = "\\section{Two}\nThe second \\beast{part}.\n"
BODY = (
    f"\\section{{One}}\n{WORDS}\\emph{{llama}} 5\\%\n\\section{{Two}}\nThe second \\emph{{part}}.\n\n"
    "\\appendix\n\\section{Proof}\nAppended."
)


def tar(members: dict[str, bytes]) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return data.getvalue()


WHOLE = gzip.compress(
    tar({"ms.tex": PAPER.encode(), "parts/two.tex": TWO.encode(), "fig.eps": b"%!PS \\begin"})
)


def papers(path: Path) -> list[Document | Drop | DamagedRecord]:
    return [clean(item) if isinstance(item, Paper) else item for item in read(path)]


def test_a_monthly_tar_gives_every_paper_in_it(tmp_path):
    path = tmp_path / "arXiv_src_2003_001.tar"
    single = PAPER.replace("\\input{parts/two}\n", TWO)
    path.write_bytes(
        tar(
            {
                "2003/2003.01234.gz": WHOLE,
                "2003/2003.01235.gz": gzip.compress(single.encode()),
                "2003/2003.01236.pdf": b"%PDF-1.5",
                "2003/hep-th9901001.gz": gzip.compress(single.replace("emph", "textit").encode()),
                "2003/2003.01237.gz": gzip.compress(b"%auto-ignore\nwithdrawn"),
                "2003/2003.01238.gz": gzip.compress(b"%!PS-Adobe"),
                "2003/2003.01239.gz": gzip.compress(tar({"notes.txt": b"no TeX"})),
                "2003/2003.01240.gz": gzip.compress(b"\\magnification 1200 plain"),
            }
        )
    )
    first, second, *rest = papers(path)
    assert isinstance(first, Document) and isinstance(second, Document)
    assert first.text == second.text == BODY
    assert first.id == "2003.01234" and first.meta == {"title": "On Llamas", "main": "ms.tex"}
    assert isinstance(rest[1], Document) and rest[1].id == "hep-th/9901001"
    drops = [item.reason for item in rest if isinstance(item, Drop)]
    assert drops == ["only a PDF", "withdrawn", "no TeX source", "no TeX source", "no main file"]


@pytest.mark.parametrize("name", ["2003.01234.gz", "2003.01234.tar.gz", "2003.01234.tgz"])
def test_one_papers_archive_is_a_paper(tmp_path, name):
    (tmp_path / name).write_bytes(WHOLE)
    (document,) = papers(tmp_path / name)
    assert isinstance(document, Document) and (document.id, document.text) == ("2003.01234", BODY)


def test_a_plain_tar_of_tex_files_is_a_paper(tmp_path):
    (tmp_path / "mine.tar").write_bytes(gzip.decompress(WHOLE))
    (document,) = papers(tmp_path / "mine.tar")
    assert isinstance(document, Document) and (document.id, document.text) == ("mine", BODY)


def test_folders_are_papers_and_files_named_by_a_number_too(tmp_path):
    (tmp_path / "mine/parts").mkdir(parents=True)
    (tmp_path / "mine/ms.tex").write_text(PAPER)
    (tmp_path / "mine/parts/two.tex").write_text(TWO)
    (tmp_path / "mine/figure.gz").write_bytes(b"")
    (tmp_path / "2003.00001.tex").write_text(PAPER)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a.tex").write_text("no main file")
    (tmp_path / "notes/b.tex").write_text("no main file")
    (tmp_path / "2003.01234.gz").write_bytes(WHOLE)
    found = [str(path.relative_to(tmp_path)) for path in find(tmp_path)]
    assert found == ["2003.00001.tex", "2003.01234.gz", "mine/ms.tex", "notes/a.tex"]
    (document,) = papers(tmp_path / "mine/ms.tex")
    assert isinstance(document, Document) and (document.id, document.text) == ("mine/ms", BODY)
    assert papers(tmp_path / "notes/a.tex") == [Drop("no main file", "notes/a")]


def test_the_main_file_is_the_likeliest_of_several():
    main = "\\documentclass{article}\\begin{document}\\input{two}\\end{document}"
    letter = "\\documentclass{letter}\\begin{document}Dear editor\\end{document}"
    part = "\\documentclass[main.tex]{subfiles}\\begin{document}x\\end{document}"
    assert main_file({"cover.tex": letter, "main.tex": main, "two.tex": part}) == "main.tex"
    assert main_file({"a.tex": "% \\documentclass{x}", "b.tex": main}) == "b.tex"
    assert main_file({"two.tex": main.replace("two", "x"), "zz.tex": main}) == "zz.tex"
    assert main_file({"a.tex": "x", "old.tex": "\\documentstyle[12pt]{article}"}) == "old.tex"
    assert main_file({"a.tex": "x"}) is None


def test_latin_1_and_marks_are_read():
    assert decode("é".encode("latin-1")) == decode("é".encode()) == decode("\ufeffé".encode()) == "é"
    assert decode(b"a\r\nb\rc\0") == "a\nb\nc"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("%auto-ignore\n\\section{a} " + WORDS, "withdrawn"),
        ("This paper has been withdrawn by the author, because its main lemma is wrong. " * 2, "withdrawn"),
        ("\\newcommand{\\x}{a \\section{a}", "unbalanced braces"),
        ("\\section{a} \\bf b} " + WORDS, "unbalanced braces"),
        ("\\section{a} b", "too short"),
        ("", "empty"),
    ],
)
def test_what_cannot_be_a_document_is_set_aside_with_its_reason(text, reason):
    mark = "%auto-ignore\n" if text.startswith("%auto-ignore") else ""
    main = f"{mark}\\documentclass{{article}}\\begin{{document}}{text}\\end{{document}}"
    result = clean(Paper("x", {"m.tex": main}))
    assert isinstance(result, Drop) and result.reason == reason


def test_files_that_are_all_marked_as_withdrawn_are_no_paper():
    result = clean(Paper("x", {"a.tex": "%auto-ignore\nThis paper is withdrawn."}))
    assert isinstance(result, Drop) and result.reason == "withdrawn"


def test_a_redefinition_by_itself_is_left_unexpanded_and_counted():
    text = "\\renewcommand{\\vec}[1]{\\vec{\\mathbf{#1}}}\\section{a} $\\vec{x}$ " + WORDS
    result = clean(
        Paper("x", {"m.tex": f"\\documentclass{{article}}\\begin{{document}}{text}\\end{{document}}"})
    )
    assert isinstance(result, Document) and "$\\vec{x}$" in result.text
    assert result.meta["macros_left"] == "1"


def test_an_environment_that_its_definition_hides_is_a_comment():
    text = "\\newenvironment{answer}{\\comment}{\\endcomment}\\section{a} b " + WORDS
    text += "\\begin{answer}\nHIDDEN\n\\end{answer}\nc"
    result = clean(
        Paper("x", {"m.tex": f"\\documentclass{{article}}\\begin{{document}}{text}\\end{{document}}"})
    )
    assert isinstance(result, Document) and "HIDDEN" not in result.text and result.text.endswith("c")


def test_names_with_digits_and_sections_of_plain_tex_are_read():
    text = "\\expandafter\\def\\csname a1\\endcsname{lama}\n\\centerline{Title}\n\\beginsection 1. Herds\n\n"
    result = clean(Paper("x", {"m.tex": f"{text}A \\csname a1\\endcsname\\ {WORDS}\n\\bye\n"}))
    assert isinstance(result, Document) and result.text.startswith("\\beginsection 1. Herds\n\nA lama")


def test_a_group_that_is_open_at_the_end_costs_nothing():
    main = f"\\documentclass{{article}}\\begin{{document}}\\section{{a}} {{\\bf b {WORDS}\\end{{document}}"
    assert clean(Paper("x", {"m.tex": main})).text.startswith("\\section{a} {\\bf b The llamas")


@pytest.mark.parametrize("end", ["\\bye\n", "\\vfill\n\\end\n"])
def test_plain_tex_is_a_paper(end):
    paper = clean(
        Paper("x", {"m.tex": f"\\magnification=1200\n{WORDS}\n{end}", "part.tex": "\\end{proof}\n"})
    )
    assert isinstance(paper, Document) and paper.meta["main"] == "m.tex" and WORDS.strip() in paper.text


def test_damaged_archives_are_named_and_what_is_whole_is_kept(tmp_path):
    path = tmp_path / "month.tar"
    members = {"1/2003.00001.gz": WHOLE, "1/2003.00002.gz": WHOLE[:-200], "1/2003.00003.gz": WHOLE}
    data = tar(members)
    path.write_bytes(data[: data.index(b"2003.00003") + 600])
    first, damaged, cut = papers(path)
    assert isinstance(first, Document) and first.text == BODY
    assert (
        isinstance(damaged, DamagedRecord)
        and damaged.file == f"{path}!1/2003.00002.gz"
        and damaged.offset > 0
    )
    assert isinstance(cut, DamagedRecord) and cut.offset > damaged.offset
    (tmp_path / "no.tar").write_bytes(b"not a tar at all" * 99)
    (bad,) = papers(tmp_path / "no.tar")
    assert isinstance(bad, DamagedRecord) and bad.file == str(tmp_path / "no.tar")


def test_options_name_what_cannot_be():
    with pytest.raises(ValueError, match="max-depth is 0"):
        check_options(Options(max_depth=0))


def corpus(folder: Path, count: int = 30) -> Path:
    folder.mkdir()
    for month in range(3):
        members = {}
        for number in range(count):
            text = PAPER.replace("\\input{parts/two}\n", TWO).replace("four", f"number {number}, {month}")
            members[f"{month}/200{month}.{number:05d}.gz"] = gzip.compress(
                text.encode() * (1 + number % 3), mtime=0
            )
        (folder / f"{month}.tar").write_bytes(tar(members))
    return folder


def digests(manifest: dict) -> list[str]:
    return [output.sha256 for output in manifest.outputs]


def test_any_number_of_workers_ends_with_the_same_bytes(tmp_path):
    folder = corpus(tmp_path / "in", 5)
    one = clean_source("arxiv", [folder], tmp_path / "one", executor=Executor(workers=1))
    two = clean_source("arxiv", [folder], tmp_path / "two", executor=Executor(workers=2))
    assert digests(one) == digests(two) and one.fingerprint == two.fingerprint
    assert one.counts["kept"] == 15


def test_killed_in_the_middle_a_second_run_ends_with_the_same_bytes(tmp_path):
    folder = corpus(tmp_path / "in", 300)
    whole = clean_source("arxiv", [folder], tmp_path / "whole", executor=Executor(workers=1))
    out = tmp_path / "out"
    code = (
        "import sys; from pathlib import Path; from puna.stages.stage import Executor; "
        "from puna.corpus.clean import check_options, clean_source; "
        "clean_source('arxiv', [Path(sys.argv[1])], Path(sys.argv[2]), executor=Executor(workers=1))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(folder), str(out)], start_new_session=True)
    for _ in range(3000):
        if any(out.glob(".*.partial")) or process.poll() is not None:
            break
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "manifest.json").exists()
    assert digests(clean_source("arxiv", [folder], out, executor=Executor(workers=1))) == digests(whole)


def test_real_papers_keep_their_text_and_lose_their_macros(realdata, tmp_path):
    manifest = clean_source("arxiv", [realdata / "arxiv"], tmp_path / "out")
    assert manifest.counts["kept"] == 3 and manifest.damaged == 0
    documents = {
        document.id: document
        for output in manifest.outputs
        for document in read_documents(tmp_path / "out" / output.path)
    }
    emcee = documents["emcee/ms"].text
    source = (realdata / "arxiv/emcee/ms.tex").read_text()
    assert emcee.startswith("\\section{Introduction}") and "{\\sffamily emcee}" in emcee
    for name in re.findall(r"\\newcommand\{\\(\w+)\}", source):
        assert not re.search(rf"\\{name}(?![A-Za-z])", emcee), name
    assert "thebibliography" not in emcee and "\\appendix" in emcee
    assert [line for line in emcee.split("\n") if re.search(r"(?<!\\)%", line)] == [
        "% pip install emcee",  # in listings
        "% python setup.py install",
    ]
    sympy = documents["sympy-paper/paper"].text
    assert sympy.startswith("\\section{Introduction}") and sympy.count("\\section") == 7
    assert not re.search(r"\\input|\\bibliography", sympy)
    assert documents["sympy-paper/paper"].meta["title"] == "SymPy: symbolic computing in Python"
    cleaner = documents["latex-cleaner/main"].text
    assert "Expect me (else block of iffalse)!" in cleaner and "Expect me (iftrue block)!" in cleaner
    assert (
        "gone" not in cleaner and "should be ignored" not in cleaner and "environment comment" not in cleaner
    )
    assert "percent \\%." in cleaner and "test {\\color{red} hello}" in cleaner
