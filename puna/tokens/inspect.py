"""A batch as text: what each of its sequences says, and where it comes from.

In:  a mixture and a step.
Out: one record per sequence: source, epoch, window, tokens, text with the ends of documents marked.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from puna.tokens.mixture import IGNORED, Mixture
from puna.tokens.tokenizer import Tokenizer

# Not the usual "<s>", which a text may contain.
BEGINS, ENDS = "⟨s⟩", "⟨/s⟩"


def inspect_batch(mixture: Mixture, step: int) -> list[dict[str, Any]]:
    """The sequences of the batch of a step, as training sees them."""
    tokenizer = Tokenizer(mixture.tokenizer)
    batch = mixture.batch(step)
    rows = []
    for row, place in enumerate(mixture.places(step)):
        targets = batch.targets[row][batch.targets[row] != IGNORED]
        ids = [int(batch.inputs[row, 0]), *targets.tolist()]
        rows.append(
            {
                "row": row,
                "source": place.source,
                "epoch": place.epoch,
                "window": place.window,
                "windows": mixture.windows(place.source),
                "tokens": len(targets),
                "text": marked_text(tokenizer, ids),
            }
        )
    return rows


def marked_text(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Decoded text with BOS and EOS marked."""
    # EOS last: where one token is both, it is shown as the end.
    marks = {tokenizer.bos_id: BEGINS, tokenizer.eos_id: ENDS}
    runs = [(mark, list(run)) for mark, run in groupby(ids, marks.get)]
    return "".join(mark * len(run) if mark else tokenizer.decode(run) for mark, run in runs)


def shortened(text: str, characters: int) -> str:
    """A text that is longer than `characters`, reduced to its beginning and end."""
    if len(text) <= characters:
        return text
    half = characters // 2
    return f"{text[:half]} […{len(text) - 2 * half:,} characters…] {text[-half:]}"
