"""Chat templates rendered in a process of their own: (template, values) -> text, within limits.

A template is a program out of a downloaded file. Jinja's sandbox gives it no way to anything but its values,
but nothing in Python ends `{{ 10 ** (10 ** 10) }}`, which holds the interpreter in one call, or gives back
the memory of a text that was doubled forty times. Here the operating system does: a template that uses more
than CPU_SECONDS or MEMORY ends with its process, and the next render starts another.

    Renderer ── {"source", "items": [[values, limit], …]}\\n ──> rendering_child.py
             <── [{"text"} or {"error"}, …]\\n ──
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from puna.child import Child

CPU_SECONDS = 1.0
WALL_SECONDS = 30.0  # where the machine is so busy that the process hardly runs
MEMORY = 512 << 20  # bytes of address space
MAX_OUTPUT = 16 << 20  # characters
Item = tuple[Mapping[str, Any] | None, int]  # values, None to compile alone; limit in characters
_SCRIPT = Path(__file__).with_name("rendering_child.py")


class Renderer:
    """The process that renders; started when it is first needed. Safe from any thread."""

    def __init__(self) -> None:
        # -P: this file's directory is not searched for modules.
        self._child = Child(sys.executable, "-P", str(_SCRIPT), str(CPU_SECONDS), str(MEMORY))

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
        reply = self._child.ask(json.dumps({"source": source, "items": items}).encode(), WALL_SECONDS)
        if reply is None:
            raise ValueError(
                f"it did not end within {CPU_SECONDS:g} s of CPU time and {MEMORY >> 20} MB of memory"
            )
        answers = json.loads(reply)
        return [answer["text"] if "text" in answer else ValueError(answer["error"]) for answer in answers]


RENDERER = Renderer()
