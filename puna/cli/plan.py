"""`puna plan`: what a training run needs before it is paid for."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.types import NonNegativeFloat, PositiveInt

from puna.cli.common import Json, print_result
from puna.config import Activations, MeshConfig
from puna.files import human_bytes
from puna.model.sizes import LOGITS_ROWS
from puna.train.machines import machine
from puna.train.plan import MFU, USABLE, best_plan, describe, job_of, search
from puna.train.plan import plan as plan_one
from puna.train.plan_text import plan_lines, search_lines


def plan(
    *,
    recipe_name: Annotated[str, Parameter(name="--recipe")] = "7b",
    on: Annotated[str, Parameter(name="--machine")] = "a100-80gb",
    gpus: PositiveInt = 1,
    parallel: MeshConfig | None = None,
    search_all: Annotated[bool, Parameter(name="--search")] = False,
    batch_tokens: int | None = None,
    tokens: float | None = None,
    context: int | None = None,
    micro_batch: int | None = None,
    activations: Activations = "manual",
    mfu: float | None = None,
    price: NonNegativeFloat | None = None,
    machines: Path | None = None,
    page: Path | None = None,
    dry_run: bool = False,
    json: Json = False,
) -> None:
    """Estimate a training run: memory per GPU, traffic, time, energy, emissions and cost.

    Parameters
    ----------
    recipe_name
        The recipe to plan: its model, batch and number of tokens (tiny, 15m, 110m, 1b, 7b, 13b, 33b, 65b).
    on
        The machine: a100-80gb, h100, h200, b200, v100-32gb, l40s, one of --machines, or `here`, which is
        measured.
    gpus
        Number of GPUs; with --machine here, of processes.
    parallel
        The mesh, whose sizes multiply to --gpus. Default: the fastest of all meshes that fit.
    search_all
        List the fastest meshes that fit, and say why the others do not.
    batch_tokens
        Tokens per optimiser step. Default: the recipe's.
    tokens
        Tokens of the whole run. Default: the recipe's.
    context
        Tokens per sequence. Default: the recipe's.
    micro_batch
        Sequences that a GPU computes together. Default: as many as fit.
    activations
        Which activations are saved for backward: manual, selective, full or none.
    mfu
        Share of the GPU's peak that the arithmetic reaches (model FLOPs utilisation). Default: 0.485;
        with --machine here, what training reaches on such a device.
    price
        Price of a GPU-hour, in any currency.
    machines
        A TOML file with more machines, in the form of puna/train/machines.toml.
    page
        Also write a page (one HTML file) with a picture of a GPU's memory.
    dry_run
        Also run two steps of the real model on tensors without values, which checks the memory. Takes a
        second per layer; needs no GPU.
    """
    job = job_of(recipe_name, activations, batch_tokens, tokens, context)
    if on == "here":
        from puna.train import here  # imports torch

        gpu, measured = here.machine_here(gpus)
        job = here.job_here(job, measured)
        mfu = here.MFU.get(measured.device.type, 0.5) if mfu is None else mfu
    else:
        gpu = machine(on, machines)
    mfu = MFU if mfu is None else mfu
    best = best_plan(job, gpu, gpus, parallel, micro_batch, mfu)
    result, lines = describe(best, price), plan_lines(best, recipe_name, price)
    if search_all:
        fitting, others = search(job, gpu, gpus, micro_batch, mfu)
        result["meshes"] = [describe(item, price) for item in fitting + others]
        lines = [*search_lines(fitting, others), "", *lines]
    if page is not None:
        from puna.report.memory import memory_page

        shown = {name: size for name, size in best.memory.items() if size}
        memory_page(page, f"{recipe_name} on {gpus:,} × {gpu.name}", shown, gpu.memory_gb * 1e9, USABLE)
        lines.append(f"picture of the memory: {page}")
    if dry_run:
        from puna.train.dry_run import peak_bytes

        counted = replace(best.job, gather_bytes=4, logits_rows=LOGITS_ROWS)
        formulas = plan_one(counted, gpu, best.mesh, best.micro_batch, mfu).total_memory
        peak = peak_bytes(counted, best.mesh, best.micro_batch)
        result["dry_run"] = {"peak_memory": peak, "formulas": formulas}
        lines.append(
            f"dry run, weights gathered in fp32: {human_bytes(peak)}; by the formulas "
            f"{human_bytes(formulas)} ({formulas / peak - 1:+.1%})"
        )
    print_result(result, json, lines)
