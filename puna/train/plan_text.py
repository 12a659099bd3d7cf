"""Plans as lines of text, for `puna plan` and `puna train --dry-run`."""

from collections.abc import Sequence

from puna.carbon import human_energy, human_mass
from puna.files import human_bytes, human_number, human_seconds
from puna.model.sizes import parameters, train_flops_per_token
from puna.train.plan import USABLE, Plan

_SHOWN = 5  # meshes of a search, and as many that do not fit


def plan_lines(best: Plan, name: str, price: float | None = None) -> list[str]:
    """A plan as lines of text."""
    job, gpu, footprint = best.job, best.machine, best.footprint
    room = USABLE * gpu.memory_gb * 1e9
    verdict = "fits" if best.fits else f"does NOT fit: {human_bytes(best.total_memory - room)} too much"
    days = human_seconds(best.days * 86_400)
    one = "GPU" if gpu.watts else "process"
    sequences = "sequence" if best.micro_batch == 1 else "sequences"
    flops = human_number(train_flops_per_token(job.model) / 1e9)
    lines = [
        f"{name}: {parameters(job.model):,} parameters, {human_number(job.tokens / 1e9)} billion tokens, "
        f"{job.batch_tokens:,} of them a step, {flops} GFLOPs per token",
        f"{best.mesh.ranks:,} × {gpu.name}: {best.mesh}, {best.micro_batch} {sequences} at a time, "
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
        f"(arithmetic at {best.mfu:.1%} of {gpu.peak_tflops:.4g} TFLOP/s)",
        "",
        f"{best.tokens_per_second_per_gpu:,.0f} tokens per second per {one}; {days} for the run",
    ]
    if gpu.watts:
        lines.append(
            f"{footprint.gpu_hours:,.0f} GPU-hours, {human_energy(1000 * footprint.mwh)}, "
            f"{human_mass(footprint.tco2eq)} CO2eq "
            f"({gpu.watts:g} W per GPU, PUE {footprint.pue:g}, {footprint.intensity:g} tCO2eq per MWh)"
        )
    if price is not None:
        lines.append(f"cost: {price * footprint.gpu_hours:,.0f}, at {price:g} per GPU-hour")
    return lines


def search_lines(fitting: Sequence[Plan], others: Sequence[Plan]) -> list[str]:
    """The fastest meshes of a search, and the nearest of those that do not fit."""
    lines = [f"{len(fitting)} of {len(fitting) + len(others)} meshes fit; the fastest:"]
    for item in fitting[:_SHOWN]:
        lines.append(
            f"  {item.mesh!s:<44} micro-batch {item.micro_batch:<4} {human_bytes(item.total_memory):>9}  "
            f"{item.tokens_per_second_per_gpu:,.0f} tokens/s/GPU, bound by {item.bound}"
        )
    if others:
        lines.append(f"{len(others)} do not fit, even with one sequence at a time; the nearest:")
    for item in others[:_SHOWN]:
        largest = max(item.memory, key=item.memory.__getitem__)
        lines.append(
            f"  {item.mesh!s:<44} {human_bytes(item.total_memory):>9}, of which {largest} "
            f"{human_bytes(item.memory[largest])}"
        )
    return lines
