"""How `--help` looks: descriptions in whole lines, defaults as they are typed."""

import re
from typing import Any

from cyclopts.help import DefaultFormatter


class WholeLines(DefaultFormatter):
    """Breaks descriptions where the terminal ends, not where a docstring does."""

    def __call__(self, console: Any, options: Any, panel: Any) -> None:
        """Print one panel."""
        for entry in panel.entries:
            if text := getattr(entry.description, "primary_renderable", None):
                text.plain = re.sub(r"(?<!\n) *\n *(?!\n)", " ", text.plain)
        super().__call__(console, options, panel)


def typed(default: Any) -> str | None:
    """A default as it is typed; None, which shows nothing, where there is none or a switch is off."""
    if isinstance(default, bool):
        return "on; =false turns it off" if default else None
    if isinstance(default, tuple | list | dict):
        return " ".join(map(str, default)) or None
    return None if default is None else str(default) or None
