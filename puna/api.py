"""The public API: the commands as functions. `puna.train` is `puna.api.train`, imported when first used.

    raw dumps ──clean──> documents ──train_tokenizer──> tokenizer
                             └──────write_shards──────> shards ──train──> run ──load──> text
                                                                           ├──evaluate──> scores
                                                                           ├──convert──> other formats
                                       instruction data ──finetune──> run ─┤
                                                                           └──report──> a page

Paths are strings or Path objects. Each function does what the command of its name does, and resumes as the
command does; invalid input raises a ValueError whose message says what to do. Stages start processes that
import the calling script, so it needs the usual `if __name__ == "__main__":`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puna.api_models import AnyPath, convert, evaluate, find_model, load, plan, report
from puna.config import RunConfig, Sampling, to_dict
from puna.devices import DeviceName
from puna.files import to_path
from puna.rundir import TOKENIZER
from puna.validation import from_dict

if TYPE_CHECKING:
    from puna.manifest import Manifest
    from puna.stages.stage import Executor
    from puna.train.loop import Outcome

Paths = AnyPath | Sequence[AnyPath]

__all__ = [
    "clean", "convert", "evaluate", "find_model", "finetune", "load", "plan", "report", "train",
    "train_tokenizer", "write_shards",
]  # fmt: skip


def clean(
    source: str, /, inputs: Paths, out: AnyPath, executor: "Executor | None" = None, **options: Any
) -> "Manifest":
    """Clean the raw files of a source into documents (Parquet).

    >>> manifest = puna.clean("books", "raw/books", "documents/books")
    >>> manifest.counts["kept"]
    2

    Args:
        source: name of the source, as in `puna corpus SOURCE`.
        inputs: files, or folders that are searched for the source's files; local, or URLs.
        out: directory to write.
        executor: number of workers, Ray cluster, limits; the defaults when None.
        options: the source's own options, named as the fields of its Options.

    Returns:
        The manifest: counts of documents kept and dropped by reason, inputs, outputs, bytes, seconds.

    Raises:
        ValueError: an unknown source, no input, no document kept, too much damaged input.
        MissingExtra: the source needs packages of the extra `corpus`.
    """
    from puna.corpus.clean import clean_source
    from puna.corpus.registry import load_source

    chosen = load_source(source).Options(
        **{name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    )
    return clean_source(source, _paths(inputs), to_path(out), chosen, executor)


def train_tokenizer(
    documents: Paths,
    out: AnyPath,
    vocab_size: int = 32_000,
    sample_bytes: int = 100_000_000,
    weights: Mapping[str, float] | None = None,
    seed: int = 1,
) -> "Manifest":
    """Train a SentencePiece BPE tokenizer on documents.

    >>> manifest = puna.train_tokenizer("documents/books", "tokenizer", vocab_size=300)
    >>> manifest.config["vocab_size"]
    300

    Args:
        documents: directories of documents, as `clean` writes them.
        out: directory to write: tokenizer.model and its manifest.
        vocab_size: size of the vocabulary, including 256 byte tokens and 3 control tokens.
        sample_bytes: maximum size of the text to train on, in bytes.
        weights: share of each source in that text; those of the paper's Table 1 when None.
        seed: random seed of the choice of documents.

    Returns:
        The manifest.

    Raises:
        ValueError: no documents, or too little text for the vocabulary.
    """
    from puna.tokens.training import train_tokenizer as work

    return work(_paths(documents), Path(out), vocab_size, sample_bytes, weights, seed)


def write_shards(
    documents: Paths,
    tokenizer: AnyPath,
    out: AnyPath,
    validation_share: float = 0.01,
    workers: int | None = None,
) -> "Manifest":
    """Encode documents into token shards; a share of the documents is held out for validation.

    >>> manifest = puna.write_shards("documents/books", "tokenizer", "shards", workers=1)
    >>> sorted(manifest.details["sources"])
    ['books']

    Args:
        documents: directories of documents, as `clean` writes them.
        tokenizer: a vocabulary's file, or a directory that holds one.
        out: directory to write.
        validation_share: share of the documents to hold out, from 0 to 1.
        workers: number of processes; one per CPU core when None. The output does not depend on it.

    Returns:
        The manifest: files, tokens, documents and bytes by source.

    Raises:
        ValueError: no documents, no tokenizer, or an invalid share.
    """
    from puna.tokens.shards import write_shards as work

    return work(_paths(documents), Path(tokenizer), Path(out), validation_share, workers)


def train(
    out: AnyPath,
    data: Paths = (),
    recipe: str = "15m",
    config: RunConfig | None = None,
    prompts: Sequence[str] = ("The",),
    device: DeviceName = "auto",
    **sections: Mapping[str, Any],
) -> "Outcome":
    """Train a model on token shards, or resume the run in `out` from its newest checkpoint.

    >>> outcome = puna.train(
    ...     "runs/first", "shards", recipe="tiny", model={"vocab_size": 300}, schedule={"steps": 4}
    ... )
    >>> outcome.finished, outcome.state.step
    (True, 4)

    Args:
        out: run directory to write.
        data: directories or URLs of token shards, as `write_shards` writes them.
        recipe: name of the recipe that gives the default configuration; see puna/recipes.py.
        config: the whole configuration, instead of a recipe.
        prompts: prompts whose continuations are written to samples.jsonl.
        device: device to train on; `auto` is a CUDA device if there is one, else the CPU.
        sections: fields to change by section of the configuration, named as the command's options are:
            `model={"dim": 512}` is `--model.dim 512`.

    Returns:
        The last step's state, whether training finished, and the held-out loss.

    Raises:
        ValueError: an invalid configuration, data of another vocabulary, or `out` of another run.
        FloatingPointError: the loss is no longer finite.
    """
    from puna.generate.samples import sampler
    from puna.recipes import recipe as recipe_of
    from puna.train.loop import train as work

    values = to_dict(config or recipe_of(recipe))
    if data:
        values["data"] = [str(path) for path in _paths(data)]
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    out = Path(out)
    sample = sampler(out / TOKENIZER, prompts, Sampling())
    return work(from_dict(RunConfig, values), out, sample, device=device)


def finetune(
    out: AnyPath,
    model: AnyPath,
    data: Paths,
    lora: Mapping[str, Any] | None = None,
    device: DeviceName = "auto",
    sections: Mapping[str, Mapping[str, Any]] | None = None,
    **options: Any,
) -> "Outcome":
    """Finetune a model on instruction data, or resume the run in `out` from its newest checkpoint.

    >>> outcome = puna.finetune(
    ...     "runs/answers",
    ...     "runs/first",
    ...     "answers.jsonl",
    ...     lora={"r": 4},
    ...     template="puna",
    ...     batch_tokens=128,
    ...     steps=2,
    ... )
    >>> outcome.finished
    True

    Args:
        out: run directory to write.
        model: as for `load`.
        data: files of instruction data, each with a weight behind it if wanted: "answers.jsonl=2".
        lora: fields of `LoraConfig`; None trains all weights.
        device: device to train on; `auto` is a CUDA device if there is one, else the CPU.
        sections: fields of the sections compute, parallel, save and watch of the configuration.
        options: fields of `FinetuneConfig`, and `seed`.

    Returns:
        The last step's state, whether training finished, and the held-out loss.

    Raises:
        ValueError: an invalid model, data or option, too little memory, or `out` of another run.
        FloatingPointError: the loss is no longer finite.
    """
    from puna.config import TuneConfig
    from puna.finetune import run

    given = [data] if isinstance(data, str | Path) else data
    values = {"data": [str(file) for file in given], "lora": lora, "seed": options.pop("seed", 1)}
    values["finetune"] = {**options, "model": str(find_model(str(model)).resolve())}
    job = run.prepare(from_dict(TuneConfig, {**values, **(sections or {})}))
    return run.finetune(job, Path(out), device=device)


def _paths(given: Paths) -> list[Path]:
    return [to_path(path) for path in ([given] if isinstance(given, str | Path) else given)]
