"""Conditions of LaTeX: `\\newif`, the booleans of ifthen, the toggles of etoolbox, `\\@ifnextchar`.

In:  a condition or a switch, where the reader meets it.
Out: the branch that holds is read next; a condition that only TeX can decide stays in the text.

    \\newif\\ifdraft \\drafttrue    nothing;  known: ifdraft -> the condition, with its value True
    \\ifdraft a\\else b\\fi         a
    \\ifodd\\value{page} a\\fi      unchanged
"""

import re
from collections.abc import Mapping
from functools import partial

from puna.corpus.arxiv.tex_reader import CONTROL, Action, Macro, MacroLimits, Reader, after_word

_IF_CHARACTERS = re.compile(r"\s*([A-Za-z0-9])([^\\{}])")
_TWO_NAMES = re.compile(r"\\([A-Za-z@]+)\s*\\([A-Za-z@]+)\s?")
_UNDEFINED = frozenset(("undefined", "@undefined"))
_DEFINED = re.compile(r"\\([A-Za-z@]+)\s?|([A-Za-z@]+)\\endcsname\s?")
_CONDITIONAL = re.compile(
    r"if(?:|x|num|dim|odd|case|cat|[mhv]mode|inner|void|[hv]box|eof|true|false|defined|csname|fontchar|pdf|"
    r"luatex|xetex|PDFTeX|XeTeX|LuaTeX|CLASS\w*|@\w+)"
)
_BOOLEAN = re.compile(r"\\boolean\s*\{([^{}]*)\}")
_EQUAL = re.compile(r"\\equal\s*\{([^{}\\]*)\}\s*\{([^{}\\]*)\}")
_TEST_WORD = re.compile(r"True|False|None|\\(?:not|NOT|and|AND|or|OR)(?![A-Za-z])|\\[()]")


class Conditions(Reader):
    """The part of the expander that decides conditions. `_known` holds them by name, with their value."""

    def __init__(self, limits: MacroLimits) -> None:
        super().__init__(limits)
        self._written = ""  # the current control sequence, as written in the text
        self._actions: Mapping[str, Action] = {}
        self._known: dict[str, Macro | Action] = {}

    def condition_actions(self) -> dict[Action, str]:
        """The actions of this class, each with the names of its control sequences."""
        return {
            self._newif: "newif",
            partial(self._condition, True): "iftrue",
            partial(self._condition, False): "iffalse",
            self._if: "if",
            self._ifx: "ifx",
            self._if_defined: "ifdefined ifcsname",
            self._unless: "unless",
            self._if_next: "@ifnextchar kernel@ifnextchar",
            self._if_star: "@ifstar",
            partial(self._new_switch, "if"): "newboolean provideboolean newbool providebool",
            partial(self._new_switch, "toggle "): "newtoggle providetoggle",
            partial(self._set_switch, "if"): "setboolean setbool",
            partial(self._set_switch, "toggle "): "settoggle",
            partial(self._set_switch, "if", "true"): "booltrue",
            partial(self._set_switch, "if", "false"): "boolfalse",
            partial(self._set_switch, "toggle ", "true"): "toggletrue",
            partial(self._set_switch, "toggle ", "false"): "togglefalse",
            partial(self._if_switch, "if"): "ifbool",
            partial(self._if_switch, "if", False): "notbool",
            partial(self._if_switch, "toggle "): "iftoggle",
            partial(self._if_switch, "toggle ", False): "nottoggle",
            self._if_then_else: "ifthenelse",
        }

    def _newif(self) -> None:
        name = self.name()
        if name.startswith("if") and len(name) > 2 and name not in self._actions:
            self._known[f"{name[2:]}true"] = partial(self._set_condition, name, True)
            self._known[f"{name[2:]}false"] = partial(self._set_condition, name, False)
            self._set_condition(name, False)
        else:
            self.end_line()

    def _set_condition(self, name: str, value: bool) -> None:
        self._known[name] = partial(self._condition, value)
        self.end_line()

    def _if(self) -> None:
        """`\\if` of two characters, as in `\\if0 ... \\fi`; any other comparison is left as it is."""
        frame = self.top()
        if frame and (match := _IF_CHARACTERS.match(frame.text, frame.at)):
            frame.at = match.end()
            self._condition(match[1] == match[2])
        else:
            self.emit(self._written)

    def _ifx(self) -> None:
        """`\\ifx` of two of the paper's macros, or of one and `\\undefined`; others are left as they are."""
        frame = self.top()
        if not frame or not (match := _TWO_NAMES.match(frame.text, frame.at)):
            self.emit(self._written)
            return
        frame.at = match.end()
        one, two = (self._known.get(name) for name in match.groups())
        if _UNDEFINED.isdisjoint(match.groups()):
            value = one == two if isinstance(one, Macro) and isinstance(two, Macro) else None
        else:
            value = False if one or two else None
        self._condition(value) if value is not None else self.emit(self._written + match[0])

    def _if_defined(self) -> None:
        """`\\ifdefined` and `\\ifcsname` of a name that the paper defines."""
        frame, written = self.top(), self._written
        if not frame or not (match := _DEFINED.match(frame.text, frame.at)):
            self.emit(written)
            return
        frame.at = match.end()
        if (match[1] or match[2]) in self._known:
            self._condition(True)
        else:
            self.emit(written + match[0])

    def _unless(self) -> None:
        """The opposite of the condition that follows."""
        frame = self.top()
        match = CONTROL.match(frame.text, frame.at) if frame else None
        value = self._switch("", match[1]) if match else None
        if not frame or not match or value is None:
            self.emit(self._written)
            return
        frame.at = after_word(frame.text, match.end())
        self._condition(not value)

    def _condition(self, value: bool) -> None:
        """Continue in the branch that holds. Without a `\\fi` only the condition itself is removed."""
        if not (frame := self.top()):
            return
        start, text = frame.at, frame.text
        bounds, depth = [start], 0
        for match in CONTROL.finditer(text, start):
            name = match[1]
            if name == "fi":
                if depth == 0:
                    bounds.append(match.start())
                    frame.at = after_word(text, match.end())
                    break
                depth -= 1
            elif name == "else" and depth == 0:
                bounds += match.start(), after_word(text, match.end())
            elif self._is_conditional(name):
                depth += 1
        else:
            self.spend(len(text) - start, "if")
            return
        self.spend(frame.at - start, "if")
        chosen = bounds[0:2] if value else bounds[2:4]
        if chosen:
            self.push(text[chosen[0] : chosen[1]], "if", frame.file)

    def _is_conditional(self, name: str) -> bool:
        if not name.startswith("if"):
            return False
        meaning = self._known.get(name)
        own = isinstance(meaning, partial) and meaning.func == self._condition
        return own or bool(_CONDITIONAL.fullmatch(name))

    # Toggles (etoolbox) and booleans (ifthen) are stored as conditions: a boolean `x` is TeX's `\\ifx`.

    def _new_switch(self, kind: str) -> None:
        name = self.argument().strip()
        if self._switch(kind, name) is None:
            self._set_condition(kind + name, False)
        else:
            self.end_line()

    def _set_switch(self, kind: str, value: str = "") -> None:
        name, given = self.argument().strip(), value or self.argument().strip()
        if given in ("true", "false"):
            self._set_condition(kind + name, given == "true")

    def _switch(self, kind: str, name: str) -> bool | None:
        """The value of a switch that the paper sets, or None."""
        meaning = self._known.get(kind + name)
        if not isinstance(meaning, partial) or meaning.func != self._condition:
            return None
        return bool(meaning.args[0])

    def _if_switch(self, kind: str, wanted: bool = True) -> None:
        written = self._written
        name = self.argument()
        value = self._switch(kind, name.strip())
        if value is None:  # the paper does not define it
            self.emit(f"{written}{{{name}}}")
            return
        self._choose(value == wanted)

    def _choose(self, value: bool) -> None:
        """Continue in the first or the second of two arguments."""
        frame = self.top()
        yes, no = self.argument(), self.argument()
        self.push(yes if value else no, "if", frame.file if frame else "")

    def _if_then_else(self) -> None:
        written = self._written
        test = self.argument()
        value = self._test(test)
        if value is None:
            self.emit(f"{written}{{{test}}}")
            return
        self._choose(value)

    def _test(self, test: str) -> bool | None:
        """The value of an ifthen test, or None where the paper alone does not decide it."""
        decided = _BOOLEAN.sub(lambda match: _named(self._switch("if", match[1].strip())), test)
        decided = _EQUAL.sub(lambda match: _named(match[1].strip() == match[2].strip()), decided)
        words = _TEST_WORD.findall(decided)
        if "".join(words) != "".join(decided.split()) or "None" in words:
            return None
        return _value_of_test(words)

    def _if_next(self) -> None:
        """`\\@ifnextchar x{yes}{no}`."""
        wanted, yes, no = self.argument(), self.argument(), self.argument()
        frame = self.skip_space()
        following = frame.text[frame.at] if frame else ""
        self.push(yes if following == {"\\bgroup": "{"}.get(wanted, wanted) else no, "@ifnextchar")

    def _if_star(self) -> None:
        yes, no = self.argument(), self.argument()
        self.push(yes if self.accept("*") else no, "@ifstar")


def _named(value: bool | None) -> str:
    return f" {value} "


def _value_of_test(words: list[str]) -> bool | None:
    """`\\not`, then `\\and` and `\\or` from left to right, as ifthen has it; None when malformed."""
    values: list[bool] = []
    operator, negated = "", False
    words = list(words)
    while words:
        word = words.pop(0).lower()
        if word == "\\not":
            negated = not negated
        elif word in ("\\and", "\\or"):
            operator = word
        elif word == "\\)":
            return None
        else:
            if word == "\\(":
                if "\\)" not in words:
                    return None
                close = (
                    len(words) - 1 - words[::-1].index("\\)") if words.count("\\(") else words.index("\\)")
                )
                value, words = _value_of_test(words[:close]), words[close + 1 :]
                if value is None:
                    return None
            else:
                value = word == "true"
            value = value != negated
            negated = False
            if values:
                value = (values[-1] and value) if operator == "\\and" else (values[-1] or value)
            values.append(value)
    return values[-1] if values else None
