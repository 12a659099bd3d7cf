"""What finetuning would train on, to look at: examples with their targets marked.

    1 of 175 · seed_tasks.jsonl:1 · 61 tokens, 24 of them trained on (39 %)
    <|im_start|>user⏎
    What is the relation between the given pairs?<|im_end|>⏎
    <|im_start|>assistant⏎
    ⟦They are opposites.<|im_end|>⟧⏎

On a terminal the targets are in colour; elsewhere they are between ⟦ and ⟧.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np

from puna.finetune.examples import Examples
from puna.finetune.packing import PackedExamples
from puna.tokens.mixture import IGNORED
from puna.tokens.tokenizer import Tokenizer

_COLOUR, _DIM, _PLAIN = "\x1b[1;32m", "\x1b[2m", "\x1b[0m"


def preview(sets: Sequence[Examples], count: int, tokenizer: Tokenizer, colour: bool) -> str:
    """`count` examples of each set, evenly spread over its file, with what was cut and set aside."""
    lines = []
    for examples in sets:
        for index in np.unique(np.linspace(0, len(examples) - 1, count).astype(int)).tolist():
            lines += [*_shown(examples, index, tokenizer, colour), ""]
        share = examples.is_target.mean()
        lines.append(
            f"{examples.name}: {len(examples):,} examples, {len(examples.ids):,} tokens, "
            f"{share:.0%} of them trained on"
        )
        noted = {name: number for name, number in examples.counts.items() if number and name != "examples"}
        lines += [f"  {name}: {number:,}" for name, number in noted.items()]
        lines += [f"  {item}" for item in examples.malformed[:count]]
    return "\n".join(lines)


def batch_rows(data: PackedExamples, step: int, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """The rows of the batch of a step, without padding: set, number of examples, text with targets marked."""
    batch = data.batch(step)
    rows = []
    assert batch.segments is not None
    for row, (inputs, targets, segments) in enumerate(
        zip(batch.inputs, batch.targets, batch.segments, strict=True)
    ):
        texts = []
        for segment in range(segments[-1] + 1):
            own = segments == segment
            wanted = targets[own].tolist()
            if any(target != IGNORED for target in wanted):  # else it is the padding
                # A target is the token after its input; an example's last token is a target alone.
                ids = [*inputs[own].tolist(), wanted[-1]]
                is_target = [False, *(target != IGNORED for target in wanted)]
                end = len(ids) if is_target[-1] else len(ids) - 1
                texts.append(_marked(ids[:end], is_target[:end], tokenizer, colour=False))
        rows.append(
            {
                "row": row,
                "source": data.sources[int(batch.sources[row])],
                "examples": len(texts),
                "tokens": int((targets != IGNORED).sum()),
                "text": "\n".join(texts),
            }
        )
    return rows


def _shown(examples: Examples, index: int, tokenizer: Tokenizer, colour: bool) -> list[str]:
    span = examples.span(index)
    ids, is_target = examples.ids[span].tolist(), examples.is_target[span].tolist()
    cut = int(examples.cut_turns[index])
    head = (
        f"{index + 1:,} of {len(examples):,} · {examples.places[index]} · {len(ids):,} tokens, "
        f"{sum(is_target):,} of them trained on ({sum(is_target) / len(ids):.0%})"
        f"{f' · {cut} messages cut from the beginning' if cut else ''}"
    )
    return [f"{_DIM}{head}{_PLAIN}" if colour else head, _marked(ids, is_target, tokenizer, colour)]


def _marked(ids: Sequence[int], is_target: Sequence[bool], tokenizer: Tokenizer, colour: bool) -> str:
    """Decoded text with its targets marked."""
    begin, end = (_COLOUR, _PLAIN) if colour else ("⟦", "⟧")
    text = ""
    stream = tokenizer.stream_decoder()
    controls = {*tokenizer.controls.values(), tokenizer.bos_id, tokenizer.eos_id}
    for trained, group in groupby(zip(ids, is_target, strict=True), key=lambda pair: pair[1]):
        said = ""
        for id, _ in group:
            # Control tokens are told from text by the id: text may hold the same characters.
            said += f"{stream.flush()}{_control(tokenizer, id, colour, trained)}" if id in controls else ""
            said += _visible(stream.push(id)) if id not in controls else ""
        said += _visible(stream.flush())
        text += f"{begin}{said}{end}" if trained else said
    return text


def _control(tokenizer: Tokenizer, id: int, colour: bool, trained: bool) -> str:
    text = tokenizer.control_text(id)
    return f"{_DIM}{text}{_PLAIN}{_COLOUR * trained}" if colour else text


def _visible(text: str) -> str:
    """A text without what would steer a terminal; line ends remain."""
    return "".join(c if c in "\n\t" or c.isprintable() else "\ufffd" for c in text)
