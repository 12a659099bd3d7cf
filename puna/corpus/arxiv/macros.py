"""LaTeX macros: definitions are read where they occur, and every use is replaced by its expansion.

In:  the text of the main file (after `latex.lift`), and a way to find the files that it inputs.
Out: one text: files inlined, definitions removed, all macros of the author expanded.

    \\newcommand{\\half}[1]{\\frac{#1}{2}}   nothing;  known: half -> Macro("\\frac{#1}{2}", 1 argument)
    $\\half{\\half x}$                       $\\frac{\\frac{x}{2}}{2}$

As in TeX, the text is read once, in order, and the expansion of a macro is read before the rest. Commands
that the paper does not define are unchanged, and so are conditions that only TeX can decide. Unlike in TeX,
the end of a group does not end a definition.
"""

import re
from collections.abc import Callable
from functools import partial

from puna.corpus.arxiv.conditions import Conditions
from puna.corpus.arxiv.latex import ends_in_control_word
from puna.corpus.arxiv.tex_reader import CONTROL, Action, Macro, MacroLimits, after_word, end_of

# (name of an input file, folder to search) -> its path and its lifted text.
FindFile = Callable[[str, str], tuple[str, str] | None]


_ENVIRONMENT = re.compile(r"[ \t]*\{([^{}\n]*)\}")
_FILE_NAME = re.compile(r"([^\s\\{}]+) ?")
_PARAMETER = re.compile(r"#(#|[1-9])")
_PARAMETER_TEXT = re.compile(r"[^{}]{0,200}")
_EQUALS = re.compile(r"\s*=?[ ]?")
_ARGUMENTS = re.compile(r"\s*(?:O\s*\{([^{}]*)\}\s*)?((?:\+?m\s*)*)")
_DEFINES_NAME = re.compile(
    r"\\(?:[gex]?def|let|(?:re)?newcommand|providecommand)\s*\*?\s*\\csname(?![A-Za-z@])"
)
_AFTER_XSPACE = re.compile(r"[^\s.,'/?;:!~)\]}{\\-]|\\[A-Za-z@]")
# Commands that occur in the styles of publishers and packages, but not in an author's collection of macros.
_PUBLISHED = re.compile(
    r"\\(?:ProvidesClass|DeclareOption|ProcessOptions|ExecuteOptions|LoadClass|PassOptionsTo|@startsection)|"
    r"\\def\\[A-Za-z]*@"
)

# Papers redefine these for layout. They are never expanded, because later steps need `\section` itself.
_STRUCTURE = (
    "part chapter section subsection subsubsection paragraph subparagraph appendix title author abstract "
    "maketitle tableofcontents item caption footnote par bibliography bibliographystyle bibitem "
    "thebibliography documentclass documentstyle"
)
_KEPT = frozenset(_STRUCTURE.split())
# Commands of packages; a style's \providecommand does not replace them.
_OFFERED = frozenset(["url", "href", "path", "texttt", "textsc", "text", "ensuremath", "natexlab", "emph"])


class Expander(Conditions):
    """Expands macros. `_known` maps each control sequence to an action of TeX or to a Macro."""

    def __init__(
        self, find_file: FindFile, limits: MacroLimits, unexpanded: frozenset[str] | None = frozenset()
    ) -> None:
        """`unexpanded` names macros that are not expanded; their definitions are removed. None: all."""
        super().__init__(limits)
        self._unexpanded = unexpanded
        self._find_file = find_file
        self._environments: dict[str, tuple[Macro, str]] = {}
        self._styles: set[str] = set()
        self._actions = self._all_actions()
        self._known = dict(self._actions)

    def expand(self, text: str, file: str = "") -> str:
        """The text of `file`, the main one, up to the end of its document.

        Raises:
            MacroLoop: when expansions exceed the limits.
            UnbalancedBraces: when a definition or an argument has no end.
        """
        self.begin(text)
        return self.expanded(text, file)

    def _all_actions(self) -> dict[str, Action]:
        names: dict[Action, str] = {
            self._newcommand: "newcommand renewcommand DeclareRobustCommand newrobustcmd renewrobustcmd",
            partial(self._newcommand, offered=True): "providecommand",
            self._def: "def gdef",
            partial(self._def, at_once=True): "edef xdef",
            self._prefix: "long global outer protected expandafter",
            self._let: "let",
            self._document_command: "NewDocumentCommand RenewDocumentCommand ProvideDocumentCommand "
            "DeclareDocumentCommand",
            self._csname: "csname",
            self._operator: "DeclareMathOperator",
            self._paired: "DeclarePairedDelimiter",
            self._newenvironment: "newenvironment",
            partial(self._newenvironment, is_new=False): "renewenvironment",
            self._begin: "begin",
            self._end: "end",
            self._input: "input include subfile subfileinclude @input @@input",
            self._input_if: "InputIfFileExists",
            self._import: "import subimport inputfrom subinputfrom includefrom subincludefrom",
            self._usepackage: "usepackage RequirePackage",
            self._endinput: "endinput",
            self.end_line: "makeatletter makeatother",
            self._xspace: "xspace",
            **self.condition_actions(),
        }
        return {name: action for action, listed in names.items() for name in listed.split()}

    def step(self) -> None:
        """Copy the top text up to the next known control sequence, and carry it out."""
        frame = self.frames[-1]
        known, text, at = self._known, frame.text, frame.at
        for match in CONTROL.finditer(text, at):
            name, at = match[1], match.end()
            if name not in known:
                # Outside of styles `@` is not a letter: `\half@` is `\half` followed by `@`.
                name = name.partition("@")[0]
                if not name or name not in known:
                    continue
                at = match.start(1) + len(name)
            self.emit(text[frame.at : match.start()])
            if (name[-1].isalpha() or name[-1] == "@") and name not in ("begin", "end"):
                at = after_word(text, at)
            frame.at = at
            self._written = text[match.start() : at]
            self.origin = frame.origin or name
            meaning = known[name]
            if isinstance(meaning, Macro):
                self._call(name, meaning)
            else:
                meaning()
            break
        else:
            self.emit(text[frame.at :])
            frame.at = len(text)
        self.top()

    # ---- using ------------------------------------------------------------------------------------

    def _call(self, name: str, macro: Macro) -> None:
        written = self._written
        self.spend(len(macro.body), name)
        if macro.prefix:
            frame = self.top()
            if not frame or not frame.text.startswith(macro.prefix, frame.at):
                self.emit(written)
                return
            frame.at += len(macro.prefix)
        arguments: list[str] = []
        delimiters = macro.delimiters
        if macro.default is not None:
            given = self.optional()
            arguments.append(macro.default if given is None else given)
            delimiters = delimiters[1:]
        for delimiter in delimiters:
            argument = self.until(delimiter) if delimiter else self.argument()
            if argument is None:  # the use does not match the definition
                self.emit(written)
                return
            arguments.append(argument)
        body = _substitute(macro.body, arguments)
        if macro.final:
            self.emit(body)
        else:
            self.push(body, name)

    def _xspace(self) -> None:
        frame = self.top()
        if frame and _AFTER_XSPACE.match(frame.text, frame.at):
            self.emit(" ")

    def _begin(self) -> None:
        name = self._environment()
        if name in self._environments:
            self._call(name, self._environments[name][0])
        else:
            self.emit(self._written)

    def _end(self) -> None:
        name = self._environment()
        if name == "document":
            self.frames.clear()
        elif name in self._environments:
            self.push(self._environments[name][1], name)
        else:
            self.emit(self._written)

    def _environment(self) -> str:
        """The name in `\\begin{name}`, or nothing where no name in braces follows."""
        frame = self.top()
        match = _ENVIRONMENT.match(frame.text, frame.at) if frame else None
        if not frame or not match:
            return ""
        frame.at = match.end()
        self._written += match[0]
        return match[1]

    # ---- defining ---------------------------------------------------------------------------------

    def _define(self, name: str, macro: Macro) -> None:
        if name and name not in _KEPT and name not in self._actions and self._expands(name):
            self._known[name] = macro
        self.end_line()

    def _expands(self, name: str) -> bool:
        return self._unexpanded is not None and name not in self._unexpanded

    def _newcommand(self, offered: bool = False) -> None:
        self.accept("*")
        name = self.name()
        count, default = self._parameters()
        body = self.argument()
        if not offered or (name not in self._known and name not in _OFFERED):
            self._define(name, Macro(body, ("",) * count, default=default))
        else:
            self.end_line()

    def _parameters(self) -> tuple[int, str | None]:
        """`[3][default]`: the number of parameters, and the default of an optional first one."""
        number = (self.optional() or "").strip()
        count = int(number) if number in tuple("123456789") else 0
        return count, self.optional() if count else None

    def _def(self, at_once: bool = False) -> None:
        name = self.name()
        frame = self.top()
        parameters = _PARAMETER_TEXT.match(frame.text, frame.at) if frame else None
        if not frame or not parameters or not frame.text.startswith("{", parameters.end()):
            return
        frame.at = parameters.end()
        body = self.group(frame)
        prefix, *delimiters = re.split(r"#[1-9]", parameters[0].lstrip().rstrip("#"))
        if at_once:
            body = self.expanded(body)
        self._define(name, Macro(body, tuple(delimiters), prefix if delimiters else prefix.rstrip()))

    def _prefix(self) -> None:
        """`\\long\\def`, `\\global\\let`: removed before a definition, else unchanged."""
        frame = self.top()
        match = CONTROL.match(frame.text, frame.at) if frame else None
        defines = match is not None and match[1] in self._actions
        if self._written.startswith("\\expandafter"):  # which is for the name that is defined
            defines = bool(frame and _DEFINES_NAME.match(frame.text, frame.at))
        if not defines:
            self.emit(self._written)

    def _document_command(self) -> None:
        """A definition of xparse with mandatory arguments, after an optional one with a default."""
        name, arguments, body = self.name(), self.argument(), self.argument()
        if match := _ARGUMENTS.fullmatch(arguments):
            count = match[2].count("m") + (match[1] is not None)
            self._define(name, Macro(body, ("",) * count, default=match[1]))
        else:
            self.end_line()

    def _csname(self) -> None:
        """`\\csname half\\endcsname` is `\\half`."""
        name = (self.until("\\endcsname") or "").strip()
        self._written += f"{name}\\endcsname"
        if isinstance(meaning := self._known.get(name), Macro):
            self._call(name, meaning)
        else:
            self.emit(self._written)

    def _let(self) -> None:
        name = self.name()
        if not (frame := self.top()):
            return
        frame.at = end_of(_EQUALS, frame.text, frame.at)
        if frame.text.startswith(("{", "}"), frame.at):  # another name for a brace, which is not a macro
            frame.at += 1
            return
        meant = self.argument()
        target = meant[1:] if meant.startswith("\\") else ""
        held = self._known.get(target)
        if isinstance(held, Macro):
            self._define(name, held)
        elif name != target:
            # An alias of an action is read again and carried out; an alias of a LaTeX command is final.
            self._define(name, Macro(meant, final=held is None))

    def _operator(self) -> None:
        star = "*" if self.accept("*") else ""
        name, body = self.name(), self.argument()
        self._define(name, Macro(f"\\operatorname{star}{{{body}}}"))

    def _paired(self) -> None:
        name, left, right = self.name(), self.argument(), self.argument()
        if name and name not in self._actions:
            self._known[name] = partial(self._call_paired, name, left, right)
        self.end_line()

    def _call_paired(self, name: str, left: str, right: str) -> None:
        """`\\abs{x}`, `\\abs*{x}` with growing delimiters, `\\abs[\\big]{x}` with delimiters of that size."""
        before = after = ""
        if self.accept("*"):
            before, after = "\\left", "\\right"
        elif size := self.optional():
            before, after = f"{size}l", f"{size}r"
        inside = self.argument()
        gap = " " if ends_in_control_word(left) and inside[:1].isalpha() else ""
        self.push(f"{before}{left}{gap}{inside}{after}{right}", name)

    def _newenvironment(self, is_new: bool = True) -> None:
        self.accept("*")
        name = self.argument().strip()
        count, default = self._parameters()
        begin, end = self.argument(), self.argument()
        if is_new and name and self._expands(name):
            self._environments[name] = Macro(begin, ("",) * count, default=default), end
        self.end_line()

    # ---- files ------------------------------------------------------------------------------------

    def _input(self) -> None:
        self.accept("*")
        frame = self.skip_space()
        if not frame:
            return
        if frame.text[frame.at] == "{":
            self._inline(self.group(frame), "")
        elif match := _FILE_NAME.match(frame.text, frame.at):
            frame.at = match.end()
            self._inline(match[1], "")

    def _input_if(self) -> None:
        name, yes, no = self.argument(), self.argument(), self.argument()
        exists = self._inline(name, "")
        if text := yes if exists else no:
            self.push(text, name)

    def _import(self) -> None:
        self.accept("*")
        folder = self.argument()
        self._inline(self.argument(), folder)

    def _inline(self, name: str, folder: str) -> bool:
        """Continue reading in a file; a file that is missing, or is being read already, is skipped."""
        name = name.strip().strip('"')
        here = next((frame.file for frame in reversed(self.frames) if frame.file), "")
        folders = (folder, f"{here.rpartition('/')[0]}/{folder}")
        found = next((found for where in folders if (found := self._find_file(name, where))), None)
        if found and all(frame.file != found[0] for frame in self.frames):
            self.push(found[1].removesuffix("\n"), name, found[0])
        return found is not None

    def _usepackage(self) -> None:
        """Read the definitions of a style, if it is in the paper's archive and is not a published one."""
        self.optional()
        for name in self.argument().split(","):
            found = self._find_file(f"{name.strip()}.sty", "")
            if found and found[0] not in self._styles and not _PUBLISHED.search(found[1]):
                self._styles.add(found[0])
                self.spend(len(found[1]), name)
                self.expanded(found[1])

    def _endinput(self) -> None:
        if frame := self.top():
            frame.at = len(frame.text)


def _substitute(body: str, arguments: list[str]) -> str:
    """The body with its arguments. `\\alpha#1` stays two tokens, whatever the argument begins with."""
    if "#" not in body:
        return body
    parts: list[str] = []
    copied = 0
    for match in _PARAMETER.finditer(body):
        parts.append(body[copied : match.start()])
        copied = match.end()
        given = "#" if match[1] == "#" else "".join(arguments[int(match[1]) - 1 : int(match[1])])
        if given[:1].isalpha() and ends_in_control_word(parts[-1]):
            parts.append(" ")
        parts.append(given)
    parts.append(body[copied:])
    return "".join(parts)
