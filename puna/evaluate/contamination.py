"""How many test items a run may have seen: 13 tokens in a row that also occur in its shards.

    test items ──every 13 tokens──> hashes, sorted ─┐
    shards ─────every 13 tokens──> hashes ──────────┴─ found ─> items that overlap, per task

Equal 64-bit hashes of different windows would need about 10^9 windows on either side to be likely once.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna.evaluate.model import Model
from puna.evaluate.task import Example

WINDOW = 13
_AT_ONCE = 1 << 24  # tokens of a shard
_FACTOR = 0x9E3779B97F4A7C15  # odd, its bits evenly spread


def hashes(tokens: NDArray[Any]) -> NDArray[np.uint64]:
    """The hash of every window of WINDOW tokens; none when there are fewer."""
    count = len(tokens) - WINDOW + 1
    if count < 1:
        return np.empty(0, np.uint64)
    values = tokens.astype(np.uint64) + np.uint64(1)
    found = np.zeros(count, np.uint64)
    for place in range(WINDOW):
        found *= np.uint64(_FACTOR)
        found ^= values[place : place + count]
        found ^= found >> np.uint64(29)
    return found


def overlap(shards: Path, tasks: Mapping[str, Sequence[Example]], model: Model) -> dict[str, dict[str, Any]]:
    """For each task the share of its examples that have a window in common with the shards.

    Items shorter than WINDOW tokens cannot overlap; their number is given too.

    Raises:
        ValueError: when there are no shards at the path.
    """
    files = sorted(shards.rglob("*.npy"))
    if not files:
        raise ValueError(f"no token shards (*.npy) under {shards}; give the directory that puna shards wrote")
    owners: list[tuple[str, int]] = []
    windows: list[NDArray[np.uint64]] = []
    short: dict[str, int] = {}
    for task, examples in tasks.items():
        for index, ids in enumerate(model.encode([text_of(example) for example in examples])):
            found = np.unique(hashes(ids[int(model.begins_with_bos) :]))
            short[task] = short.get(task, 0) + (not len(found))
            windows.append(found)
            owners.append((task, index))
    lengths = np.array([len(found) for found in windows])
    flat = np.concatenate(windows) if windows else np.empty(0, np.uint64)
    order = np.argsort(flat, kind="stable")
    known, item = flat[order], np.repeat(np.arange(len(owners)), lengths)[order]
    is_seen = np.zeros(len(known), np.bool_)
    for file in files:
        tokens = np.load(file, mmap_mode="r").reshape(-1)
        for start in range(0, len(tokens), _AT_ONCE):
            seen = np.unique(hashes(tokens[start : start + _AT_ONCE + WINDOW - 1]))
            places = np.searchsorted(seen, known)
            inside = places < len(seen)
            is_seen[inside] |= seen[places[inside]] == known[inside]
    hit = np.zeros(len(owners), np.bool_)
    hit[item[is_seen]] = True
    result: dict[str, dict[str, Any]] = {}
    for task, examples in tasks.items():
        hits = [
            examples[i].id for (name, i), is_hit in zip(owners, hit, strict=True) if name == task and is_hit
        ]
        result[task] = {
            "contamination": {"items": len(hits), "of": len(examples), "too_short": short[task], "ids": hits}
        }
    return result


def text_of(example: Example) -> str:
    """The text of a test item that a training set might hold: its question, with the right option."""
    answer = example.options[example.gold[0]] if example.options and example.gold else ""
    return example.question + answer
