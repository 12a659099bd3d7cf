"""The process that renders chat templates: requests on standard input, a line of JSON with texts for each.

Started by rendering.py, with the limits of CPU time and memory as arguments. It imports nothing of puna. The
names that a template is given, and its filters, are those that transformers gives.
"""

import json
import resource
import signal
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError
from jinja2.environment import Template
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


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
    environment.filters["tojson"] = partial(json.dumps, ensure_ascii=False)  # not escaped for HTML
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


def main() -> None:
    """Answer until standard input ends."""
    seconds, memory = float(sys.argv[1]), int(sys.argv[2])
    if sys.platform == "linux":  # elsewhere the limit is not kept, or is more than the process may set
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    for line in sys.stdin.buffer:
        request = json.loads(line)
        answers = []
        for values, limit in request["items"]:
            signal.setitimer(signal.ITIMER_PROF, seconds)  # SIGPROF ends the process, within any call
            answers.append(_answer(request["source"], values, limit))
            signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.buffer.write(json.dumps(answers).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
