"""Chat templates rendered in a process of their own: (template, values) -> text, within limits.

A template is a program out of a downloaded file. Jinja's sandbox gives it no way to anything but its values,
but nothing in Python ends `{{ 10 ** (10 ** 10) }}`, which holds the interpreter in one call, or gives back
the memory of a text that was doubled forty times. Here the operating system does: a template that uses more
than CPU_SECONDS or MEMORY ends with its process, and the next render starts another.

    Renderer ── {"source", "items": [[values, limit], …]}\\n ──> this file as a script
             <── [{"text"} or {"error"}, …]\\n ──

The names that a template is given, and its filters, are those that transformers gives.
"""

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError
from jinja2.environment import Template
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

CPU_SECONDS = 1.0
WALL_SECONDS = 30.0  # where the machine is so busy that the process hardly runs
MEMORY = 512 << 20  # bytes of address space
MAX_OUTPUT = 16 << 20  # characters
Item = tuple[Mapping[str, Any] | None, int]  # values, None to compile alone; limit in characters


# ---- in the process of the caller ---------------------------------------------------------------


class Renderer:
    """The process, started when it is first needed and again when it has ended. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def check(self, source: str) -> None:
        """Compile a template.

        Raises:
            ValueError: when it is not valid.
        """
        self.render(source, None, 0)

    def render(self, source: str, values: Mapping[str, Any] | None, limit: int = MAX_OUTPUT) -> str:
        """The text of a template with these values, of at most `limit` characters.

        Raises:
            ValueError: in one line, whatever the template did.
        """
        (text,) = self._replies(source, [(values, limit)])
        if isinstance(text, ValueError):
            raise text
        return text

    def render_all(self, source: str, items: Sequence[Item]) -> list[str | ValueError]:
        """As `render`, for many values in one exchange with the process; an error takes its text's place."""
        try:
            return self._replies(source, items)
        except ValueError as error:
            if len(items) == 1:
                return [error]
            # One of them ended the process; each alone shows which.
            return [reply for item in items for reply in self.render_all(source, [item])]

    def _replies(self, source: str, items: Sequence[Item]) -> list[str | ValueError]:
        data = json.dumps({"source": source, "items": items}).encode() + b"\n"
        with self._lock:
            reply = self._exchange(self._running(), data)
            if reply is None:
                self._stop()
                raise ValueError(
                    f"it did not end within {CPU_SECONDS:g} s of CPU time and {MEMORY >> 20} MB of memory"
                )
        answers = json.loads(reply)
        return [answer["text"] if "text" in answer else ValueError(answer["error"]) for answer in answers]

    def _running(self) -> subprocess.Popen[bytes]:
        # After a fork the pipes belong to the parent as well.
        if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
            # -P: this file's directory is not searched for modules.
            command = [sys.executable, "-P", __file__]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
            self._owner = os.getpid()
            weakref.finalize(self, _end, self._process)
        return self._process

    def _exchange(self, process: subprocess.Popen[bytes], data: bytes) -> bytes | None:
        """A line out, a line in; None when the process ended or did not answer."""
        assert process.stdin is not None and process.stdout is not None
        deadline = time.monotonic() + WALL_SECONDS
        try:
            process.stdin.write(data)
            process.stdin.flush()
        except BrokenPipeError:
            return None
        reply = bytearray()
        while not reply.endswith(b"\n"):
            wait = deadline - time.monotonic()
            if wait <= 0 or not select.select([process.stdout], [], [], wait)[0]:
                return None
            block = os.read(process.stdout.fileno(), 1 << 20)
            if not block:
                return None
            reply += block
        return bytes(reply)

    def _stop(self) -> None:
        if self._process is not None:
            _end(self._process)
            self._process = None


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


RENDERER = Renderer()


# ---- in the process that renders ----------------------------------------------------------------


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}`: marks the assistant's words for training; here only text."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> CallBlock:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        block = CallBlock(self.call_method("_text"), [], [], body)
        block.set_lineno(line)
        return block

    def _text(self, caller: Callable[[], str]) -> str:
        return caller()


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers has it: text as it is, not escaped for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _now(form: str) -> str:
    from datetime import datetime

    return datetime.now().strftime(form)


def _refuse(message: str) -> None:
    raise TemplateError(message)


@lru_cache(16)
def _compiled(source: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
    return environment.from_string(source)


def _answer(source: str, values: Mapping[str, Any] | None, limit: int) -> dict[str, str]:
    try:
        template = _compiled(source)
        parts, size = [], 0
        for part in () if values is None else template.generate(values):
            parts.append(part)
            size += len(part)
            if size > limit:
                return {"error": f"it writes more than {limit:,} characters"}
        return {"text": "".join(parts)}
    except TemplateSyntaxError as error:
        return {"error": f"line {error.lineno}: {_one_line(error)}"}
    except BaseException as error:  # a template can raise anything, also what is no Exception
        return {"error": _one_line(error)}


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())[:500]
    return (
        text if isinstance(error, TemplateError) and text else f"{type(error).__name__}: {text}".rstrip(": ")
    )


def _serve() -> None:
    import resource

    if sys.platform == "linux":  # elsewhere the limit is not kept, or is more than the process may set
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for line in sys.stdin.buffer:
        request = json.loads(line)
        answers = []
        for values, limit in request["items"]:
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # SIGPROF ends the process, within any call
            answers.append(_answer(request["source"], values, limit))
            signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.buffer.write(json.dumps(answers).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    _serve()
