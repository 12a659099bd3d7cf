"""Reading LaTeX as TeX does: a stack of texts; arguments, names and tokens are read from the top one.

In:  texts after `latex.lift`, pushed where TeX would read them: the paper, a file in it, an expansion.
Out: what was emitted, in one text.

    text of the paper   ... \\half{x} and more        frames[0], at "and more"
    expansion of \\half  \\frac{x}{2}                  frames[1], read to its end first

Every group is within one text, since definitions and arguments are balanced. So an argument is read from the
top text, after finished texts are removed from the stack. Every character that is read more than once counts
against a budget in proportion to the paper's length, so running time is bounded for any input.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from puna.corpus.arxiv.latex import CLOSING, OPENING, closing_brace, ends_in_control_word


class MacroLoop(Exception):
    """The macro `name` expands forever or to far more than the paper, which calls it through `origin`."""

    def __init__(self, name: str, origin: str = "") -> None:
        super().__init__(f"\\{name} expands forever")
        self.name, self.origin = name, origin or name


class UnbalancedBraces(Exception):
    """A definition or an argument without its closing brace."""


@dataclass(frozen=True)
class MacroLimits:
    """`depth`: maximum nesting of texts; `growth`: maximum expanded characters per character of the paper."""

    depth: int = 200
    growth: int = 30


@dataclass
class Frame:
    """A text being read: `at` is the next character, `file` its path if it is a file's.

    `origin` is the macro in a file whose expansion led to this text.
    """

    text: str
    at: int = 0
    file: str = ""
    origin: str = ""


@dataclass(frozen=True)
class Macro:
    """The meaning of a name. `delimiters` holds the text that ends each argument, empty for `{...}`.

    `prefix` must follow the name. `default` is the default of an optional first argument. The body of a
    `final` macro, which `\\let` defines, is not expanded again.
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


class Reader(ABC):
    """The stack of texts, and the output."""

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
        """The expansion of a text, read separately from the current texts."""
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

    @abstractmethod
    def step(self) -> None:
        """Read up to the next known control sequence, and carry it out."""

    def emit(self, text: str) -> None:
        """Write text to the output, with a space between a command and a word that follows it."""
        if text:
            if self.out and text[0].isalpha() and ends_in_control_word(self.out[-1]):
                self.out.append(" ")
            self.out.append(text)

    def push(self, text: str, name: str, file: str = "") -> None:
        """Read a text before the rest of the current one. Raises MacroLoop, naming `name`."""
        self.spend(len(text), name)
        if not file:  # a file that ends with \input stays on the stack, so that cycles are detected
            self.top()
        if len(self.frames) >= self.limits.depth:
            raise MacroLoop(name, self.origin)
        if text:
            self.frames.append(Frame(text, file=file, origin="" if file else self.origin))

    def spend(self, characters: int, name: str) -> None:
        """Charge characters to the budget. Raises MacroLoop, naming `name`, when it is spent."""
        self._budget -= characters + _EXPANSION_COST
        if self._budget < 0:
            raise MacroLoop(name, self.origin)

    def top(self) -> Frame | None:
        """The current text, after finished ones are removed from the stack."""
        while self.frames and self.frames[-1].at >= len(self.frames[-1].text):
            self.frames.pop()
        return self.frames[-1] if self.frames else None

    def skip_space(self) -> Frame | None:
        """The current text, at the next character that is not a space."""
        while frame := self.top():
            frame.at = end_of(_SPACE, frame.text, frame.at)
            if frame.at < len(frame.text):
                break
        return frame

    def accept(self, character: str) -> bool:
        """Read a character if it comes next; return whether it did."""
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
        if text[start] == "}":  # the surrounding group ends: an argument is missing
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
        """The text up to a delimiter outside of braces, which is consumed; None if there is none."""
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
            if match[1] == "csname":
                return (self.until("\\endcsname") or "").strip()
        return match[1] if match else ""

    def end_line(self) -> None:
        """Skip the rest of a definition's line, if nothing else is on the line."""
        frame = self.top()
        if frame and (not self.out or self.out[-1].rstrip(" \t").endswith("\n")):
            rest = _BLANK_REST.match(frame.text, frame.at)
            frame.at = rest.end() if rest else frame.at


def after_word(text: str, at: int) -> int:
    """Where reading continues after a command of letters: past the spaces and one line break after it."""
    return end_of(_AFTER_WORD, text, at)


def end_of(pattern: re.Pattern[str], text: str, start: int) -> int:
    """The end of a match that cannot fail, because the pattern matches the empty string."""
    match = pattern.match(text, start)
    assert match
    return match.end()
