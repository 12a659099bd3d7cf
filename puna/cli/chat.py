"""The verb chat: a conversation in the terminal.

    > line typed ──> conversation so far ──chat template, or plain text──> ids ──engine──> answer, streamed

With a chat template, messages are laid out as the model was trained to read them. Without one (a base model),
each answer is a continuation of the whole text: what was typed and generated so far, and the new line.
"""

import dataclasses
import importlib.util
import select
import signal
import sys
import threading
import time
import typing
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from puna.cli.common import Draws, Model
from puna.config import Sampling
from puna.files import atomic_file, cache_dir, write_json
from puna.generate.request import Finish, Request

if TYPE_CHECKING:
    from puna.generate.engine import Engine

HELP = """\
/help              show this text
/new               start a new conversation
/undo              remove the last message and its answer
/retry             answer the last message again, with the next seed
/system TEXT       set the system prompt; without TEXT: show it
/set NAME VALUE    set temperature, top-k, top-p, min-p, repetition-penalty, seed, max-tokens; alone: show all
/save FILE         write the conversation as JSON
/quit              quit (also Ctrl-D); Ctrl-C stops an answer
\"\"\"                begins and ends a message of several lines; a \\ at the end of a line also continues it
//TEXT             send a message that begins with /
"""
_QUOTES = '"""'
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"


def chat(
    *,
    model: Model,
    max_tokens: int = 512,
    sampling: Draws = Sampling(),  # noqa: B008 (frozen)
    system: str = "",
) -> int:
    """Chat with a model in the terminal.

    Parameters
    ----------
    max_tokens
        Maximum number of tokens per answer.
    system
        System prompt; needs a model with a chat template.
    """
    sampling.validate()
    if max_tokens < 1:
        raise ValueError(f"max-tokens is {max_tokens}; it must be positive")
    engine = model.load(max_batch=1)
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    with _history(is_terminal):
        Chat(engine, sampling, max_tokens, is_terminal=is_terminal, system=system).run()
    return 0


@contextmanager
def _history(is_terminal: bool) -> Iterator[None]:
    """Lines typed in earlier conversations, for the arrow keys; saved in the cache directory."""
    if not is_terminal or importlib.util.find_spec("readline") is None:  # Windows has none
        yield
        return
    import readline

    file = cache_dir() / "chat-history"
    with suppress(OSError):  # there is none yet, or it cannot be read
        readline.read_history_file(file)
    readline.set_history_length(1000)
    try:
        yield
    finally:
        try:
            with atomic_file(file) as temporary:
                readline.write_history_file(temporary)
        except OSError as error:
            print(f"the lines for the arrow keys were not saved: {error}", file=sys.stderr)


class Chat:
    """One conversation. `read` returns a line for a prompt, or raises EOFError; `write` prints text.

    With `is_terminal`, everything but the answers is dim, and each answer is followed by its token rate.
    """

    def __init__(
        self,
        engine: "Engine",
        sampling: Sampling,
        max_tokens: int,
        read: Callable[[str], str] = input,
        write: Callable[[str], None] = lambda text: print(text, end="", flush=True),
        is_terminal: bool = False,
        system: str = "",
    ) -> None:
        self._engine, self._sampling, self._max_tokens = engine, sampling, max_tokens
        self._read, self._write, self._is_terminal = read, write, is_terminal
        self._turns: list[tuple[str, str]] = []  # each message and its answer
        self._system = ""
        if system:
            self._require_template()
            self._system = system
        self._forgotten = 0  # oldest turns that no longer fit into the context

    def run(self) -> None:
        """Read lines and answer them until /quit or the end of input."""
        note = "" if self._engine.template else "the model has no chat template: it continues your text; "
        self._note(f"{note}/help lists the commands\n")
        while True:
            try:
                line = self._line()
            except EOFError:
                self._write("\n")
                return
            except KeyboardInterrupt:  # discards the line being typed
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
        """Read a message: one line, or several in triple quotes or joined by backslashes."""
        line = self._read("\n> ").removeprefix("\ufeff")
        while self._is_terminal and _is_pending():  # further lines of a paste are there at once
            line += "\n" + self._read("")
        is_quoted, line = line.startswith(_QUOTES), line.removeprefix(_QUOTES)
        with suppress(EOFError):  # the end of the input ends the message too
            while not line.rstrip().endswith(_QUOTES) if is_quoted else line.endswith("\\"):
                line = (line if is_quoted else line.removesuffix("\\")) + "\n" + self._read(". ")
        return line.rstrip().removesuffix(_QUOTES) if is_quoted else line

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
            before, is_answered = list(self._turns), False
            message = self._undo()
            self._sampling = dataclasses.replace(self._sampling, seed=self._sampling.seed + 1)
            try:
                is_answered = self._turn(message)
            finally:
                self._turns = self._turns if is_answered else before
        elif name == "/system":
            self._set_system(rest)
        elif name == "/set":
            self._set(*rest.partition(" ")[::2])
        elif name == "/save":
            if not rest:
                raise ValueError("/save needs a file name")
            write_json(Path(rest).expanduser(), {"messages": self._messages(self._turns)})
            self._note(f"{len(self._turns)} turns written to {rest}\n")
        else:
            raise ValueError(f"unknown command {name}; /help lists the commands")

    def _undo(self) -> str:
        """Remove the last turn and return its message."""
        if not self._turns:
            raise ValueError("there is no message to remove")
        self._forgotten = min(self._forgotten, len(self._turns) - 1)
        return self._turns.pop()[0]

    def _set_system(self, text: str) -> None:
        self._require_template()
        if text:
            self._system = text
        self._note(f"{self._system or 'no system prompt is set'}\n")

    def _require_template(self) -> None:
        if self._engine.template is None:
            raise ValueError("this model has no chat template; it does not support a system prompt")

    def _set(self, name: str, value: str) -> None:
        options = {field.name.replace("_", "-"): field.name for field in dataclasses.fields(Sampling)}
        if name:
            value = value.strip()
            if name not in (*options, "max-tokens"):
                raise ValueError(f"unknown option {name}; /set takes {', '.join(options)} and max-tokens")
            kind = int if name == "max-tokens" else typing.get_type_hints(Sampling)[options[name]]
            try:
                number = kind(value)
            except ValueError as error:
                raise ValueError(f"{name} is {value!r}; expected a number") from error
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
        """Answer a message; returns whether there was an answer.

        A message without one is forgotten: chat templates expect messages and answers to alternate.
        """
        prompt = self._prompt(line)
        request = Request(tuple(prompt), self._sampling, self._max_tokens)
        before, answer = len(self._turns), ""
        for answer in self._answer(request):
            self._turns[before:] = [(line, answer)]
        if not answer.strip():
            del self._turns[before:]
            self._note("[the answer is empty: the message is removed]\n")
        return bool(answer.strip())

    def _prompt(self, line: str) -> list[int]:
        """The token ids of the conversation with a new message, without the oldest turns if they do not fit.

        Raises:
            ValueError: when the message alone leaves no room for an answer.
        """
        budget = self._engine.context - min(self._max_tokens, self._engine.context // 2)
        while True:
            ids = self._encode([*self._turns[self._forgotten :], (line, "")])
            if len(ids) <= budget or self._forgotten == len(self._turns):
                break
            self._forgotten += 1
            turns = "oldest turn is" if self._forgotten == 1 else f"{self._forgotten} oldest turns are"
            self._note(f"the context of {self._engine.context} tokens is full: the {turns} dropped\n")
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
        """Print an answer as it is generated; yields the text so far after each chunk."""
        answer, count, finish = "", 0, None
        began = first = time.monotonic()
        with _ctrl_c() as is_stopped, closing(self._engine.answers([request], is_stopped)) as chunks:
            for _, chunk in chunks:
                first = time.monotonic() if not count else first
                count += len(chunk.tokens)
                answer, finish = answer + chunk.text, chunk.finish
                self._write(printable(chunk.text))
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
    """Whether further input is waiting: the lines of a paste arrive without a pause."""
    try:
        return sys.stdin.isatty() and bool(select.select([sys.stdin], [], [], 0.02)[0])
    except (OSError, ValueError):  # standard input is not a file that can be polled
        return False


def _rate(count: int, waited: float, seconds: float, finish: Finish | None) -> str:
    rate = f"{(count - 1) / seconds:.0f} tokens/s, " if count > 1 and seconds > 0 else ""
    end = "; stopped at max-tokens" if finish == "length" else ""
    return f"[{count} tokens, {rate}first after {waited:.2f} s{end}]\n"


def printable(text: str) -> str:
    """A model's text without control characters, which could command the terminal."""
    return "".join(c if c in "\n\t" or c.isprintable() or ord(c) > 0x9F else "\ufffd" for c in text)


@contextmanager
def _ctrl_c() -> Iterator[Callable[[], bool]]:
    """Within, a first Ctrl-C sets a flag, so that the engine stops between two steps; a second raises."""
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
