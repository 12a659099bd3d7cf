"""The command line, a verb per file. A verb's module is imported only when it is called: --help is quick.

    puna demo · fetch · corpus · tokenizer train|encode|decode · shards · tokens inspect · train · finetune
         generate · chat · serve · convert · eval · carbon · report

Results go to stdout (`--json` for programs), progress and errors to stderr. Exit codes: 0 success; 1 a bug;
2 an invalid input, named in one line with its fix; 130 stopped by Ctrl-C, resumed by the same command.
"""

import io
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress

from cyclopts import App, CycloptsError, Parameter

from puna import __version__
from puna.cli.common import STOPPED
from puna.cli.help import WholeLines, typed
from puna.devices import cpu_limit
from puna.extras import MissingExtra
from puna.files import disk_full

VERBS = {
    "demo": "Run the whole pipeline, from raw dumps to a trained model, in minutes on two CPU cores.",
    "fetch": "Download raw dumps, a small sample of them, or a small model.",
    "corpus": "Clean raw dumps into documents (Parquet).",
    "tokenizer": "Train a tokenizer; encode and decode text with it.",
    "shards": "Encode documents into token shards; a share of the documents is held out for validation.",
    "tokens": "Show the training batches made from token shards.",
    "plan": "Estimate a training run before it is paid for: memory, time, energy, cost.",
    "train": "Train a model on token shards; the same command resumes from the newest checkpoint.",
    "finetune": "Finetune a model on instruction data (all weights or LoRA); the same command resumes.",
    "generate": "Generate continuations of one or many prompts.",
    "chat": "Chat with a model in the terminal.",
    "serve": "Serve a model over HTTP: OpenAI-compatible API and a chat page.",
    "convert": "Convert weights between puna, Hugging Face, Meta and GGUF, one tensor at a time.",
    "eval": "Evaluate a model on the paper's benchmarks; recount, view and compare results.",
    "carbon": "Energy and emissions, of runs or of the paper's Table 15.",
    "report": "Write the report of a training run as one HTML page.",
}
INVALID = (CycloptsError, ValueError, OSError, FloatingPointError, MissingExtra)  # an input, or its file

app = App(
    name="puna",
    help="LLaMA, end to end: raw dumps -> documents -> tokens -> weights -> text and scores.\n\n"
    "`puna demo` runs all of it on a small sample; `puna VERB --help` describes one stage.",
    version=__version__,
    default_parameter=Parameter(negative=(), show_env_var=False, show_default=typed),
    version_flags=["--version"],
    help_formatter=WholeLines(),
    help_format="plaintext",  # rendering docstrings as Markdown takes 0.1 s
)
for verb, text in VERBS.items():
    app.command(f"puna.cli.{verb}:{verb}", name=verb, help=text)


def _drop_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _flush_output() -> None:
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        _drop_output()  # what is still buffered would fail again at the end of the process
        raise OSError(error.errno, error.strerror, "standard output") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code. PUNA_DEBUG=1 shows the traceback of an error."""
    try:
        if sys.stdout is None:
            raise ValueError("standard output is closed; redirect it to a file, or to /dev/null")
        if sys.stdin is None:  # closed: as good as empty
            sys.stdin = io.StringIO()
        if isinstance(sys.stdout, io.TextIOWrapper):  # no text is lost because a terminal cannot show it
            sys.stdout.reconfigure(errors="backslashreplace")
        cpu_limit()
        code = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        _flush_output()
    except KeyboardInterrupt:
        print("stopped; run the same command to resume", file=sys.stderr)
        return STOPPED
    except Exception as error:
        is_full = disk_full(error) is not None
        if os.environ.get("PUNA_DEBUG") or not (is_full or isinstance(error, INVALID)):
            raise
        with suppress(OSError):  # what is still buffered would fail again at the end of the process
            _flush_output()
        if isinstance(error, BrokenPipeError):  # the reader of our output has ended: `puna … | head`
            return 0
        # cyclopts passes on pydantic's own words for a value out of range: type, input and a link.
        message = re.sub(
            r"\s*\d+ validation errors? for .*?Input should be (.*?) \[type=.*",
            r" It must be \1.",
            str(error),
            flags=re.DOTALL,
        )
        if is_full:
            message += "; free some space and run the same command to resume"
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
        return 2
    return code or 0
