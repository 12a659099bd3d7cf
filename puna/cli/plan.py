"""`puna plan`: what a training run needs before it is paid for."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from puna.carbon import INTENSITY, PUE
from puna.cli.common import Json, print_result
from puna.config import Activations
from puna.files import human_bytes, human_seconds
from puna.recipes import RECIPES, recipe
from puna.train.plan import MFU, USABLE, Job, Machine, Mesh, Plan, describe, machine, search
from puna.train.plan import plan as count

_SHOWN = 5  # meshes of a search


def plan(
    *,
    recipe_name: Annotated[str, Parameter(name="--recipe")] = "7b",
    on: Annotated[str, Parameter(name="--machine")] = "a100-80gb",
    gpus: int = 1,
    parallel: Annotated[Mesh | None, Parameter(name="--parallel")] = None,
    search_: Annotated[bool, Parameter(name="--search")] = False,
    batch_tokens: int | None = None,
    tokens: float | None = None,
    context: int | None = None,
    micro_batch: int | None = None,
    activations: Activations = "manual",
    mfu: float = MFU,
    price: float | None = None,
    machines: Path | None = None,
    page: Path | None = None,
    json: Json = False,
) -> None:
    """Estimate a training run: memory per GPU, traffic, time, energy, emissions and cost.

    Parameters
    ----------
    recipe_name
        The model's sizes, its batch and its number of tokens: tiny, 15m, 110m, 1b, 7b, 13b, 33b or 65b.
    on
        The machine: a100-80gb, h100, h200, b200, v100-32gb, l40s, one of --machines, or `here` (measured now).
    gpus
        Number of GPUs; processes on `here`.
    parallel
        The mesh. Its sizes multiply to --gpus; without any, every mesh is tried and the fastest that fits is
        used.
    search_
        List the fastest meshes that fit, and why the next ones do not.
    batch_tokens
        Tokens per optimiser step; default: the recipe's.
    tokens
        Tokens of the whole run; default: the recipe's.
    context
        Tokens per sequence; default: the recipe's.
    micro_batch
        Sequences computed together on a GPU; default: as many as fit.
    activations
        Which activations are saved for backward: manual, selective, full or none (docs/train.md).
    mfu
        Share of the peak that the arithmetic reaches (model FLOPs utilisation).
    price
        Price of a GPU-hour, in any currency.
    machines
        A TOML file of more machines, in the form of puna/train/machines.toml.
    page
        Also write a page with a picture of the memory of a GPU (one HTML file).
    """
    chosen = recipe(recipe_name)
    values = {} if context is None else {"context": context}
    from dataclasses import replace

    model = replace(chosen.model, **values)
    model.validate()
    batch = batch_tokens or chosen.train.batch_tokens
    job = Job(model, batch, tokens or float(chosen.train.batch_tokens) * chosen.train.steps, activations)
    place = machine(on, machines) if on != "here" else _here()
    if parallel is not None and parallel.ranks != gpus:
        raise ValueError(f"--parallel makes {parallel.ranks} ranks ({parallel}), but --gpus is {gpus}")
    fitting: list[Plan] = []
    others: list[Plan] = []
    if parallel is None or search_:
        fitting, others = search(job, place, gpus, mfu)
    best = count(job, place, parallel, micro_batch, mfu) if parallel else (fitting + others)[0]
    result = describe(best, price)
    lines = _lines(best, recipe_name, price)
    if search_:
        result["meshes"] = [describe(item, price) for item in fitting + others]
        lines = [*_table(fitting, others), "", *lines]
    if page is not None:
        from puna.report.memory import memory_page

        memory_page(page, f"{recipe_name} on {gpus:,} {place.name}", best.memory, place.memory_gb * 1e9, USABLE)
        lines.append(f"page: {page}")
    print_result(result, json, lines)
