"""A conversation in the terminal with a base model: it goes on from everything said so far.

A base model has learned to continue texts, not to follow instructions, so a turn is a continuation: the
text so far, the line typed, and the model's own words after it.
"""

from collections.abc import Callable

from puna.config import Sampling
from puna.generate.engine import Engine

HELP = """\
/help   this text
/new    forget the text so far
/quit   leave (also Ctrl-D); Ctrl-C stops an answer
Anything else is added to the text, and the model goes on from there."""


def chat(
    engine: Engine,
    sampling: Sampling,
    max_tokens: int,
    read: Callable[[str], str] = input,
    write: Callable[[str], None] = lambda text: print(text, end="", flush=True),
) -> None:
    """Read lines and stream continuations until /quit or the end of input."""
    write(f"{HELP}\n")
    text = ""
    while True:
        try:
            line = read("\n> ")
        except (EOFError, KeyboardInterrupt):
            write("\n")
            return
        command = line.strip()
        if command == "/quit":
            return
        if command == "/help":
            write(f"{HELP}\n")
        elif command == "/new":
            text = ""
        elif command.startswith("/"):
            write(f"no command {command}; /help lists them\n")
        elif command:
            text = _turn(engine, sampling, max_tokens, text, line, write)


def _turn(
    engine: Engine,
    sampling: Sampling,
    max_tokens: int,
    text: str,
    line: str,
    write: Callable[[str], None],
) -> str:
    """Answer one line; gives the text so far, answer included."""
    text = f"{text}\n{line}" if text else line
    # The oldest text goes first when the context is full: keep what leaves room for an answer.
    room = max(1, engine.context - max_tokens - 1)
    ids = engine.tokenizer.encode(text)
    prompt = text if len(ids) <= room else engine.tokenizer.decode(ids[-room:])
    answer = ""
    try:
        for piece in engine.stream(prompt, sampling, max_tokens):
            answer += piece
            write(piece)
    except KeyboardInterrupt:
        write(" [stopped]")
    except ValueError as error:  # a line that alone fills the context
        write(f"{error}")
        return ""
    write("\n")
    return text + answer
