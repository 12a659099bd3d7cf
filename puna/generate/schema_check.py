"""A JSON schema -> a matcher of llguidance; or, within limits of time and memory, why there is none.

    check(schema) ── schema ──> this file as a script: compiles it
                  <── error ──

A few hundred bytes of schema can take llguidance minutes to compile (an intersection of patterns), in one
call that nothing interrupts. So a separate process compiles each schema first, and the operating system ends
it after CPU_SECONDS. The cost of later masks is limited by llguidance itself.
"""

import json
import re
import signal
import subprocess
import sys
from typing import Any

CPU_SECONDS = 1.0
WALL_SECONDS = 30.0  # where the machine is so busy that the process hardly runs
MEMORY = 1 << 30  # bytes of address space
MAX_CHARACTERS = 1 << 16  # of a schema
LEXER_FUEL = 50_000  # of one mask: milliseconds
LEXER_STATES = 50_000  # of one grammar: 100 MB
OPTIONS = "x-guidance"  # llguidance's options in a schema, which puna sets
EXPENSIVE = (
    f"the JSON schema is too expensive to compile: more than {CPU_SECONDS:g} s of CPU time or "
    f"{MEMORY >> 20} MB of memory; simplify it"
)


class Refused(ValueError):
    """A schema that can never be used."""


def check(schema: str) -> None:
    """Compile a schema, given as JSON text, in a separate process.

    Raises:
        Refused: in one line, when the schema is invalid, not supported, or too expensive to compile.
        ValueError: when the machine is too busy to say.
    """
    if len(schema) > MAX_CHARACTERS:
        raise Refused(f"the JSON schema has {len(schema):,} characters; the maximum is {MAX_CHARACTERS:,}")
    # -P: this file's directory is not searched for modules.
    command, data = [sys.executable, "-P", __file__], schema.encode()
    try:
        done = subprocess.run(command, input=data, capture_output=True, timeout=WALL_SECONDS)
    except subprocess.TimeoutExpired:
        raise ValueError(f"the JSON schema was not compiled within {WALL_SECONDS:g} s; try again") from None
    assert done.returncode <= 0, done.stderr.decode()
    if done.returncode:  # ended by a signal
        raise Refused(EXPENSIVE)
    if done.stdout:
        raise Refused(f"the JSON schema is not supported: {done.stdout.decode()}")


def matcher(tokenizer: Any, schema: str) -> Any:
    """A matcher at the beginning of an answer; it holds an error instead of raising one."""
    import llguidance

    value = json.loads(schema)
    # Whitespace is limited, because a model may write it without end.
    value[OPTIONS] = {"whitespace_pattern": r"[ \n]{1,40}"}
    # The model chooses how to divide a text that the schema determines into tokens.
    grammar = f'%llguidance {{"no_forcing": true}}\nstart: %json {json.dumps(value)}'
    limits = llguidance.LLParserLimits(
        step_lexer_fuel=LEXER_FUEL, max_lexer_states=LEXER_STATES, verbose_errors=False
    )
    return llguidance.LLMatcher(tokenizer, grammar, log_level=0, limits=limits)


def reason(matcher: Any) -> str:
    """A matcher's error in one line, without the grammar that it quotes; empty without one."""
    text = re.sub(r"^at .*?failed to compile JSON schema: |\s*\n *\d+ \| .*|<non-verbose/>", "",
                  matcher.get_error(), flags=re.DOTALL)  # fmt: skip
    return " ".join(text.split())[:300]


def _error(schema: str) -> str:
    """Why a schema cannot be used; empty when it can."""
    import llguidance

    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # SIGPROF ends the process, within any call
    value = json.loads(schema)
    if not isinstance(value, dict):
        return "expected an object"
    if OPTIONS in value:
        return f"unknown keyword {OPTIONS}"
    compiled = matcher(llguidance.LLTokenizer("byte"), schema)
    if compiled.is_error():
        return reason(compiled)
    compiled.compute_bitmask()
    return "no JSON text conforms to it, or that is too expensive to compute" if compiled.is_error() else ""


if __name__ == "__main__":
    import resource

    if sys.platform == "linux":  # elsewhere the limit is not kept, or is more than the process may set
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    sys.stdout.write(_error(sys.stdin.read()))
