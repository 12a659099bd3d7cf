"""`puna plan`: what a training run needs before it is paid for."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from puna.cli.common import Json, print_result
from puna.config import Activations, MeshConfig
from puna.files import human_bytes, human_seconds
from puna.model.sizes import LOGITS_ROWS, parameters, train_flops_per_token
from puna.recipes import recipe
from puna.train.plan import MFU, USABLE, Job, Plan, describe, machine, search
from puna.train.plan import plan as plan_one

_SHOWN = 5  # meshes of a search, and as many that do not fit


def plan(
    *,
    recipe_name: Annotated[str, Parameter(name="--recipe")] = "7b",
    on: Annotated[str, Parameter(name="--machine")] = "a100-80gb",
    gpus: int = 1,
    parallel: MeshConfig | None = None,
    search_all: Annotated[bool, Parameter(name="--search")] = False,
    batch_tokens: int | None = None,
    tokens: float | None = None,
    context: int | None = None,
    micro_batch: int | None = None,
    activations: Activations = "manual",
    mfu: float = MFU,
    price: float | None = None,
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
        The machine: a100-80gb, h100, h200, b200, v100-32gb, l40s, or one of --machines.
    gpus
        Number of GPUs.
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
        Share of the GPU's peak that the arithmetic reaches (model FLOPs utilisation).
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
    chosen = recipe(recipe_name)
    model = chosen.model if context is None else replace(chosen.model, context=context)
    model.validate()
    schedule = chosen.schedule
    job = Job(
        model,
        batch_tokens or schedule.batch_tokens,
        tokens or float(schedule.batch_tokens) * schedule.steps,
        activations,
    )
    gpu = machine(on, machines)
    if parallel is not None and parallel.ranks != gpus:
        raise ValueError(
            f"--parallel is {parallel}, which makes {parallel.ranks} ranks, but --gpus is {gpus}"
        )
    fitting: list[Plan] = []
    others: list[Plan] = []
    if parallel is None or search_all:
        fitting, others = search(job, gpu, gpus, micro_batch, mfu)
    best = (fitting + others)[0] if parallel is None else plan_one(job, gpu, parallel, micro_batch, mfu)

    result = describe(best, price)
    lines = plan_lines(best, recipe_name, price)
    if search_all:
        result["meshes"] = [describe(item, price) for item in fitting + others]
        lines = [*_table(fitting, others), "", *lines]
    if page is not None:
        from puna.report.memory import memory_page

        memory_page(page, f"{recipe_name} on {gpus:,} × {gpu.name}", best.memory, gpu.memory_gb * 1e9, USABLE)
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


def plan_lines(best: Plan, name: str, price: float | None = None) -> list[str]:
    """A plan as lines of text."""
    job, gpu, footprint = best.job, best.machine, best.footprint
    room = USABLE * gpu.memory_gb * 1e9
    verdict = "fits" if best.fits else f"does NOT fit: {human_bytes(best.total_memory - room)} too much"
    days = human_seconds(best.days * 86_400)
    one = "GPU" if gpu.watts else "process"
    lines = [
        f"{name}: {parameters(job.model):,} parameters, {job.tokens:.3g} tokens, batch {job.batch_tokens:,}, "
        f"{train_flops_per_token(job.model):.3g} FLOPs per token",
        f"{best.mesh.ranks:,} × {gpu.name}: {best.mesh}, micro-batch {best.micro_batch} sequences, "
        f"activations {job.activations}",
        "",
        f"memory per {one}",
        *(f"{human_bytes(size):>12}  {what}" for what, size in best.memory.items() if size),
        f"{human_bytes(best.total_memory):>12}  in all, of {human_bytes(room)} usable: {verdict}",
        "",
        "one step",
        *(f"{human_seconds(seconds):>12}  {what}" for what, seconds in best.seconds.items() if seconds),
        *(
            f"{human_bytes(item.bytes):>12}  {item.name}, {'between' if item.between_nodes else 'in'} nodes"
            for item in best.traffic
        ),
        f"{human_seconds(best.step_seconds):>12}  bound by {best.bound} "
        f"(arithmetic at {best.mfu:.1%} of {gpu.peak_tflops:g} TFLOP/s)",
        "",
        f"{best.tokens_per_second_per_gpu:,.0f} tokens per second per {one}; {days} for the run",
    ]
    if gpu.watts:
        lines.append(
            f"{footprint.gpu_hours:,.0f} GPU-hours, {footprint.mwh:,.3g} MWh, {footprint.tco2eq:,.3g} tCO2eq "
            f"({gpu.watts:g} W per GPU, PUE {footprint.pue:g}, {footprint.intensity:g} tCO2eq per MWh)"
        )
    if price is not None:
        lines.append(f"{price * footprint.gpu_hours:,.0f} at {price:g} per GPU-hour")
    return lines


def _table(fitting: Sequence[Plan], others: Sequence[Plan]) -> list[str]:
    lines = [f"{len(fitting)} meshes fit; the fastest:"]
    for item in fitting[:_SHOWN]:
        lines.append(
            f"  {item.mesh!s:<44} micro-batch {item.micro_batch:<4} {human_bytes(item.total_memory):>9}  "
            f"{item.tokens_per_second_per_gpu:,.0f} tokens/s/GPU, bound by {item.bound}"
        )
    if others:
        lines.append(f"{len(others)} do not fit, even with micro-batch 1; the nearest:")
    for item in others[:_SHOWN]:
        largest = max(item.memory, key=item.memory.__getitem__)
        lines.append(
            f"  {item.mesh!s:<44} {human_bytes(item.total_memory):>9}, most of it {largest} "
            f"({human_bytes(item.memory[largest])})"
        )
    return lines
