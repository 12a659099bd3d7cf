"""What the verbs share: how options are written, and how a result is printed."""

import json as json_module
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

STOPPED = 130  # the exit code of what Ctrl-C stopped

Many = Parameter(consume_multiple=True, negative=())
Run = Annotated[Path, Parameter(name="--model")]
Json = Annotated[bool, Parameter(name="--json", help="Print the result as JSON.")]


def print_result(result: dict[str, Any], json: bool, lines: Sequence[str]) -> None:
    """Print a verb's result: the whole of it as JSON, or the lines for a person."""
    print(json_module.dumps(result, ensure_ascii=False) if json else "\n".join(lines))
