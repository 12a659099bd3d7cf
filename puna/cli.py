"""The verbs. A command's module is imported only when it is called, so that --help is quick.

    puna demo · fetch · corpus · tokenizer train|encode|decode · shards · tokens inspect · train · generate
         chat · convert · report

Results go to stdout (`--json` for programs), progress and errors to stderr. Exit codes: 0 done; 1 a bug;
2 an error of input, named in one line with its mend; 130 stopped by Ctrl-C, go on with the same command.
"""

import errno
import json as json_module
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, ArgumentCollection, CycloptsError, Parameter
from cyclopts.config import Dict

from puna import __version__
from puna.config import RunConfig, Sampling, read_config, to_dict
from puna.recipes import recipe as recipe_of

STOPPED = 130


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
)
tokenizer_app = App(name="tokenizer", help="Train a tokenizer, and use one.")
app.command(tokenizer_app)
tokens_app = App(name="tokens", help="Look at what a model will see.")
app.command(tokens_app)

Many = Parameter(consume_multiple=True, negative=())
Run = Annotated[Path, Parameter(name="--model")]
Json = Annotated[bool, Parameter(name="--json", help="Print the result as JSON.")]


def _report(result: dict[str, Any], json: bool, lines: Sequence[str]) -> None:
    """Print a verb's result: the whole of it as JSON, or the lines for a person."""
    print(json_module.dumps(result, ensure_ascii=False) if json else "\n".join(lines))


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


@app.command
def fetch(source: str, /, *, json: Json = False) -> int:
    """Download a source's sample corpus, or a small model, checked against pinned SHA-256 sums.

    Parameters
    ----------
    source
        wikipedia, books or github; or the model smollm2.
    """
    from puna.corpus.samples import MODELS, fetch_sample

    folder = fetch_sample(source)
    step = f"puna corpus {source} {folder} --out documents/{source}"
    if source in MODELS:
        step = f"puna convert {next(folder.glob('*.gguf'))} models/{source} --to puna"
    _report({"source": source, "path": str(folder)}, json, [f"{source}: {folder}", f"next: {step}"])
    return 0


@app.command
def corpus(
    source: str,
    inputs: list[Path],
    /,
    *,
    out: Path,
    workers: int | None = None,
    max_bad: float = 0.1,
    json: Json = False,
) -> int:
    """Clean raw dumps into documents (Parquet).

    Parameters
    ----------
    source
        wikipedia, books or github.
    inputs
        Files, or folders that are searched for the source's files.
    out
        The directory to write.
    workers
        Processes; all cores when not given. The output is the same for any number.
    max_bad
        The share of damaged records above which the stage is an error.
    """
    from puna.corpus.stage import clean_source
    from puna.files import human_bytes, human_seconds

    manifest = clean_source(source, inputs, out, workers, max_bad)
    counts = manifest["counts"]
    lines = [f"{count:>12,}  {reason}" for reason, count in counts.items()]
    lines += [f"{manifest['bad']:>12,}  damaged (see {out}/*.bad.jsonl)"] if manifest["bad"] else []
    lines += [
        f"{out}: {human_bytes(manifest['bytes'])} in {human_seconds(manifest['seconds'])} of work",
        f"next: puna tokenizer train {out} --out tokenizer",
    ]
    _report(manifest, json, lines)
    return 0


@tokenizer_app.command(name="train")
def tokenizer_train(
    documents: list[Path],
    /,
    *,
    out: Path,
    vocab_size: int = 32_000,
    sample_bytes: int = 256 << 20,
    json: Json = False,
) -> int:
    """Train a SentencePiece BPE tokenizer on documents.

    Parameters
    ----------
    documents
        Directories that `puna corpus` wrote.
    out
        The directory to write.
    vocab_size
        Pieces, with the 256 bytes and 3 control pieces.
    sample_bytes
        Text to train on at most; bounds memory.
    """
    from puna.files import human_bytes, human_seconds
    from puna.tokens.training import train_tokenizer

    manifest = train_tokenizer(documents, out, vocab_size=vocab_size, sample_bytes=sample_bytes)
    lines = [
        f"{source:>16}  {human_bytes(sample['bytes'])} in {sample['documents']:,} documents"
        for source, sample in manifest["sample"].items()
    ]
    lines += [
        f"{out}/tokenizer.model: {vocab_size:,} pieces in {human_seconds(manifest['seconds'])}",
        f"next: puna shards {' '.join(map(str, documents))} --tokenizer {out}/tokenizer.model --out shards",
    ]
    _report(manifest, json, lines)
    return 0


@tokenizer_app.command(name="encode")
def tokenizer_encode(text: str | None = None, /, *, tokenizer: Path, json: Json = False) -> int:
    """Text to token ids, on one line.

    Parameters
    ----------
    text
        Read from stdin when not given.
    tokenizer
        A tokenizer.model, or a directory that holds one.
    """
    from puna.tokens.tokenizer import Tokenizer

    ids = Tokenizer(tokenizer).encode(sys.stdin.read() if text is None else text)
    _report({"ids": ids}, json, [" ".join(map(str, ids))])
    return 0


@tokenizer_app.command(name="decode")
def tokenizer_decode(
    ids: Annotated[list[int] | None, Many] = None, /, *, tokenizer: Path, json: Json = False
) -> int:
    """Token ids to text.

    Parameters
    ----------
    ids
        Read from stdin when not given.
    tokenizer
        A tokenizer.model, or a directory that holds one.
    """
    from puna.tokens.tokenizer import Tokenizer

    given = [int(word) for word in sys.stdin.read().split()] if ids is None else ids
    text = Tokenizer(tokenizer).decode(given)
    _report({"text": text}, json, [text])
    return 0


@app.command
def shards(
    documents: list[Path],
    /,
    *,
    tokenizer: Path,
    out: Path,
    validation_share: float = 0.01,
    workers: int | None = None,
    json: Json = False,
) -> int:
    """Encode documents into token shards, with a part of the documents held out.

    Parameters
    ----------
    documents
        Directories that `puna corpus` wrote.
    tokenizer
        A tokenizer.model, tokenizer.json or GGUF file, or a directory that holds one of the first two.
    out
        The directory to write.
    validation_share
        The share of the documents that is held out, chosen by the hash of their ids.
    workers
        Processes; all cores when not given. The output is the same for any number.
    """
    from puna.files import human_bytes, human_seconds
    from puna.tokens.shards import write_shards

    manifest = write_shards(documents, tokenizer, out, validation_share, workers)
    lines = [
        f"{source:>16}  {held['train_tokens']:>14,} tokens to train on, {held['val_tokens']:,} held out"
        for source, held in manifest["sources"].items()
    ]
    lines += [
        f"{out}: {human_bytes(manifest['bytes'])} in {human_seconds(manifest['seconds'])} of work",
        f"next: puna train --recipe 15m --model.vocab-size {manifest['vocab_size']} "
        f"--data {out} --out runs/first",
    ]
    _report(manifest, json, lines)
    return 0


@tokens_app.command(name="inspect")
def tokens_inspect(
    data: list[str],
    /,
    *,
    step: int = 0,
    model: Annotated[Path | None, Parameter(name="--model")] = None,
    context: int | None = None,
    batch_tokens: int | None = None,
    seed: int | None = None,
    rows: int = 8,
    characters: int = 600,
    json: Json = False,
) -> int:
    """Show the decoded windows of a training step's batch, and where each comes from.

    Parameters
    ----------
    data
        Directories of token shards, or their URLs.
    step
        The step of training, from 0.
    model
        A run (its directory or config.json) whose context, batch, weights and seed to take; without one,
        what `puna train` takes when nothing is said.
    context
        Tokens a window.
    batch_tokens
        Tokens a step.
    seed
        Of the order of windows.
    rows
        Windows to print.
    characters
        Longest text to print of a window; its middle is left out. --json has it whole.
    """
    from puna.tokens.inspect import inspect_batch, shortened
    from puna.tokens.mixture import Mixture

    config = read_config(model) if model else recipe_of(RunConfig.recipe)
    window = context or config.model.context
    mixture = Mixture(
        data,
        config.mixture.weights,
        config.mixture.seed if seed is None else seed,
        window,
        max(1, (batch_tokens or config.train.batch_tokens) // window),
    )
    batch = inspect_batch(mixture, step)
    lines = []
    for row in batch[:rows]:
        lines.append(
            f"── row {row['row']}: {row['source']}, window {row['window'] + 1:,} of {row['windows']:,}, "
            f"epoch {row['epoch'] + 1}, {row['tokens']:,} tokens"
        )
        lines.append(shortened(row["text"], characters))
    lines.append(f"── step {step:,}: {len(batch):,} rows of {window:,} tokens; {min(rows, len(batch))} shown")
    _report({"step": step, "context": window, "fingerprint": mixture.fingerprint, "rows": batch}, json, lines)
    return 0


@app.command
def train(
    *,
    out: Path,
    config: Annotated[RunConfig, Parameter(name="*")] = RunConfig(),  # noqa: B008 (frozen)
    config_file: Annotated[Path | None, Parameter(name="--config")] = None,
    prompts: Annotated[list[str], Many] = ["The"],  # noqa: B006 (cyclopts copies it)
    dry_run: bool = False,
    json: Json = False,
) -> int:
    """Train a model on token shards; run again, it goes on from the newest checkpoint.

    Parameters
    ----------
    out
        The run directory to write.
    config_file
        Start from a run's configuration (its directory or config.json) instead of a recipe.
    prompts
        Continued for samples.jsonl.
    dry_run
        Print parameters, memory, FLOPs and time, and train nothing.
    """
    config.validate()  # before torch is imported: a wrong field is said at once
    if dry_run:
        return _dry_run(config, json)

    if config.train.allocator == "keep":
        from puna.train.allocator import keep_freed_memory

        keep_freed_memory()
    from puna.generate.samples import sampler
    from puna.train.loop import train as train_run

    outcome = train_run(config, out, sampler(out / "tokenizer.model", prompts, Sampling()))
    result = {"step": outcome.state.step, "finished": outcome.finished, "validation": outcome.validation}
    if not outcome.finished:
        _report(result, json, [f"stopped after step {outcome.state.step}; the same command goes on"])
        return STOPPED
    _report(
        result,
        json,
        [
            f"{out}: {outcome.state.step:,} steps, {outcome.state.tokens:,} tokens",
            *validation_lines(outcome.validation),
            f'next: puna generate --model {out} "Once upon a time"   or: puna report {out}',
        ],
    )
    return 0


def _dry_run(config: RunConfig, json: bool) -> int:
    from puna.files import human_bytes, human_seconds
    from puna.train.estimate import estimate

    needs = estimate(config)
    memory = needs["memory"]
    _report(
        needs,
        json,
        [
            f"{needs['parameters']:,} parameters, {needs['tokens']:,} tokens, {needs['flops']:.3g} FLOPs",
            *(f"{human_bytes(size):>12}  {name}" for name, size in memory.items()),
            f"{human_bytes(sum(memory.values())):>12}  in all, in one process",
            f"{human_seconds(needs['seconds'])} at {needs['mfu']:.0%} of this machine's matrix peak, "
            f"{needs['matrix_peak'] / 1e9:,.0f} GFLOP/s",
        ],
    )
    return 0


def validation_lines(validation: dict[str, Any] | None) -> list[str]:
    """The held-out losses, a line a source."""
    if validation is None or validation["loss"] is None:
        return ["held-out loss: not measured, no document is held out"]
    lines = [f"held-out loss {validation['loss']:.3f} nats a token, weighted by the mixture"]
    for source, loss in validation["loss_by_source"].items():
        bits = validation["bits_per_byte_by_source"][source]
        lines.append(f"{source:>16}  {loss:.3f} nats a token, {bits:.3f} bits a byte")
    return lines


@app.command
def generate(
    prompt: str,
    /,
    *,
    model: Run,
    max_tokens: int = 128,
    sampling: Annotated[Sampling, Parameter(name="*")] = Sampling(),  # noqa: B008 (frozen)
    json: Json = False,
) -> int:
    """Continue a prompt with a trained model.

    Parameters
    ----------
    model
        A run directory, or one that `puna convert --to puna` wrote.
    max_tokens
        Longest continuation.
    """
    sampling.validate()
    from puna.generate.engine import load_engine

    engine = load_engine(model)
    if json:
        text = engine.generate(prompt, sampling, max_tokens)
        _report({"prompt": prompt, "text": text, "seed": sampling.seed}, json, [])
        return 0
    print(prompt, end="", flush=True)
    for piece in engine.stream(prompt, sampling, max_tokens):
        print(piece, end="", flush=True)
    print()
    return 0


@app.command
def chat(
    *,
    model: Run,
    max_tokens: int = 128,
    sampling: Annotated[Sampling, Parameter(name="*")] = Sampling(),  # noqa: B008 (frozen)
) -> int:
    """Talk with a trained model in the terminal.

    Parameters
    ----------
    model
        A run directory, or one that `puna convert --to puna` wrote.
    max_tokens
        Longest answer.
    """
    sampling.validate()
    from puna.generate.chat import chat as chat_in_terminal
    from puna.generate.engine import load_engine

    chat_in_terminal(load_engine(model), sampling, max_tokens)
    return 0


@app.command
def convert(
    src: Path,
    dst: Path,
    /,
    *,
    to: Literal["puna", "hf", "meta", "gguf"],
    dtype: Literal["fp32", "bf16", "fp16", "q8_0", "q4_0"] | None = None,
    parts: int = 1,
    context: int | None = None,
    json: Json = False,
) -> int:
    """Convert weights between puna, Hugging Face, Meta and GGUF, a tensor at a time.

    Parameters
    ----------
    src
        A run directory, a Hugging Face directory, a directory with Meta's params.json, or a .gguf file.
    dst
        The directory to write, or with --to gguf the .gguf file.
    to
        The format to write.
    dtype
        Precision of the weights, as they were when not given; q8_0 and q4_0 for GGUF alone.
    parts
        Model-parallel parts of Meta's files: 1, 2, 4 or 8.
    context
        Replaces the context that the source says; Meta's files say none, and are taken for 2048.
    """
    from puna.files import human_bytes, human_seconds
    from puna.model.formats import convert as convert_weights

    result = convert_weights(src, dst, to, dtype, parts, context)
    lines = [
        f"{dst}: {result['counts']['parameters']:,} parameters, {human_bytes(result['bytes'])} "
        f"in {human_seconds(result['seconds'])}",
    ]
    lines += [f'next: puna generate --model {dst} "Once upon a time"'] if to == "puna" else []
    _report(result, json, lines)
    return 0


@app.command
def report(run: Path, /, *, json: Json = False) -> int:
    """Write a run's report as one HTML page.

    Parameters
    ----------
    run
        A run directory.
    """
    from puna.report.page import build_report

    page = build_report(run)
    _report({"report": str(page)}, json, [f"report: {page}"])
    return 0


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; gives the exit code. PUNA_DEBUG=1 shows where an error was raised."""
    try:
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


if __name__ == "__main__":
    sys.exit(main())
