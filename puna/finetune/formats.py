"""Instruction data in the formats that it is published in -> conversations.

In:  JSON lines (gzip, bzip2 and Zstandard too), a JSON array, or Parquet.
Out: a Row per example; a Malformed for each record that is not one, with its file, line and reason.

    messages   {"messages": [{"role": "user", "content": …}, {"role": "assistant", "content": …}]}
    sharegpt   {"conversations": [{"from": "human", "value": …}, {"from": "gpt", "value": …}], "system": …}
    alpaca     {"instruction": …, "input": …, "output": …}
    tasks      {"instruction": …, "instances": [{"input": …, "output": …}]}      an example per instance
    prompt     {"prompt": …, "completion": …}                                    texts, or lists of messages
    flan       {"inputs": …, "targets": …}
    text       {"text": …}                                                       all of it is trained on

Each record's format is recognised by its fields, unless one is given for the whole file.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puna.config import DataFormat
from puna.corpus.document import DamagedRecord
from puna.corpus.json_lines import read_json_lines
from puna.tokens.chat_template import ROLES, Message

MAX_CHARACTERS = 4 << 20  # of an example: more is no instruction, and would be cut or refused anyway
_FIELDS: dict[DataFormat, tuple[str, ...]] = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "tasks": ("instruction", "instances"),
    "prompt": ("prompt", "completion"),
    "flan": ("inputs", "targets"),
    "text": ("text",),
}
_SPEAKERS = {
    **{role: role for role in ROLES},
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "bot", "model"), "assistant"),
    **dict.fromkeys(("function", "function_response", "observation"), "tool"),
}
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Row:
    """One example: a conversation that ends with an answer, or a text."""

    place: str
    """File and line, as `data.jsonl:12`."""
    messages: tuple[Message, ...] = ()
    text: str = ""
    """A text to continue training on, instead of a conversation."""


@dataclass(frozen=True)
class Malformed:
    """A record that is no example. `reason` is a short fixed phrase that is counted; `detail` varies."""

    place: str
    reason: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}{f' ({self.detail})' if self.detail else ''}"


class _Refused(Exception):
    """Reason and detail."""


def read_rows(path: Path, format: DataFormat | None = None) -> Iterator[Row | Malformed]:
    """The examples of a file, in its order. Malformed records are returned in their places.

    Raises:
        ValueError: no such file, or a JSON array or Parquet file that cannot be read.
    """
    if not path.is_file():
        raise ValueError(f"there is no file {path}; give instruction data as JSON lines, JSON or Parquet")
    for place, values in _records(path):
        try:
            if isinstance(values, DamagedRecord):
                raise _Refused(*_damage(values))
            yield from _rows(values, format, place)
        except _Refused as refused:
            yield Malformed(place, *refused.args)


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open("rb") as file:
        head = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")
    if head.startswith(b"PAR1"):
        import pyarrow.parquet as parquet

        batches = parquet.ParquetFile(path).iter_batches()
        records: Iterator[Any] = (row for batch in batches for row in batch.to_pylist())
    elif head.startswith(b"["):
        try:
            records = iter(json.loads(path.read_bytes()))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not a JSON array ({error}); get the file again") from error
    else:
        for line in read_json_lines(path, path.name):
            if isinstance(line, DamagedRecord):
                found = re.match(r"line (\d+)", line.reason)
                yield f"{path.name}:{found[1] if found else f'byte {line.offset}'}", line
            else:
                yield f"{path.name}:{line.number}", line.values
        return
    for number, values in enumerate(records, 1):
        yield f"{path.name}[{number}]", values


def _damage(record: DamagedRecord) -> tuple[str, str]:
    """A damaged line's reason without what varies, and that."""
    reason = re.sub(r"^line \d+: ", "", record.reason)
    if "bytes are too long" in reason:
        return "line too long", reason
    reason, _, detail = reason.partition(" (")
    return reason, detail.removesuffix(")")


def _rows(values: Any, format: DataFormat | None, place: str) -> Iterator[Row]:
    if not isinstance(values, dict):
        raise _Refused("no JSON object")
    chosen = format or _recognised(values)
    if missing := [name for name in _FIELDS[chosen] if values.get(name) is None]:
        raise _Refused("missing field", missing[0])
    if chosen == "text":
        yield Row(place, text=_text(values["text"], "text"))
        return
    for messages in _conversations(chosen, values):
        yield Row(place, messages=_checked(messages))


def _recognised(values: Mapping[str, Any]) -> DataFormat:
    held = {name for name, value in values.items() if value is not None}
    fitting = [format for format, fields in _FIELDS.items() if held.issuperset(fields)]
    if len(fitting) > 1 and fitting[-1] == "text":  # some files hold the rendered conversation beside it
        del fitting[-1]
    if len(fitting) > 1:
        raise _Refused("fits several formats", f"{' and '.join(fitting)}; choose one by --format")
    if not fitting:
        raise _Refused("fields of no known format", ", ".join(sorted(held))[:80])
    return fitting[0]


def _conversations(format: DataFormat, values: Mapping[str, Any]) -> Iterator[list[Message]]:
    if format == "messages":
        yield _messages(values["messages"], "role", "content")
    elif format == "sharegpt":
        said = _messages(values["conversations"], "from", "value")
        yield _system(values.get("system")) + said
    elif format == "alpaca":
        yield _exchange(_joined(values), values["output"], "output")
    elif format == "tasks":
        for instance in _list(values["instances"], "instances"):
            if not isinstance(instance, dict) or instance.get("output") is None:
                raise _Refused("missing field", "instances.output")
            yield _exchange(_joined({**instance, **values}), instance["output"], "output")
    elif format == "prompt" and isinstance(values["prompt"], list):
        yield _messages(values["prompt"], "role", "content") + _messages(
            values["completion"], "role", "content"
        )
    else:
        asked, answered = _FIELDS[format]
        yield _exchange(values[asked], values[answered], answered)


def _exchange(question: Any, answer: Any, field: str) -> list[Message]:
    return [
        {"role": "user", "content": _text(question, "prompt")},
        {"role": "assistant", "content": _text(answer, field)},
    ]


def _joined(values: Mapping[str, Any]) -> str:
    """The instruction, and below it what it is about."""
    parts = [_text(values["instruction"], "instruction"), _text(values.get("input") or "", "input")]
    return "\n\n".join(part for part in parts if part.strip())


def _system(text: Any) -> list[Message]:
    return [{"role": "system", "content": _text(text, "system")}] if text else []


def _messages(values: Any, speaker: str, said: str) -> list[Message]:
    messages: list[Message] = []
    for number, value in enumerate(_list(values, "messages")):
        if not isinstance(value, dict):
            raise _Refused("message is not a JSON object", f"message {number}")
        name, content = value.get(speaker), value.get(said)
        role = _SPEAKERS.get(name) if isinstance(name, str) else None
        if role is None or (speaker == "role" and name not in ROLES):
            raise _Refused("unknown role", f"message {number}: {name!r}"[:80])
        messages.append({"role": role, "content": _text(content, f"message {number}")})
    return messages


def _list(value: Any, field: str) -> list[Any]:
    if not isinstance(value, list):
        raise _Refused("field of a wrong type", f"{field} is a {type(value).__name__}, expected a list")
    if not value:
        raise _Refused("empty list", field)
    return value


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise _Refused("field of a wrong type", f"{field} is a {type(value).__name__}, expected a text")
    if _SURROGATE.search(value):
        raise _Refused("not Unicode text", f"{field} holds half a surrogate pair")
    if "\0" in value:
        raise _Refused("NUL character", field)
    if len(value) > MAX_CHARACTERS:
        raise _Refused("text too long", f"{field}: {len(value):,} characters")
    if field == "text" and not value.strip():
        raise _Refused("empty text")
    return value


def _checked(messages: list[Message]) -> tuple[Message, ...]:
    """The messages up to the last answer.

    What follows it, a question without an answer, has nothing to train on.
    """
    roles = [message["role"] for message in messages]
    if "assistant" not in roles:
        raise _Refused("no answer")
    if "system" in roles[1:]:
        raise _Refused("system message not first" if roles.count("system") == 1 else "two system messages")
    if roles[0] == "assistant" or roles[:2] == ["system", "assistant"]:
        raise _Refused("begins with an answer")
    last = len(roles) - roles[::-1].index("assistant")
    for message in messages[:last]:
        if message["role"] in ("user", "assistant") and not message["content"].strip():
            raise _Refused("empty answer" if message["role"] == "assistant" else "empty question")
    return tuple(messages[:last])
