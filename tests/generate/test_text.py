"""The text of an answer: whole characters, nothing of a stop string, however tokens divide it."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from puna.generate.lookup import Drafts
from puna.generate.text import AnswerText


class Bytes:
    """A decoder whose tokens are parts of a text, cut anywhere, also within characters."""

    def __init__(self, parts: list[bytes]) -> None:
        import codecs

        self._parts, self._utf8 = parts, codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int) -> str:
        return self._utf8.decode(self._parts[id])

    def flush(self) -> str:
        return self._utf8.decode(b"", final=True)


def shown(parts: list[bytes], stop: list[str]) -> tuple[list[str], bool]:
    text = AnswerText(Bytes(parts), stop)  # type: ignore[arg-type]
    pieces = []
    for id in range(len(parts)):
        pieces.append(text.push(id))
        if text.stopped:
            break
    return [*pieces, text.finish()], text.stopped


words = st.text(alphabet="abé🦙", max_size=30)
stops = st.lists(st.text(alphabet="abé🦙", min_size=1, max_size=4), max_size=3)


@given(text=words, stop=stops, cuts=st.lists(st.integers(0, 100), max_size=10))
def test_an_answer_ends_before_the_stop_string_that_is_complete_first(text, stop, cuts):
    data = text.encode()
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    parts = [data[start:end] for start, end in pairwise(places)]
    pieces, stopped = shown(parts, stop)
    expected, ends = text, False
    for end in range(1, len(text) + 1):
        found = [text[:end].removesuffix(word) for word in stop if text[:end].endswith(word)]
        if found:
            expected, ends = min(found, key=len), True
            break
    assert "".join(pieces) == expected
    assert stopped == ends
    assert "\ufffd" not in "".join(pieces)


def test_what_may_begin_a_stop_string_is_held_back():
    pieces, _ = shown([b"ab", b"c", b"d", b"ab", b"x"], ["abcx"])
    assert pieces == ["", "", "abcd", "", "abx", ""]


def test_an_unfinished_character_is_shown_as_one_at_the_end():
    assert shown([b"a", "é".encode()[:1]], [])[0] == ["a", "", "\ufffd"]


@given(tokens=st.lists(st.integers(0, 3), max_size=40), length=st.integers(1, 6))
def test_a_draft_is_what_followed_the_longest_ending_last(tokens, length):
    expected = []
    for n in (4, 3, 2):
        starts = [start for start in range(len(tokens) - n) if tokens[start : start + n] == tokens[-n:]]
        if starts:
            expected = tokens[starts[-1] + n : starts[-1] + n + length]
            break
    assert Drafts(tokens).draft(length) == expected
