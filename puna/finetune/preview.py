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

import numpy as np

from puna.finetune.examples import Examples
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


def _shown(examples: Examples, index: int, tokenizer: Tokenizer, colour: bool) -> list[str]:
    span = examples.span(index)
    ids, is_target = examples.ids[span].tolist(), examples.is_target[span].tolist()
    cut = int(examples.cut_turns[index])
    head = (
        f"{index + 1:,} of {len(examples):,} · {examples.places[index]} · {len(ids):,} tokens, "
        f"{sum(is_target):,} of them trained on ({sum(is_target) / len(ids):.0%})"
        f"{f' · {cut} messages cut from the beginning' if cut else ''}"
    )
    begin, end = (_COLOUR, _PLAIN) if colour else ("⟦", "⟧")
    text = ""
    stream = tokenizer.stream_decoder()
    controls = set(tokenizer.controls.values())
    for trained, group in groupby(zip(ids, is_target, strict=True), key=lambda pair: pair[1]):
        said = ""
        for id, _ in group:
            # Control tokens are told from text by the id: text may hold the same characters.
            said += f"{stream.flush()}{_control(tokenizer, id, colour, trained)}" if id in controls else ""
            said += _visible(stream.push(id)) if id not in controls else ""
        said += _visible(stream.flush())
        text += f"{begin}{said}{end}" if trained else said
    return [f"{_DIM}{head}{_PLAIN}" if colour else head, text]


def _control(tokenizer: Tokenizer, id: int, colour: bool, trained: bool) -> str:
    text = tokenizer.control_text(id)
    return f"{_DIM}{text}{_PLAIN}{_COLOUR * trained}" if colour else text


def _visible(text: str) -> str:
    """A text without what would steer a terminal; line ends remain."""
    return "".join(c if c in "\n\t" or c.isprintable() else "\ufffd" for c in text)
