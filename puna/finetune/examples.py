"""Conversations -> token ids with a mark on each that is trained on: the loss mask.

In:  a file of instruction data, a chat template with its vocabulary, the context.
Out: Examples: the ids of all conversations and which of them are targets, as flat arrays.

    messages[:i] with the generation prompt      <s> ### u s e r : … ### a s s i s t a n t : ⏎
    messages[:i+1]                               <s> ### u s e r : … ### a s s i s t a n t : ⏎ Y e s </s> ⏎⏎
                                                                              targets:         Y e s </s>

Targets are exactly the tokens of the assistant's answers, each with the token that ends it, also where a
template writes that token with the next message. They are found on tokens: if the shorter sequence is not
the beginning of the longer one, the example is refused by name. Padding is no token id but a mark of its own,
so the end token is a target whatever the vocabulary pads with.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from puna.config import DataFormat
from puna.finetune.formats import Malformed, Row, read_rows
from puna.progress import Bar
from puna.tokens.chat_template import ChatTemplate, Message
from puna.tokens.order import digest64
from puna.tokens.tokenizer import Tokenizer

_BATCH = 128  # conversations that are rendered at once
_BATCH_CHARACTERS = 2 << 20


@dataclass(frozen=True)
class Example:
    """One example, encoded."""

    ids: NDArray[np.uint32]
    is_target: NDArray[np.bool_]
    place: str
    key: int
    """A 64-bit hash of what it says: the same with any template and vocabulary."""
    target_bytes: int
    """UTF-8 bytes of its answers."""
    cut_turns: int = 0
    """Messages that were cut from its beginning to make it fit."""
    cut_answers: int = 0
    """Answers among them, which are not trained on."""


@dataclass(frozen=True)
class Examples:
    """The examples of one data set: flat arrays, in which example i is the tokens ends[i-1] to ends[i]."""

    name: str
    path: Path
    ids: NDArray[np.uint32]
    is_target: NDArray[np.bool_]
    ends: NDArray[np.int64]
    keys: NDArray[np.uint64]
    target_bytes: NDArray[np.int64]
    cut_turns: NDArray[np.int64]
    places: tuple[str, ...]
    counts: dict[str, int]
    """Examples, and what was cut and refused by reason, for the manifest."""
    malformed: list[Malformed] = field(repr=False)

    def __len__(self) -> int:
        return len(self.ends)

    def span(self, index: int) -> slice:
        """Where an example is in the flat arrays."""
        return slice(int(self.ends[index - 1]) if index else 0, int(self.ends[index]))

    @cached_property
    def digest(self) -> str:
        """Names the ids and the targets."""
        arrays = (self.ids, np.packbits(self.is_target), self.ends)
        return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()

    @property
    def lengths(self) -> NDArray[np.int64]:
        """The tokens of each example."""
        return np.diff(self.ends, prepend=0)


def read_examples(
    path: Path,
    template: ChatTemplate,
    tokenizer: Tokenizer,
    context: int,
    format: DataFormat | None = None,
    max_bad: float = 0.1,
) -> Examples:
    """Read and encode a file of instruction data, which names the data set.

    Conversations that are longer than the context lose their first turns, never a part of an answer; one
    whose last turn alone is too long is refused.

    Raises:
        ValueError: no such file, no example in it, or a larger share of malformed records than `max_bad`.
    """
    examples: list[Example] = []
    malformed: list[Malformed] = []
    rows = read_rows(path, format)
    with Bar(f"encode {path.name}", 0, "tokens") as bar:
        while batch := _next_batch(rows):
            for item in encode_rows(batch, template, tokenizer, context):
                if isinstance(item, Malformed):
                    malformed.append(item)
                else:
                    examples.append(item)
                    bar.advance(len(item.ids))
    total = len(examples) + len(malformed)
    if not examples and not malformed:
        raise ValueError(f"{path} is empty; give instruction data as JSON lines, JSON or Parquet")
    if not examples or len(malformed) > max_bad * total:
        raise ValueError(
            f"{len(malformed):,} of {total:,} records of {path} are malformed, over --max-bad {max_bad:g}; "
            f"the first is {malformed[0]}; fix them, or raise --max-bad"
        )
    return _flat(path, examples, malformed)


def _next_batch(rows: Iterator[Row | Malformed]) -> list[Row | Malformed]:
    batch: list[Row | Malformed] = []
    size = 0
    for row in islice(rows, _BATCH):
        batch.append(row)
        if isinstance(row, Row):
            size += sum(len(message["content"]) for message in row.messages) * len(row.messages)
        if size > _BATCH_CHARACTERS:
            break
    return batch


def encode_rows(
    rows: Sequence[Row | Malformed], template: ChatTemplate, tokenizer: Tokenizer, context: int
) -> list[Example | Malformed]:
    """The rows as examples of at most context + 1 tokens, in order; malformed ones stay in their places."""
    found: dict[int, list[Example | Malformed]] = {}
    waiting: dict[int, tuple[Row, tuple[Message, ...]]] = {}
    for place, row in enumerate(rows):
        if isinstance(row, Malformed):
            found[place] = [row]
        elif row.messages:
            waiting[place] = row, row.messages
        else:
            found[place] = _text_examples(row, tokenizer, context)
    while waiting:
        encoded = _encode([messages for _, messages in waiting.values()], template, tokenizer)
        again = {}
        for (place, (row, messages)), item in zip(waiting.items(), encoded, strict=True):
            if isinstance(item, tuple):
                found[place] = [Malformed(row.place, *item)]
            elif len(item.ids) <= context + 1:
                found[place] = [_example(row, messages, item)]
            elif shorter := _without_first_turns(messages, item, context):
                again[place] = row, shorter
            else:
                reason = "longer than the context", f"{len(item.ids) - 1:,} tokens, context {context:,}"
                found[place] = [Malformed(row.place, *reason)]
        waiting = again
    return [item for place in range(len(rows)) for item in found[place]]


@dataclass(frozen=True)
class _Encoded:
    ids: list[int]
    answers: list[tuple[int, int]]
    """Where the answers begin and end, end tokens included."""


def _encode(
    conversations: Sequence[Sequence[Message]], template: ChatTemplate, tokenizer: Tokenizer
) -> list[_Encoded | tuple[str, str]]:
    """The ids and answers of each conversation, or the reason why it is refused."""
    ends = template.end_ids | tokenizer.settings.end_ids | {tokenizer.eos_id}
    requests: list[tuple[Sequence[Message], bool]] = []
    counts = []
    for messages in conversations:
        answers = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
        for place in answers:
            requests += [(messages[:place], True), (messages[: place + 1], False)]
        counts.append(2 * len(answers))
    encoded = iter(template.encode_all(requests))
    return [
        _with_answers(list(islice(encoded, count)), ends, min(template.end_ids, default=tokenizer.eos_id))
        for count in counts
    ]


def _with_answers(
    beginnings: Sequence[list[int] | ValueError], ends: frozenset[int], end: int
) -> _Encoded | tuple[str, str]:
    """The answers of a conversation, found by its beginnings: up to each answer, and through it."""
    ids_of: list[list[int]] = []
    for item in beginnings:
        if isinstance(item, ValueError):
            kind = "refused by the template" if "template refuses" in str(item) else "not in the vocabulary"
            return kind, str(item)
        ids_of.append(item)
    whole, answers = ids_of[-1], []
    for before, through in zip(ids_of[::2], ids_of[1::2], strict=True):
        begin = len(before)
        if through[:begin] != before:
            return "answer merges with what precedes it", f"token {_difference(before, through)}"
        if whole[: len(through)] != through:
            return "template rewrites earlier turns", f"token {_difference(through, whole)}"
        stop = next((place for place in range(begin, len(through)) if through[place] in ends), len(through))
        if stop == len(whole):  # the template writes the end with the next message, and there is none
            whole = [*whole, end]
        if whole[stop] not in ends:
            return "no end of the answer", f"token {stop}"
        answers.append((begin, stop + 1))
    if any(begin + 1 >= stop for begin, stop in answers):
        return "empty answer", "the template writes nothing of it"
    return _Encoded(whole[: answers[-1][1]], answers)  # nothing reads what follows the last target


def _difference(shorter: Sequence[int], longer: Sequence[int]) -> int:
    """The first place where two sequences differ."""
    pairs = enumerate(zip(shorter, longer, strict=False))
    return next((place for place, (a, b) in pairs if a != b), len(longer))


def _without_first_turns(
    messages: tuple[Message, ...], encoded: _Encoded, context: int
) -> tuple[Message, ...] | None:
    """The conversation from a later question on; None when there is none.

    Cuts at least as much as is certainly needed; the rest is seen when it is encoded again.
    """
    system = messages[:1] if messages[0]["role"] == "system" else ()
    excess = len(encoded.ids) - 1 - context
    answered = -1
    for place, message in enumerate(messages):
        if message["role"] == "assistant":
            answered += 1
        elif message["role"] == "user" and answered >= 0 and encoded.answers[answered][1] >= excess:
            return system + messages[place:]
    return None


def _example(row: Row, messages: tuple[Message, ...], encoded: _Encoded) -> Example:
    is_target = np.zeros(len(encoded.ids), bool)
    for begin, end in encoded.answers:
        is_target[begin:end] = True
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    all_answers = sum(message["role"] == "assistant" for message in row.messages)
    return Example(
        np.array(encoded.ids, np.uint32),
        is_target,
        row.place,
        digest64(*(f"{message['role']}\n{message['content']}" for message in row.messages)),
        sum(len(answer.encode()) for answer in answers),
        len(row.messages) - len(messages),
        all_answers - len(answers),
    )


def _text_examples(row: Row, tokenizer: Tokenizer, context: int) -> list[Example | Malformed]:
    """A text between BOS and EOS, all of which is trained on, in as many examples as it fills."""
    try:
        ids = np.array(tokenizer.encode(row.text, bos=tokenizer.adds_bos, eos=True), np.uint32)
    except ValueError as error:
        return [Malformed(row.place, "not in the vocabulary", str(error))]
    examples: list[Example | Malformed] = []
    size = len(row.text.encode())
    for begin in range(0, len(ids) - 1, context):
        # The first token of each is only read: it was the last target of the one before.
        some = ids[begin : begin + context + 1]
        is_target = np.arange(len(some)) > 0
        examples.append(
            Example(some, is_target, row.place, digest64(row.text), size * (len(some) - 1) // (len(ids) - 1))
        )
    return examples


def _flat(path: Path, examples: list[Example], malformed: list[Malformed]) -> Examples:
    refused = Counter(item.reason for item in malformed)
    counts = {
        "examples": len(examples),
        "malformed": len(malformed),
        "conversations cut": sum(example.cut_turns > 0 for example in examples),
        "messages cut": sum(example.cut_turns for example in examples),
        "answers cut": sum(example.cut_answers for example in examples),
        **{f"malformed: {reason}": count for reason, count in sorted(refused.items())},
    }
    return Examples(
        path.name.split(".")[0],
        path,
        np.concatenate([example.ids for example in examples]),
        np.concatenate([example.is_target for example in examples]),
        np.cumsum([len(example.ids) for example in examples], dtype=np.int64),
        np.array([example.key for example in examples], np.uint64),
        np.array([example.target_bytes for example in examples], np.int64),
        np.array([example.cut_turns for example in examples], np.int64),
        tuple(example.place for example in examples),
        counts,
        malformed,
    )
