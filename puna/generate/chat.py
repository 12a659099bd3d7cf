"""A conversation in the terminal.

    > line typed ──> conversation so far ──template, or plain text──> ids ──engine──> answer, as it comes

A model with a chat template answers as its makers laid conversations out. A base model has learned to
continue texts, not to follow instructions, so a turn is a continuation: the text so far, the line typed, and
the model's own words after it.
"""

import dataclasses
import select
import signal
import sys
import threading
import time
import typing
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from puna.config import Sampling
from puna.files import write_json
from puna.generate.engine import Engine
from puna.generate.request import Finish, Request

HELP = """\
/help              this text
/new               forget the conversation
/undo              take the last line and its answer back
/retry             answer the last line again, with the next seed
/system TEXT       what the model is told before the conversation; alone: show it
/set NAME VALUE    temperature, top-k, top-p, min-p, repetition-penalty, seed, max-tokens; alone: show them
/save FILE         write the conversation as JSON
/quit              leave (also Ctrl-D); Ctrl-C stops an answer
\"\"\"                begins and ends a text of several lines; so does \\ at the end of a line go on
//TEXT             a message that begins with /
"""
_QUOTES = '"""'
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"


class Chat:
    """One conversation. `read` gives a line for a prompt, or raises EOFError; `write` shows a text.

    With `is_terminal` what is not the answer is dim, and each answer ends with its token rate.
    """

    def __init__(
        self,
        engine: Engine,
        sampling: Sampling,
        max_tokens: int,
        read: Callable[[str], str] = input,
        write: Callable[[str], None] = lambda text: print(text, end="", flush=True),
        is_terminal: bool = False,
        system: str = "",
    ) -> None:
        self._engine, self._sampling, self._max_tokens = engine, sampling, max_tokens
        self._read, self._write, self._is_terminal = read, write, is_terminal
        self._turns: list[tuple[str, str]] = []  # what was typed, what was answered
        self._system = ""
        if system:
            self._require_template()
            self._system = system
        self._forgotten = 0  # turns that no longer fit into the context

    def run(self) -> None:
        """Read lines and answer them until /quit or the end of input."""
        kind = "answers" if self._engine.template else "has no chat template: it continues what you write"
        self._note(f"the model {kind}; /help lists the commands\n")
        while True:
            try:
                line = self._line()
            except EOFError:
                self._write("\n")
                return
            except KeyboardInterrupt:  # drops the line that was being typed
                self._write("\n")
                continue
            if line.strip() == "/quit":
                return
            try:
                if line.startswith("//"):
                    self._turn(line[1:])
                elif line.startswith("/"):
                    self._command(*line.strip().partition(" ")[::2])
                elif line.strip():
                    self._turn(line)
            except (ValueError, OSError) as error:
                self._note(f"{error}\n")

    def _line(self) -> str:
        """What was typed: a line, or several between triple quotes or joined by backslashes."""
        line = self._read("\n> ").removeprefix("\ufeff")
        while self._is_terminal and _is_pending():  # lines that were pasted come at once
            line += "\n" + self._read("")
        if line.startswith(_QUOTES):
            line = line.removeprefix(_QUOTES)
            while not line.rstrip().endswith(_QUOTES):
                line += "\n" + self._read(". ")
            return line.rstrip().removesuffix(_QUOTES)
        while line.endswith("\\"):
            line = line.removesuffix("\\") + "\n" + self._read(". ")
        return line

    # ---- commands

    def _command(self, name: str, rest: str) -> None:
        rest = rest.strip()
        if name == "/help":
            self._write(HELP)
        elif name == "/new":
            self._turns, self._forgotten = [], 0
        elif name == "/undo":
            self._undo()
        elif name == "/retry":
            before = list(self._turns)
            self._sampling = dataclasses.replace(self._sampling, seed=self._sampling.seed + 1)
            if not self._turn(self._undo()):
                self._turns = before
        elif name == "/system":
            self._set_system(rest)
        elif name == "/set":
            self._set(*rest.partition(" ")[::2])
        elif name == "/save":
            if not rest:
                raise ValueError("/save needs the name of a file")
            write_json(Path(rest).expanduser(), {"messages": self._messages(self._turns)})
            self._note(f"{len(self._turns)} turns written to {rest}\n")
        else:
            raise ValueError(f"no command {name}; /help lists them")

    def _undo(self) -> str:
        """Take the last turn back; the line that was typed."""
        if not self._turns:
            raise ValueError("there is nothing to take back")
        self._forgotten = min(self._forgotten, len(self._turns) - 1)
        return self._turns.pop()[0]

    def _set_system(self, text: str) -> None:
        self._require_template()
        if text:
            self._system = text
        self._note(f"{self._system or 'the model is told nothing beforehand'}\n")

    def _require_template(self) -> None:
        if self._engine.template is None:
            raise ValueError("this model has no chat template, and so no place for a system text")

    def _set(self, name: str, value: str) -> None:
        options = {field.name.replace("_", "-"): field.name for field in dataclasses.fields(Sampling)}
        if name:
            value = value.strip()
            if name not in (*options, "max-tokens"):
                raise ValueError(f"/set knows {', '.join(options)} and max-tokens, not {name}")
            kind = int if name == "max-tokens" else typing.get_type_hints(Sampling)[options[name]]
            try:
                number = kind(value)
            except ValueError as error:
                raise ValueError(f"{name} is {value!r}; it must be a number") from error
            if name == "max-tokens":
                if number < 1:
                    raise ValueError(f"max-tokens is {number}; it must be positive")
                self._max_tokens = number
            else:
                sampling = dataclasses.replace(self._sampling, **{options[name]: number})
                sampling.validate()
                self._sampling = sampling
        shown = [f"{name} {getattr(self._sampling, field)}" for name, field in options.items()]
        self._note(", ".join([*shown, f"max-tokens {self._max_tokens}"]) + "\n")

    # ---- turns

    def _turn(self, line: str) -> bool:
        """Answer a line. A line without an answer is no turn, for templates expect one after the other.

        Returns whether there was an answer.
        """
        prompt = self._prompt(line)
        request = Request(tuple(prompt), self._sampling, self._max_tokens)
        before, answer = len(self._turns), ""
        for answer in self._answer(request):
            self._turns[before:] = [(line, answer)]
        if not answer.strip():
            del self._turns[before:]
            self._note("[no answer: the line is forgotten]\n")
        return bool(answer.strip())

    def _prompt(self, line: str) -> list[int]:
        """The ids of the conversation with a new line: its oldest turns fall off when they do not fit.

        Raises:
            ValueError: when the line alone leaves no room for an answer.
        """
        room = self._engine.context - min(self._max_tokens, self._engine.context // 2)
        while True:
            ids = self._encode([*self._turns[self._forgotten :], (line, "")])
            if len(ids) <= room or self._forgotten == len(self._turns):
                break
            self._forgotten += 1
            turns = "turn is" if self._forgotten == 1 else f"{self._forgotten} turns are"
            self._note(f"the context of {self._engine.context} tokens is full: the first {turns} forgotten\n")
        self._engine.check(Request(tuple(ids), self._sampling, self._max_tokens))
        return ids

    def _encode(self, turns: list[tuple[str, str]]) -> list[int]:
        if self._engine.template:
            return self._engine.template.encode(self._messages(turns))
        return self._engine.encode("\n".join(line + answer for line, answer in turns))

    def _messages(self, turns: list[tuple[str, str]]) -> list[dict[str, str]]:
        messages = [{"role": "system", "content": self._system}] if self._system else []
        for line, answer in turns:
            messages.append({"role": "user", "content": line})
            if answer:
                messages.append({"role": "assistant", "content": answer})
        return messages

    def _answer(self, request: Request) -> Iterator[str]:
        """Show an answer as it comes; gives what there is of it, each time longer."""
        answer, count, finish = "", 0, None
        began = first = time.monotonic()
        with _ctrl_c() as is_stopped, closing(self._engine.answers([request], is_stopped)) as chunks:
            for _, chunk in chunks:
                first = time.monotonic() if not count else first
                count += len(chunk.tokens)
                answer, finish = answer + chunk.text, chunk.finish
                self._write(_printable(chunk.text))
                yield answer
                if is_stopped():
                    break
        if finish is None:
            self._note(" [stopped]")
        self._write("\n")
        if self._is_terminal:
            self._note(_rate(count, first - began, time.monotonic() - first, finish))

    def _note(self, text: str) -> None:
        self._write(f"{_DIM}{text}{_PLAIN}" if self._is_terminal else text)


def _is_pending() -> bool:
    """Whether more was typed than the line that was read: within a paste there is no pause."""
    try:
        return sys.stdin.isatty() and bool(select.select([sys.stdin], [], [], 0.02)[0])
    except (OSError, ValueError):  # no file that can be waited for
        return False


def _rate(count: int, waited: float, seconds: float, finish: Finish | None) -> str:
    rate = f"{(count - 1) / seconds:.0f} tokens/s, " if count > 1 and seconds > 0 else ""
    end = "; ended by max-tokens" if finish == "length" else ""
    return f"[{count} tokens, {rate}the first after {waited:.2f} s{end}]\n"


def _printable(text: str) -> str:
    """A model's text without what would command the terminal."""
    return "".join(c if c in "\n\t" or c.isprintable() or ord(c) > 0x9F else "\ufffd" for c in text)


@contextmanager
def _ctrl_c() -> Iterator[Callable[[], bool]]:
    """Within, Ctrl-C is only noted, so that the engine is left between two steps; a second one raises."""
    stopped = threading.Event()

    def note(*_: object) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()

    if threading.current_thread() is not threading.main_thread():
        yield stopped.is_set
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield stopped.is_set
    finally:
        signal.signal(signal.SIGINT, before)
