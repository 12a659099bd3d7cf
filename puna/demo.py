"""`puna demo`: the whole road on real input, in minutes on two CPU cores.

    pinned packages ─> raw dumps ─> documents/SOURCE ─> tokenizer ─> shards ─> run ─> report.html

Each stage is the public function its verb calls, and knows what it has done already: the demo itself keeps
no state. Killed at any moment, it goes on from there; finished, it says so.
"""

import json as json_module
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from puna.config import RunConfig, Sampling
from puna.corpus.samples import SAMPLES, fetch_sample
from puna.corpus.stage import clean_source
from puna.files import human_bytes, human_seconds, read_json_lines
from puna.generate.samples import sampler
from puna.recipes import recipe
from puna.report.page import build_report
from puna.tokens.shards import write_shards
from puna.tokens.training import train_tokenizer
from puna.train.loop import Outcome, train

VOCAB_SIZE = 4096
STOPPED = 130
PROMPTS = (
    "To be, or not to be",
    "The history of philosophy",
    "def __init__(self",
    "In the United States",
)


def demo_config(shards: Path) -> RunConfig:
    """The demo's run: the 15m recipe with small batches, for the most learning in a few minutes."""
    base = recipe("15m")
    return replace(
        base,
        data=(str(shards),),
        model=replace(base.model, vocab_size=VOCAB_SIZE),
        optim=replace(base.optim, lr=3e-3, warmup_steps=60),
        train=replace(
            base.train, steps=700, batch_tokens=2048, micro_batch=4, validate_every=140, save_every=50
        ),
    )


@contextmanager
def _stage(title: str, quiet: bool) -> Iterator[list[str]]:
    """Say what was done and how long it took, on one line, once it is done."""
    started = time.monotonic()
    facts: list[str] = []
    yield facts
    if not quiet:
        print(f"{title:<12} {'; '.join(facts)}  [{human_seconds(time.monotonic() - started)}]", flush=True)


def run_demo(out: Path, json: bool = False) -> int:
    """Run or go on with the demo in `out`; gives the exit code."""
    started = time.monotonic()
    documents = {source: out / "documents" / source for source in SAMPLES}
    for source, directory in documents.items():
        with _stage(source, json) as facts:
            manifest = clean_source(source, [fetch_sample(source)], directory)
            counts = manifest["counts"]
            dropped = sum(count for key, count in counts.items() if key.startswith("dropped: "))
            facts += [
                f"{counts['kept']:,} documents, {counts['characters'] / 1e6:.1f} million characters",
                f"{dropped:,} dropped, {manifest['bad']} damaged",
            ]
    with _stage("tokenizer", json) as facts:
        train_tokenizer(list(documents.values()), out / "tokenizer", vocab_size=VOCAB_SIZE)
        facts.append(f"{VOCAB_SIZE:,} pieces of SentencePiece BPE")
    with _stage("shards", json) as facts:
        manifest = write_shards(list(documents.values()), out / "tokenizer", out / "shards")
        held = manifest["sources"].values()
        facts.append(f"{sum(source['train_tokens'] for source in held):,} tokens to train on")
        facts.append(f"{sum(source['val_tokens'] for source in held):,} held out")
    with _stage("train", json) as facts:
        outcome = _train(out)
        facts.append(f"{outcome.state.step:,} steps, {outcome.state.tokens:,} tokens")
        if outcome.validation is not None:
            facts.append(f"held-out loss {outcome.validation['loss']:.3f}")
    if not outcome.finished:
        print("stopped; `make demo` goes on from here", file=sys.stderr)
        return STOPPED
    with _stage("report", json) as facts:
        page = build_report(out)
        facts.append(f"{page}, {human_bytes(page.stat().st_size)}")

    seconds = time.monotonic() - started
    if json:
        result = {
            "run": str(out),
            "report": str(page),
            "validation": outcome.validation,
            "seconds": round(seconds, 1),
        }
        print(json_module.dumps(result))
        return 0
    _show_samples(out)
    print(f"\ndone in {human_seconds(seconds)}. Next:")
    print(f"  {_puna()} chat --model {out}")
    print(f"  open {page}")
    return 0


def _train(out: Path) -> Outcome:
    sample = sampler(out / "tokenizer.model", PROMPTS, Sampling())
    return train(demo_config(out / "shards"), out, sample)


def _show_samples(out: Path) -> None:
    for sample in read_json_lines(out / "samples.jsonl")[-len(PROMPTS) :]:
        text = " ".join((sample["prompt"] + sample["text"]).split())
        print(f"\n  {text[:300]}")


def _puna() -> str:
    """The command as the user can type it: in a virtual environment that is not active, with its path."""
    here = Path(sys.argv[0])
    on_path = any(Path(directory) == here.parent for directory in os.get_exec_path())
    return "puna" if on_path or here.name != "puna" else os.path.relpath(here)
