"""Superscripts and subscripts as plain text, so that 10<sup>23</sup> is not read as 1023.

In:  text with a private mark before and after each of them.
Out: 10^23 and log_2 8, but H2O and 19th.
"""

import re

SUPERSCRIPT, SUBSCRIPT, SHIFT_END = "\ue005", "\ue006", "\ue007"
_OTHER_MARKS = re.compile("[\ue002-\ue004]")  # those of wikipedia/wikitext_tidy.py
_SHIFTED = re.compile(
    f"([{SUPERSCRIPT}{SUBSCRIPT}])([^{SUPERSCRIPT}{SUBSCRIPT}{SHIFT_END}]*)(?={SHIFT_END}(.?))", re.DOTALL
)
_BEFORE_SHIFT = re.compile(f"[\\w)\\]{SHIFT_END}\U000f0000-\U0010fffd]")
_SHIFTS = re.compile(f"[{SUPERSCRIPT}{SUBSCRIPT}{SHIFT_END}]")
_EXPONENT = re.compile(r"[+\-−–±]?\d[\d.,/]*[+\-−–]?|[+\-−–]|[ijknxyzT*]")


def shifted(text: str) -> str:
    """Superscripts and subscripts as plain text: 10^23 and log_2 8, but H2O and 19th."""
    n_found = 1
    while n_found:  # inner ones first
        text, n_found = _SHIFTED.subn(_on_the_line, text)
    return _SHIFTS.sub("", text)


def _on_the_line(match: re.Match[str]) -> str:
    kind, body, after = match.groups()
    before = match.string[match.start() - 1] if match.start() else ""
    body = _OTHER_MARKS.sub("", body).strip()
    if not body or not _BEFORE_SHIFT.match(before):
        return body
    if kind == SUPERSCRIPT:
        mark = "^" if _EXPONENT.fullmatch(body) or (body[0].isdigit() and before.isdigit()) else ""
    else:
        mark = (
            "_" if body[0].isdigit() and (before.isdigit() or before == SHIFT_END or after.isdigit()) else ""
        )
    space = " " if body[-1].isdigit() and after.isdigit() else ""
    return f"{mark}{body}{space}"
