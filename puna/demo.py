"""`puna demo`: the whole pipeline on real input, in minutes on two CPU cores.

    pinned packages ─> raw dumps ─> documents/SOURCE ─> tokenizer ─> shards ─> run ─> report.html

Each stage is the public function that its command calls, and skips what is done already: the demo itself has
no state. After a kill the same command resumes.

Training takes about five minutes on any machine: its speed is measured first, and determines the size of the
model and the number of steps. The run's config.json records them: a resumed run reads it instead of measuring
again, so that it is the same run on a machine of any speed.
"""

import json as json_module
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from puna.carbon import total
from puna.config import (
    ModelConfig,
    RunConfig,
    Sampling,
    SaveConfig,
    ScheduleConfig,
    WatchConfig,
    read_config,
)
from puna.corpus.clean import clean_source
from puna.energy import recorded_in
from puna.fetch.package_index import SAMPLES, fetch_sample
from puna.files import MANIFEST, human_bytes, human_seconds, read_json_lines
from puna.generate.samples import sampler
from puna.manifest import load_manifest
from puna.recipes import recipe
from puna.report.page import build_report
from puna.rundir import CONFIG, TOKENIZER
from puna.rundir import SAMPLES as CONTINUATIONS
from puna.tokens.shards import write_shards
from puna.tokens.training import train_tokenizer
from puna.train.loop import Outcome, train
from puna.train.speed import tokens_per_second

VOCAB_SIZE = 4096
TRAIN_SECONDS = 300.0
BATCH_TOKENS = 2048
# Sizes of the model, largest first, each with its minimum number of steps: below it the next smaller model,
# which trains on more tokens in the same time, reaches a lower loss (docs/lab-notes.md).
SIZES = (
    (ModelConfig(dim=288, n_layers=6, n_heads=6, ffn_dim=768, vocab_size=VOCAB_SIZE, context=512), 400),
    (ModelConfig(dim=192, n_layers=4, n_heads=4, ffn_dim=512, vocab_size=VOCAB_SIZE, context=512), 200),
    (ModelConfig(dim=128, n_layers=3, n_heads=4, ffn_dim=384, vocab_size=VOCAB_SIZE, context=256), 50),
)
MAX_EPOCHS = 4  # limits the steps on fast machines: with more epochs the model memorises the sample
STOPPED = 130
PROMPTS = (
    "To be, or not to be",
    "The history of philosophy",
    "def __init__(self",
    "In the United States",
)


def run_config(shards: Path, model: ModelConfig, steps: int) -> RunConfig:
    """The demo's run: small batches and a high learning rate, for the lowest loss after a few minutes."""
    base = recipe("15m")
    return replace(
        base,
        data=(str(shards),),
        model=model,
        optim=replace(base.optim, lr=3e-3, warmup_steps=min(60, steps // 5)),
        schedule=ScheduleConfig(steps, BATCH_TOKENS, micro_batch=BATCH_TOKENS // model.context),
        save=SaveConfig(every=max(steps // 10, 1)),  # every half minute
        watch=WatchConfig(validate_every=max(steps // 4, 1), validation_windows=16),
    )


def choose_config(
    shards: Path, train_tokens: int, speed: Callable[[RunConfig], float]
) -> tuple[RunConfig, float]:
    """The largest model that this machine trains in TRAIN_SECONDS, and the number of steps for that time.

    Args:
        train_tokens: number of tokens in the shards, which are repeated at most MAX_EPOCHS times.
        speed: measures the tokens per second of a configuration on this machine.

    Returns:
        The configuration of the run, and its measured speed, in tokens per second.
    """
    most = max(MAX_EPOCHS * train_tokens // BATCH_TOKENS, 1)
    for model, fewest in SIZES:
        rate = speed(run_config(shards, model, fewest))
        steps = min(round(rate * TRAIN_SECONDS / BATCH_TOKENS), most)
        if steps >= min(fewest, most):
            return run_config(shards, model, steps), rate
    return run_config(shards, model, fewest), rate  # longer than TRAIN_SECONDS: too slow for any size


@contextmanager
def _stage(title: str, quiet: bool) -> Iterator[list[str]]:
    """Print the facts of a stage and its time on one line, once it is done."""
    started = time.monotonic()
    facts: list[str] = []
    yield facts
    if not quiet:
        print(f"{title:<12} {'; '.join(facts)}  [{human_seconds(time.monotonic() - started)}]", flush=True)


def run_demo(out: Path, json: bool = False) -> int:
    """Run the demo in the directory `out`, or resume it; returns the exit code."""
    started = time.monotonic()
    documents = {source: out / "documents" / source for source in SAMPLES}
    for source, directory in documents.items():
        with _stage(source, json) as facts:
            manifest = clean_source(source, [fetch_sample(source)], directory)
            counts = manifest.counts
            dropped = sum(count for key, count in counts.items() if key.startswith("dropped: "))
            facts += [
                f"{counts['kept']:,} documents, {counts['characters'] / 1e6:.1f} million characters",
                f"{dropped:,} dropped, {manifest.damaged} damaged",
            ]
    with _stage("tokenizer", json) as facts:
        train_tokenizer(list(documents.values()), out / "tokenizer", vocab_size=VOCAB_SIZE)
        facts.append(f"{VOCAB_SIZE:,} tokens of SentencePiece BPE")
    with _stage("shards", json) as facts:
        manifest = write_shards(list(documents.values()), out / "tokenizer", out / "shards")
        sources = manifest.details["sources"].values()
        train_tokens = sum(source["train_tokens"] for source in sources)
        facts.append(f"{train_tokens:,} tokens to train on")
        facts.append(f"{sum(source['val_tokens'] for source in sources):,} held out")
    if (out / CONFIG).is_file():
        config = read_config(out)
    else:
        with _stage("speed", json) as facts:
            config, rate = choose_config(out / "shards", train_tokens, tokens_per_second)
            facts.append(f"{rate:,.0f} tokens/s on this machine")
            facts.append(f"{human_seconds(config.schedule.steps * BATCH_TOKENS / rate)} of training")
    with _stage("train", json) as facts:
        outcome = _train(config, out)
        facts.append(f"{outcome.state.step:,} steps, {outcome.state.tokens:,} tokens")
        if outcome.validation is not None:
            facts.append(f"held-out loss {outcome.validation['loss']:.3f}")
    if not outcome.finished:
        print("stopped; run `make demo` again to resume from here", file=sys.stderr)
        return STOPPED
    with _stage("report", json) as facts:
        page = build_report(out)
        facts.append(f"{page}, {human_bytes(page.stat().st_size)}")

    parts = (*documents.values(), out / "tokenizer", out / "shards", out)
    energy = total([recorded_in(part) for part in parts])
    seconds = time.monotonic() - started
    if json:
        result = {
            "run": str(out),
            "report": str(page),
            "validation": outcome.validation,
            "share_of_ln_vocabulary": _share(outcome.validation, config),
            "energy": asdict(energy),
            "seconds": round(seconds, 1),
        }
        print(json_module.dumps(result))
        return 0
    _show_samples(out)
    print(f"\n{_reached(out, outcome, config)}")
    print(f"{energy}, from the dumps to the model")
    print(f"done in {human_seconds(seconds)}. Next:")
    print(f'  {_puna()} generate --model {out} "The history of"')
    print(f"  {_puna()} chat --model {out}")
    print(f"  open {page}")
    return 0


def _train(config: RunConfig, out: Path) -> Outcome:
    return train(config, out, sampler(out / TOKENIZER, PROMPTS, Sampling()))


def _share(validation: dict[str, Any] | None, config: RunConfig) -> float | None:
    """The held-out loss as a fraction of ln V, the loss of a uniform guess."""
    if validation is None or validation["loss"] is None:
        return None
    return round(float(validation["loss"]) / math.log(config.model.vocab_size), 4)


def _reached(out: Path, outcome: Outcome, config: RunConfig) -> str:
    """One line: what the training reached, and on what."""
    manifest = load_manifest(out / MANIFEST)
    machine = manifest.details["machine"]
    share = _share(outcome.validation, config)
    loss = "held-out loss not measured"
    if outcome.validation is not None and share is not None:
        loss = f"held-out loss {outcome.validation['loss']:.3f}, {share:.0%} of ln {config.model.vocab_size}"
    return (
        f"reached: {loss}, with {manifest.counts['parameters'] / 1e6:.1f} million parameters and "
        f"{outcome.state.tokens:,} tokens in {human_seconds(outcome.state.seconds)} of training, "
        f"{machine['precision']} on {machine.get('device_name', machine['cpu'])}"
    )


def _show_samples(out: Path) -> None:
    for sample in read_json_lines(out / CONTINUATIONS)[-len(PROMPTS) :]:
        text = " ".join((sample["prompt"] + sample["text"]).split())
        print(f"\n  {text[:300]}")


def _puna() -> str:
    """The command as the user can type it: with its path in a virtual environment that is not active."""
    here = Path(sys.argv[0])
    on_path = any(Path(directory) == here.parent for directory in os.get_exec_path())
    return "puna" if on_path or here.name != "puna" else os.path.relpath(here)
