"""`puna train --dry-run`: the memory and time that a run needs, before anything is written or trained.

Memory is computed by the formulas of `model/sizes.py`; time from the matrix peak, which is measured, and the
fraction of it that a training step reaches.
"""

from typing import Any

import torch

from puna.config import RunConfig
from puna.devices import DeviceName, choose_device, configure, fast_precision, measure
from puna.model.loss import ROWS
from puna.model.sizes import parameters, saved_bytes_per_token_and_layer, train_flops_per_token

MFU = 0.5  # fraction of the peak that benchmarks/train.py shows on CPUs, and large models reach on GPUs
BYTES_PER_PARAMETER = 4 + 4 + 8  # fp32 weight, fp32 gradient, AdamW's two fp32 moments


def estimate(config: RunConfig, device: DeviceName = "auto") -> dict[str, Any]:
    """Parameters, memory (bytes, one process), FLOPs and seconds of a run with `activations = manual`.

    Raises:
        ValueError: this machine has no such device.
    """
    model, schedule = config.model, config.schedule
    chosen = choose_device(device)
    configure(chosen, config.compute.threads)
    precision = config.compute.precision
    if precision == "auto":
        precision = fast_precision(chosen)
    machine = measure(chosen, precision)
    compute = torch.bfloat16 if precision == "bf16" else torch.float32
    count = parameters(model)
    tokens = min(schedule.micro_batch, config.batch_sequences) * model.context
    saved = tokens * model.n_layers * saved_bytes_per_token_and_layer(model, compute.itemsize)
    # hidden states and their gradient, the projection's gradient, a block of logits and its gradient
    head = (
        tokens * model.dim * (4 + 2 * compute.itemsize)
        + 4 * model.vocab_size * model.dim
        + 2 * ROWS * model.vocab_size * compute.itemsize
    )
    flops = train_flops_per_token(model) * schedule.batch_tokens * schedule.steps
    return {
        "parameters": count,
        "tokens": schedule.batch_tokens * schedule.steps,
        "memory": {
            "weights, gradients, optimiser": count * BYTES_PER_PARAMETER,
            "saved for the backward": saved,
            "output projection and loss": head,
        },
        "flops": flops,
        "machine": str(machine),
        "matrix_peak": machine.peak,
        "mfu": MFU,
        "seconds": flops / (machine.peak * MFU),
    }
