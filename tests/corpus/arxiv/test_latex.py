"""LaTeX: comments go as TeX takes them, verbatim stays, macros expand to what TeX would read."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.corpus.arxiv import latex, paper_body
from puna.corpus.arxiv.macros import Expander
from puna.corpus.arxiv.source import Paper, clean
from puna.corpus.arxiv.tex_reader import MacroLimits, MacroLoop, UnbalancedBraces
from puna.corpus.document import Document


def lifted(text: str) -> str:
    kept: list[str] = []
    return latex.restore(latex.lift(text, kept), kept)


def expanded(text: str, **files: str) -> str:
    def find(name: str, folder: str) -> tuple[str, str] | None:
        name = name.removesuffix(".tex")
        return (name, files[name]) if name in files else None

    return Expander(find, MacroLimits()).expand(text)


# ---- comments and verbatim


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("a% note\nb", "ab"),  # the character before stays, and TeX joins the lines
        ("a % note\n  b", "a \n  b"),
        (r"50\% of x % note", r"50\% of x "),
        ("a\\\\% a line break, then a note\nb", "a\\\\b"),
        (r"\\\% is a break and a sign", r"\\\% is a break and a sign"),
        ("a\n% note\nb", "a\nb"),
        ("a % note\n\nb", "a \n\nb"),  # a paragraph ends at the empty line
        ("\\alpha% note\nx", "\\alpha\nx"),  # else it would be \alphax
        ("% note", ""),
        ("a\n\\begin{comment}\nb % c\n\\end{comment}\nd", "a\nd"),
        (r"\url{http://x.org/a%20b}% note", r"\url{http://x.org/a%20b}"),
        (r"\href{http://x.org/%41}{a}% note", r"\href{http://x.org/%41}{a}"),
        ("\\href{% note\n  http://x.org}{a}", r"\href{http://x.org}{a}"),
        (r"\verb|%| \verb*+a%b+ % note", r"\verb|%| \verb*+a%b+ "),
        (r"\lstinline[language=C]{a % b} \lstinline!%! % n", r"\lstinline[language=C]{a % b} \lstinline!%! "),
        (r"\mintinline{py}{a % b}% n", r"\mintinline{py}{a % b}"),
        (
            "\\begin{verbatim}\n% kept \\foo\n\\end{verbatim}% gone",
            "\\begin{verbatim}\n% kept \\foo\n\\end{verbatim}",
        ),
        (
            "\\begin{lstlisting}[x]\n a % b\n\\end{lstlisting}",
            "\\begin{lstlisting}[x]\n a % b\n\\end{lstlisting}",
        ),
        (
            "\\lstnewenvironment{py}{}{}\n\\begin{py}\n%\n\\end{py}",
            "\\lstnewenvironment{py}{}{}\n\\begin{py}\n%\n\\end{py}",
        ),
        ("% \\begin{verbatim}\na % b", "a "),
        ("\\begin{verbatim}\nnever ended % x", "\\begin{verbatim}\nnever ended "),
    ],
)
def test_comments_go_and_nothing_else(source, text):
    assert lifted(source) == text


@given(st.text(alphabet="ab \n\\{}%|[]", max_size=60))
def test_a_text_without_comments_comes_through_whole(text):
    assert lifted(text.replace("%", "")) == text.replace("%", "")


# ---- macros


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (r"\newcommand{\x}{y}\x", "y"),
        (r"\newcommand\x{y}\x", "y"),
        (r"\newcommand*{\x}[1]{<#1>}\x{a}\x b", "<a><b>"),
        (r"\newcommand{\x}[2][d]{#1-#2}\x{a} \x[c]{a} \x[{]}]{a}", "d-a c-a {]}-a"),
        (r"\newcommand{\x}[2]{#2#1}\x{\x{1}{2}}{3}", "321"),
        ("\\newcommand{\\x}\n  [1]\n  {a\n  {#1}}\\x{b}", "a\n  {b}"),
        (r"\newcommand{\x}{a}\newcommand{\y}{\x\x}\renewcommand{\x}{b}\y", "bb"),
        (r"\newcommand{\x}{a}\edef\y{\x}\renewcommand{\x}{b}\y", "a"),
        (r"\newcommand{\x}{a}\let\y\x\renewcommand{\x}{b}\y", "a"),
        (r"\newcommand{\x}{a}\providecommand{\x}{b}\providecommand{\y}{c}\x\y", "ac"),
        (r"\def\x#1.#2;{#2#1}\x a b.c;d", "ca bd"),
        (r"\def\x[#1]{<#1>}\x[a{]}b]", "<a{]}b>"),
        (r"\long\def\x#1{#1#1}\global\let\y=\x\y{a}", "aa"),
        (r"\gdef\x{a}\xdef\y{\x}\y", "a"),
        (
            r"\DeclareMathOperator{\Tr}{Tr}\DeclareMathOperator*{\am}{arg\,min}\Tr A \am B",
            r"\operatorname{Tr}A \operatorname*{arg\,min}B",
        ),
        (
            r"\DeclarePairedDelimiter{\abs}{\lvert}{\rvert}\abs{x}\abs*{y}\abs[\big]{z}",
            r"\lvert x\rvert\left\lvert y\right\rvert\bigl\lvert z\bigr\rvert",
        ),
        (r"\newenvironment{q}[1]{<#1>}{</>}\begin{q}{a}b\end{q}", "<a>b</>"),
        (r"\def\be{\begin{equation}}\def\ee{\end{equation}}\be x\ee", r"\begin{equation}x\end{equation}"),
        (r"\def\nc{\newcommand}\nc{\x}{y}\x", "y"),  # definitions by another name
        (r"\newcommand{\mk}[1]{\def\z##1{#1##1}}\mk{a}\z{b}", "ab"),  # and by a macro
        (r"\newcommand{\T}{\top}A\T B", r"A\top B"),  # a space where two would grow together
        (r"\newcommand{\x}[1]{\alpha#1}\x{b}", r"\alpha b"),
        ("\\newcommand{\\x}{a}\\x  b\\x\nc\\x\n\nd", "abac" + "a\n\nd"),  # TeX takes the spaces after a name
        (r"\newcommand{\x}{a\xspace}\x b, \x, \x\ c", "a b, a, a\\ c"),
        (r"\def\<{\langle}\< x\>", r"\langle x\>"),  # after a sign TeX leaves the space
        (r"\\x\newcommand{\x}{y}\\x", r"\\x\\x"),  # a line break and a letter
        (r"\newcommand{\x}{y}\x@z", "y@z"),
        (r"\newcommand{\section}{no}\section{a}", r"\section{a}"),
        (r"\let\old\section\renewcommand{\section}[1]{no}\section{a}\old{b}", r"\section{a}\section{b}"),
        ("a\n\\newcommand{\\x}{y}\nb", "a\nb"),
        ("a\n\n  \\def\\x{y}\\def\\z{y}\n\nb", "a\n\n  \nb"),
        (r"\unknown{a}\unknown", r"\unknown{a}\unknown"),
        (r"a\end{document}b", "a"),
    ],
)
def test_macros_expand_as_tex_would_read_them(source, text):
    assert expanded(source) == text


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (r"a\iffalse b\else c\fi d", "ac" + "d"),
        (r"a\iftrue b\else c\fi", "ab"),
        (r"\iffalse\ifx\a\b c\fi\iffalse d\fi e\fi f", "f"),
        (r"\iffalse\iff\fi a", "a"),  # \iff is an arrow
        (r"\if0 a\fi b", "b"),
        (r"\newif\ifx@y\newif\ifdraft\ifdraft a\else b\fi\drafttrue\ifdraft a\else b\fi", "ba"),
        (r"\ifpdf a\else b\fi", r"\ifpdf a\else b\fi"),  # only TeX knows
        (r"\iffalse a", "a"),
    ],
)
def test_conditions_that_the_text_decides_are_decided(source, text):
    assert expanded(source) == text


def test_files_are_read_where_they_are_input():
    text = r"\input{a} \input b \include{missing}\import{./}{a} c"
    assert expanded(text, a="\\def\\x{1}A\\x\n", b=r"B\x\endinput C") == "A1 B1A1 c"


def test_a_file_that_inputs_itself_is_read_once():
    assert expanded(r"\input{a}", a=r"A\input{b}", b=r"B\input{a}\input{b}") == "AB"


def test_definitions_of_the_authors_own_style_are_taken_and_of_published_ones_not():
    files = {"own.sty": r"\newcommand{\x}{y}", "pub.sty": r"\DeclareOption{a}{}\newcommand{\z}{w}"}
    assert expanded(r"\usepackage{own,pub,amsmath}\x\z", **files) == r"y\z"


@pytest.mark.parametrize(
    "source",
    [
        r"\def\x{\x}\x",
        r"\def\x{a\x b}\x",
        r"\def\x#1{\x{#1#1}}\x{ab}",
        r"\newcommand{\a}{\b}\newcommand{\b}{\a}\a",
        r"\newenvironment{q}{\begin{q}}{}\begin{q}",
        "".join(
            rf"\def\{b}{{{(chr(92) + a) * 10}}}" for a, b in zip("abcdefghijk", "bcdefghijkl", strict=True)
        )
        + r"\l",
        r"\edef\x{" * 200 + "}" * 200,
    ],
)
def test_what_expands_for_ever_is_an_error_at_once(source):
    begun = time.process_time()
    with pytest.raises(MacroLoop):
        expanded(source)
    assert time.process_time() - begun < 5  # for ever, it would be


def test_a_loop_that_is_never_used_is_none():
    assert expanded(r"\def\x{\x}a") == "a"


@pytest.mark.parametrize("source", [r"\newcommand{\x}{a", r"\newcommand{\x}[1]{#1}\x{a", r"\def\x{{}"])
def test_definitions_and_arguments_without_an_end_are_errors(source):
    with pytest.raises(UnbalancedBraces):
        expanded(source)


# ---- the body and the bibliography


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("a\\begin{document}b\\section*{One} c", "\\section*{One} c"),
        ("\\titleformat{\\section}{\\bf}\\begin{document}b \\part{P}c", "\\part{P}c"),
        ("\\begin{document}\\maketitle\\begin{abstract}a\\end{abstract} b", " b"),
        ("\\begin{abstract}a\\end{abstract}\\begin{document}b", "b"),
        ("\\begin{document}b\\\\section{} c", "b\\\\section{} c"),
        ("\\begin{document}a \\section*{Acknowledgments} b", "a \\section*{Acknowledgments} b"),
        ("\\maketitle a\\bibliography{x}\\section{S} b", " a\\bibliography{x}\\section{S} b"),
        (
            "\\title{T}\\maketitle a\\title{Supplemental material}\\maketitle\\section{S} b",
            " a\\title{Supplemental material}\\maketitle\\section{S} b",
        ),
        ("\\magnification=1\\newsec{One} b", "\\newsec{One} b"),
    ],
)
def test_the_body_begins_with_the_first_section_or_after_the_front_matter(source, text):
    assert paper_body.body_of(source) == text


@pytest.mark.parametrize(
    "references",
    [
        "\\begin{thebibliography}{9}\\bibitem{a} A. \\end{thebibliography}\n",
        "\\bibliographystyle{x}\\bibliography{refs}\n",
        "\\printbibliography[title=References]\n",
        "\\section*{References}\n\\begin{enumerate}\\item A.\\end{enumerate}\n",
        "\\section{\\large\\bf REFERENCES}\n\\bibitem{a} A.\n",
        "\\begin{references}\\bibitem{a} A.\\end{references}\n",
        "\\centerline{\\bf References}\n\\item{[1]} A.\n",
        "\\begin{center}{\\large References}\\end{center}\n[1] A.\n",
        "{\\bf References}\n\n[1] A.\n",
        "\\begin{thebibliography}{9}\\bibitem{a} never ended\n",
    ],
)
def test_the_bibliography_goes_and_the_appendix_after_it_stays(references):
    before, after = "\\section{One}\nText with references to it.\n", "\\appendix\n\\section{Proof}\nMore."
    text = paper_body.without_bibliography(before + references + after)
    assert text.startswith(before) and text.endswith(after)
    assert not any(word in text for word in ("A.", "bib", "References", "REFERENCES", "never"))


def test_braces_are_balanced_or_the_first_odd_one_is_named():
    assert latex.unbalanced_at(r"{a\{ b} \\{c}") is None
    assert latex.unbalanced_at("a{b}}c") == 4
    assert latex.unbalanced_at("a{b{c}") == 1


# ---- any text at all

WORDS = (
    r"\newcommand \renewcommand \def \let \edef \newenvironment \newif \iffalse \iftrue \if \else \fi \x \y "
    r"\z \begin \end {document} {verbatim} {q} \input \usepackage {a} { } [ ] # #1 #2 % \\ \{ \% = * \verb | "
    r"\url \section \bibliography \appendix \title \xspace \long \DeclareMathOperator \endinput {\x} 1 0"
)
PIECES = st.sampled_from([*WORDS.split(), "\n", "\n\n", " ", "a", "é", "\ue000", "\ue0000\ue001"])


@given(st.lists(PIECES, max_size=60).map("".join) | st.text(max_size=200))
def test_no_text_raises_or_hangs(text):
    head = "\\documentclass{article}\\begin{document}\n"
    clean(Paper("x", {"m.tex": head + text, "a.tex": text}, "m.tex"))


ENDLESS = (
    r"\begin{verbatim} \url{ \newcommand{ \def\a \iffalse \section[ \section{ { \nocite[ \x[ \x{ \edef\a{ \ "
    r"\begin{thebibliography}\section{x} \input{m} \let\a \begin{a {\bf~references"
)


@pytest.mark.parametrize("piece", [*ENDLESS.split(), " "])
def test_time_grows_with_the_text_and_not_faster(piece):
    head = "\\documentclass{article}\\newcommand{\\x}[2][a]{#1#2}\\begin{document}\n"
    text = head + piece * (100_000 // len(piece)) + "x"
    begun = time.process_time()
    clean(Paper("x", {"m.tex": text}, "m.tex"))
    assert time.process_time() - begun < 10  # what reads to the end again and again takes minutes


# ---- what other tools lose


def paper(body: str, preamble: str = "", **files: str) -> str:
    main = f"\\documentclass{{article}}\n{preamble}\n\\begin{{document}}\n{body}\n\\end{{document}}\n"
    document = clean(Paper("x", {"main.tex": main, **files}))
    assert isinstance(document, Document), document
    return document.text


PROSE = "We measure the drag on a thin plate in a slow stream, and compare it with the theory. " * 3


@pytest.mark.parametrize(
    "macros",
    [
        r"\newcommand{\more}[1]{(#1)\@more}\def\@more{\futurelet\x\@@more}\def\@@more{\@more}",
        r"\def\more#1{#1\more{#1}}",
        r"\def\more{\other}\def\other{\more}",
        "".join(rf"\def\m{name}{{\m{name} x}}" for name in "abcdefghijklm") + r"\def\more{\ma}",
    ],
)
def test_a_macro_that_never_ends_is_left_and_the_paper_is_kept(macros):
    text = paper(
        rf"\section{{A}} {PROSE} $\more{{a}}\vect{{x}}$ {PROSE}", rf"{macros}\def\vect#1{{\mathbf{{#1}}}}"
    )
    assert text.count(PROSE.strip()) == 2 and "\\def" not in text and r"\mathbf{x}" in text


def test_what_comes_next_decides_a_macro_as_in_latex():
    pairs = (
        r"\def\pairs#1{(#1)\@pairs}\def\@pairs{\@ifnextchar\bgroup{\@@pairs}{}}\def\@@pairs#1{, (#1)\@pairs}"
    )
    star = r"\def\norm{\@ifstar{big}{small}}"
    assert expanded(pairs + star + r"\pairs{a}{b}{c}. \norm* \norm.") == "(a), (b), (c). big small."


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (
            r"\newif\ifa\unless\ifa x\else y\fi\atrue\unless\ifa x\else y\fi\unless\ifb z\fi",
            r"xy\unless\ifb z\fi",
        ),
        (
            r"\def\a{1}\ifdefined\a x\else y\fi\ifcsname a\endcsname x\else y\fi\ifdefined\b z\fi",
            r"xx\ifdefined\b z\fi",
        ),
        (
            r"\def\a{1}\def\b{1}\def\c{2}\ifx\a\b x\fi\ifx\a\c x\else y\fi\ifx\undefined\a x\else y\fi",
            "xyy",
        ),
        (r"\def\a{1}\ifx\a\relax x\fi\a", r"\ifx\a\relax x\fi1"),
        (
            r"\expandafter\def\csname h\endcsname#1{(#1)}\h a\csname h\endcsname b\csname x\endcsname",
            r"(a)(b)\csname x\endcsname",
        ),
        (r"\NewDocumentCommand{\v}{O{x} m}{#2_{#1}}\v{a}\v[y]{b}\NewDocumentCommand\w{}{W}\w", "a_{x}b_{y}W"),
        (r"\newtoggle{a}\iftoggle{a}{x}{y}\toggletrue{a}\iftoggle{a}{x}{y}\nottoggle{a}{x}{y}", "yxy"),
        (r"\providetoggle{a}\settoggle{a}{true}\iftoggle{a}{x}{y}\iftoggle{b}{x}{y}", r"x\iftoggle{b}{x}{y}"),
        (r"\newboolean{a}\ifthenelse{\boolean{a}}{x}{y}\setboolean{a}{true}\ifa x\else y\fi", "yx"),
        (r"\newif\ifa\atrue\ifthenelse{\not\boolean{a}}{x}{y}\ifbool{a}{x}{y}\notbool{a}{x}{y}", "yxy"),
        (r"\newbool{a}\booltrue{a}\newbool{b}\ifthenelse{\boolean{a}\AND\boolean{b}}{x}{y}", "y"),
        (r"\newbool{a}\booltrue{a}\ifthenelse{\boolean{a}\OR\(\NOT\boolean{a}\)}{x}{y}", "x"),
        (
            r"\ifthenelse{\equal{a}{b}}{x}{y}\ifthenelse{\equal{a}{\b}}{x}{y}",
            r"y\ifthenelse{\equal{a}{\b}}{x}{y}",
        ),
    ],
)
def test_switches_that_the_source_sets_are_decided(source, text):
    assert expanded(source) == text


def test_environments_that_a_paper_makes_comments_go():
    preamble = (
        r"\usepackage{comment}\excludecomment{hint}\includecomment{extra}"
        r"\excludecomment{both}\includecomment{both}"
    )
    body = (
        r"\section{A} one \begin {hint} no \end {hint} two \begin{extra}three\end{extra} "
        r"\begin{both}four\end{both} \begin{comment} no \end {comment} five " + PROSE
    )
    text = paper(body, preamble)
    assert [word for word in text.split() if word in ["no", "one", "two", "three", "four", "five"]] == [
        *("one", "two", "three", "four", "five")
    ]
    assert "begin" not in text


@pytest.mark.parametrize(
    "command", ["import", "import*", "subimport", "subimport*", "inputfrom", "subincludefrom*"]
)
def test_imported_files_are_read_from_their_folder(command):
    text = paper(rf"\section{{A}}\{command}{{parts/}}{{a}} end " + PROSE, **{"parts/a.tex": "words of a"})
    assert "words of a" in text and "{" not in text.replace(r"\section{A}", "")


@pytest.mark.parametrize(
    "name",
    [
        "thebibliography",
        "mcitethebibliography",
        "mcbibliography",
        "references",
        "thebibliography*",
        "biblist",
    ],
)
def test_bibliographies_go_whatever_their_environment_is_called(name):
    text = paper(rf"\section{{A}} {PROSE} \begin {{{name}}}{{9}} \bibitem{{a}} Smith \end{{{name}}} after")
    assert "Smith" not in text and text.endswith("after")


@pytest.mark.parametrize(
    "late",
    [
        r"\appendix\section{Proof}",
        r"\section*{Supplemental Material}",
        r"\section*{Methods}",
        r"\section*{Data availability}x\section*{Author contributions}",
    ],
)
def test_a_letter_is_kept_where_its_only_section_follows_it(late):
    text = paper(
        rf"\title{{T}}\maketitle\begin{{abstract}}no\end{{abstract}} LETTER {PROSE} {late} later {PROSE}"
    )
    assert text.startswith("LETTER") and "later" in text
    ordinary = paper(rf"\maketitle {PROSE} \section{{Introduction}} a {late} later {PROSE}")
    assert ordinary.startswith(r"\section{Introduction}")


def test_a_style_that_names_itself_is_the_author_s():
    style = r"\NeedsTeXFormat{LaTeX2e}\ProvidesPackage{own}[2020/01/01]\newcommand{\Rn}{\mathbb{R}^n}"
    assert r"\mathbb{R}^n" in paper(
        rf"\section{{A}} $\Rn$ {PROSE}", r"\usepackage{own}", **{"own.sty": style}
    )
