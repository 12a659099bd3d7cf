"""The verbs. A command's own modules are imported only when it is called, so that --help is quick.

    puna demo · fetch · corpus · tokenizer train|encode|decode · shards · tokens inspect · train · generate
         chat · serve · convert · eval · report

Results go to stdout (`--json` for programs), progress and errors to stderr. Exit codes: 0 done; 1 a bug;
2 an error of input, named in one line with its fix; 130 stopped by Ctrl-C, resume with the same command.
"""

import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from cyclopts import App, ArgumentCollection, CycloptsError, Parameter
from cyclopts.config import Dict

from puna import __version__
from puna.cli import corpus, eval, fetch, serve, tokens, training, weights
from puna.cli.common import STOPPED, Json
from puna.config import RunConfig, read_config, to_dict
from puna.devices import cpu_limit
from puna.recipes import recipe as recipe_of


def _start_from_recipe(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Before `train` reads its fields: what the command line leaves open is the recipe's, or --config's."""
    if commands != ("train",):
        return
    given = {argument.name: argument.tokens[0].value for argument in arguments if argument.tokens}
    if "--config" in given:
        base = read_config(Path(given["--config"]))
    else:
        base = recipe_of(given.get("--recipe", RunConfig.recipe))
    # None and empty sections are what a field left out means already.
    values = {key: value for key, value in to_dict(base).items() if value not in ([], {}, None)}
    for section in values.values():
        if isinstance(section, dict):
            for key in [key for key, value in section.items() if value in (None, {}, [])]:
                del section[key]
    Dict({"train": values}, source="recipe")(app, commands, arguments)


app = App(
    name="puna",
    help="LLaMA, end to end: raw dumps -> documents -> tokens -> weights -> text and scores.",
    version=__version__,
    config=_start_from_recipe,
    default_parameter=Parameter(negative=(), show_env_var=False),
    version_flags=["--version"],
    help_format="plaintext",  # docstrings are: to render them as Markdown takes a tenth of a second
)

app.command(fetch.app)
app.command(corpus.app)

tokenizer_app = App(name="tokenizer", help="Train a tokenizer, and use one.")
tokenizer_app.command(tokens.tokenizer_train, name="train")
tokenizer_app.command(tokens.tokenizer_encode, name="encode")
tokenizer_app.command(tokens.tokenizer_decode, name="decode")
app.command(tokenizer_app)
app.command(tokens.shards)
tokens_app = App(name="tokens", help="Look at what a model will see.")
tokens_app.command(tokens.tokens_inspect, name="inspect")
app.command(tokens_app)

app.command(training.train)
app.command(weights.generate)
app.command(weights.chat)
app.command(serve.serve)
app.command(eval.app)
app.command(weights.convert)
app.command(training.report)


@app.command
def demo(*, out: Path = Path("runs/demo"), json: Json = False) -> int:
    """Everything, from raw dumps to a model that answers, in minutes on two CPU cores.

    Parameters
    ----------
    out
        Where everything is written; run again, it goes on from there.
    """
    from puna.train.allocator import keep_freed_memory

    keep_freed_memory()
    from puna.demo import run_demo

    return run_demo(out, json)


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; gives the exit code. PUNA_DEBUG=1 shows where an error was raised."""
    try:
        cpu_limit()
        code = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return STOPPED
    except (CycloptsError, ValueError, OSError, FloatingPointError) as error:
        if os.environ.get("PUNA_DEBUG"):
            raise
        if isinstance(error, BrokenPipeError):  # the reader of our output has left: `puna … | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        message = " ".join(str(error).split())
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            message += "; free some space, and the same command goes on"
        return _fail(message)
    return code if isinstance(code, int) else 0
