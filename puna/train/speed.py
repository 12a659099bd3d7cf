"""Measures how fast this machine trains a configuration: real steps on the run's own data, then discarded.

In:  a RunConfig with its token shards.
Out: tokens per second of the training step, after warm-up (kernels are compiled in the first step).
"""

import statistics
import time
from dataclasses import replace

from puna import devices
from puna.config import RunConfig
from puna.progress import Bar
from puna.tokens.mixture import Mixture
from puna.train.graph import gradients_of
from puna.train.setup import build_model
from puna.train.step import OutlierGuard, train_step

WARM_UP_STEPS = 3
MIN_STEPS = 5
MEASURED_SECONDS = 6.0


def tokens_per_second(config: RunConfig) -> float:
    """Train a few steps of `config` from random weights; return the median rate, in tokens per second.

    Raises:
        ValueError: an invalid configuration, or shards that cannot be read.
    """
    config.validate()
    mixture = Mixture(
        config.data,
        weights=config.mixture.weights,
        seed=config.mixture.seed,
        context=config.model.context,
        batch_sequences=config.batch_sequences,
    )
    device = devices.choose_device()
    devices.configure(device, config.compute.threads, config.compute.deterministic)
    if config.compute.precision == "auto":
        precision = devices.fast_precision(device)
        config = replace(config, compute=replace(config.compute, precision=precision))
    model, optimizer = build_model(config, device)
    model.init_weights(config.seed)
    guard, gradients = OutlierGuard(config.optim.skip_outliers, device), gradients_of(model, config)
    lr, sources = config.optim.lr / 100, mixture.sources

    rates: list[float] = []
    spent, step = 0.0, 0
    with Bar("measure speed", MEASURED_SECONDS, "seconds") as bar:
        bar.advance(0)
        while len(rates) < MIN_STEPS or spent < MEASURED_SECONDS:
            started = time.perf_counter()
            batch = mixture.batch(step)
            result = train_step(model, optimizer, guard, batch, len(sources), lr, config, gradients=gradients)
            result.record(sources)  # waits for the device
            seconds = time.perf_counter() - started
            step += 1
            if step > WARM_UP_STEPS:
                rates.append(batch.global_tokens / seconds)
                spent += seconds
                bar.advance(seconds, f"{statistics.median(rates):,.0f} tokens/s")
    return statistics.median(rates)
