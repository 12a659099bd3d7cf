"""Reading LaTeX as TeX does: a stack of texts, and from the top one arguments, names and tokens.

In:  texts after `latex.lift`, pushed where TeX would read them: the paper, a file in it, an expansion.
Out: what was emitted, in one text.

    text of the paper   ... \\half{x} and more        frames[0], at "and more"
    expansion of \\half  \\frac{x}{2}                  frames[1], read to its end first

Every group lies within one text, since definitions and arguments are balanced; so an argument is read from
the top text, once those that are at their end are put away. All that is read more than once is paid for from
a budget in proportion to the paper: no text can make this run long.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from puna.corpus.arxiv.latex import CLOSING, OPENING, closing_brace, ends_in_control_word


class MacroLoop(Exception):
    """A macro that expands forever, or to far more than the paper: `name`; in the paper it is `origin`."""

    def __init__(self, name: str, origin: str = "") -> None:
        super().__init__(f"\\{name} expands forever")
        self.name, self.origin = name, origin or name


class UnbalancedBraces(Exception):
    """A definition or an argument that no brace closes."""


@dataclass(frozen=True)
class MacroLimits:
    """`depth`: texts inside texts; `growth`: characters that all expansions may make for one of the paper."""

    depth: int = 200
    growth: int = 30


@dataclass
class Frame:
    """A text being read: `at` is the next character, `file` its path if it is a file's.

    `origin` is the macro in a file's own text whose expansion, at last, it is.
    """

    text: str
    at: int = 0
    file: str = ""
    origin: str = ""


@dataclass(frozen=True)
class Macro:
    """What a name means. `delimiters` holds, for each argument, what ends it: nothing for `{...}`.

    `prefix` must follow the name; `default` is that of an optional first argument; the body of a
    `final` macro, the meaning that `\\let` took, is not read again.
    """

    body: str
    delimiters: tuple[str, ...] = ()
    prefix: str = ""
    default: str | None = None
    final: bool = False


Action = Callable[[], None]

CONTROL = re.compile(r"\\([A-Za-z@]+|.)", re.DOTALL)
_MIN_BUDGET = 5_000_000
_EXPANSION_COST = 20
_MAX_NESTED = 50

_AFTER_WORD = re.compile(r"[ \t]*(?:\n(?![ \t]*\n)[ \t]*)?")
_SPACE = re.compile(r"\s*")
_BLANK_REST = re.compile(r"[ \t]*\n")
_NAME_IN_BRACES = re.compile(r"\s*\\([A-Za-z@]+|.)\s*", re.DOTALL)
_OPTIONAL_PARTS = re.compile(r"\\[\\{}\[\]]|[{}\]]")


class Reader:
    """The stack of texts and what was emitted."""

    def __init__(self, limits: MacroLimits) -> None:
        self.limits = limits
        self.frames: list[Frame] = []
        self.out: list[str] = []
        self._budget = self._nested = 0
        self.origin = ""

    def begin(self, text: str) -> None:
        """Set the budget for reading a paper."""
        self._budget = _MIN_BUDGET + self.limits.growth * len(text)

    def expanded(self, text: str, file: str = "") -> str:
        """What a text expands to, read apart from what is being read now."""
        outer = self.frames, self.out
        self.frames, self.out = [Frame(text, file=file)], []
        self._nested += 1
        if self._nested > _MAX_NESTED:
            raise MacroLoop("edef")
        while self.frames:
            self.step()
        expansion = "".join(self.out)
        self._nested -= 1
        self.frames, self.out = outer
        return expansion

    def step(self) -> None:
        """Read on to the next known control sequence, and do what it says."""
        raise NotImplementedError

    def emit(self, text: str) -> None:
        """Write text out; a command before it does not grow together with a word."""
        if text:
            if self.out and text[0].isalpha() and ends_in_control_word(self.out[-1]):
                self.out.append(" ")
            self.out.append(text)

    def push(self, text: str, name: str, file: str = "") -> None:
        """Read a text before what is left of the present one. Raises MacroLoop, naming `name`."""
        self.spend(len(text), name)
        if not file:  # a file that ends by reading another is still being read: so cycles are seen
            self.top()
        if len(self.frames) >= self.limits.depth:
            raise MacroLoop(name, self.origin)
        if text:
            self.frames.append(Frame(text, file=file, origin="" if file else self.origin))

    def spend(self, characters: int, name: str) -> None:
        """Pay for reading characters. Raises MacroLoop, naming `name`, when the budget is spent."""
        self._budget -= characters + _EXPANSION_COST
        if self._budget < 0:
            raise MacroLoop(name, self.origin)

    def top(self) -> Frame | None:
        """The text being read, those that are at their end put away."""
        while self.frames and self.frames[-1].at >= len(self.frames[-1].text):
            self.frames.pop()
        return self.frames[-1] if self.frames else None

    def skip_space(self) -> Frame | None:
        """The text being read, at the next character that is no space."""
        while frame := self.top():
            frame.at = end_of(_SPACE, frame.text, frame.at)
            if frame.at < len(frame.text):
                break
        return frame

    def accept(self, character: str) -> bool:
        """Whether a character comes next; then it is read."""
        frame = self.skip_space()
        if frame and frame.text[frame.at] == character:
            frame.at += 1
            return True
        return False

    def argument(self) -> str:
        """The next `{...}` without its braces, or the next token."""
        frame = self.skip_space()
        if not frame:
            return ""
        text, start = frame.text, frame.at
        if text[start] == "{":
            return self.group(frame)
        if text[start] == "}":  # the group that holds the macro ends: an argument is missing
            return ""
        if text[start] == OPENING:
            end = text.find(CLOSING, start) + 1
        elif match := CONTROL.match(text, start):
            end = match.end()
        else:
            end = start + 1
        frame.at = end
        return text[start:end]

    def group(self, frame: Frame) -> str:
        """The `{...}` that comes next, without its braces. Raises UnbalancedBraces."""
        end = closing_brace(frame.text, frame.at)
        if end < 0:
            raise UnbalancedBraces
        group = frame.text[frame.at + 1 : end]
        self.spend(len(group), "")
        frame.at = end + 1
        return group

    def optional(self) -> str | None:
        """The next `[...]` without its brackets, if one comes next."""
        frame = self.skip_space()
        if not frame or frame.text[frame.at] != "[":
            return None
        depth = 0
        for match in _OPTIONAL_PARTS.finditer(frame.text, frame.at + 1):
            if match[0] == "]" and depth == 0:
                found = frame.text[frame.at + 1 : match.start()]
                frame.at = match.end()
                self.spend(len(found), "")
                return found
            depth += {"{": 1, "}": -1}.get(match[0], 0)
            if depth < 0:
                break
        self.spend(len(frame.text) - frame.at, "")
        return None

    def until(self, delimiter: str) -> str | None:
        """The text up to a delimiter outside of braces, which is read too; None if it does not come."""
        frame = self.top()
        if not frame:
            return None
        wanted = re.escape(delimiter).replace("\\ ", "\\s+")
        depth, start = 0, frame.at
        for match in re.compile(rf"({wanted})|\\[\\{{}}]|[{{}}]").finditer(frame.text, start):
            if match[1] is not None and depth == 0:
                found = frame.text[start : match.start()]
                frame.at = match.end()
                self.spend(len(found), "")
                is_group = found.startswith("{") and closing_brace(found, 0) == len(found) - 1
                return found[1:-1] if is_group else found
            depth += {"{": 1, "}": -1}.get(match[0], 0)
            if depth < 0:
                break
        self.spend(len(frame.text) - start, "")
        return None

    def name(self) -> str:
        """The control sequence that a definition names, in braces or bare; nothing if there is none."""
        frame = self.skip_space()
        if not frame:
            return ""
        if frame.text[frame.at] == "{":
            match = _NAME_IN_BRACES.fullmatch(self.group(frame))
        elif match := CONTROL.match(frame.text, frame.at):
            frame.at = match.end()
        return match[1] if match else ""

    def end_line(self) -> None:
        """After a definition: its line goes with it, if it stood alone there."""
        frame = self.top()
        if frame and (not self.out or self.out[-1].rstrip(" \t").endswith("\n")):
            rest = _BLANK_REST.match(frame.text, frame.at)
            frame.at = rest.end() if rest else frame.at


def after_word(text: str, at: int) -> int:
    """Where reading continues after a command of letters: past the spaces and one line break after it."""
    return end_of(_AFTER_WORD, text, at)


def end_of(pattern: re.Pattern[str], text: str, start: int) -> int:
    """The end of a match that cannot fail, because the pattern also matches nothing."""
    match = pattern.match(text, start)
    assert match
    return match.end()
