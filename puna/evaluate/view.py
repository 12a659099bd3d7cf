"""A run's records -> one HTML file that shows every example: no server, no other files.

A prompt is stored as the number of characters that it shares with the one before, and the rest, so that
few-shot prefixes are stored once; examples are drawn a page at a time.
"""

import html
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from puna.evaluate.records import Record, iterate_records
from puna.evaluate.results import COLUMNS, table_rows
from puna.files import atomic_file


def write_page(run: Path, results: dict[str, Any], target: Path) -> None:
    """Write the page of a run."""
    page = Path(__file__).with_name("view.html").read_text("utf-8")
    page = page.replace("$title", html.escape(f"{results['model']}: evaluation"))
    before, after = page.replace("$summary", _summary(results["results"])).split("$data")
    with atomic_file(target) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(before)
        for result in results["results"]:
            if "label" in result:
                count = result["n"] + result["skipped"]
                records = list(_compact(run / f"{result['label']}.jsonl", count))
                file.write(f'<script type="application/json" data-task="{html.escape(result["label"])}">')
                data = json.dumps(records, ensure_ascii=False, separators=(",", ":"))
                file.write(data.replace("</", "<\\/").replace("<!--", "<\\!--"))
                file.write("</script>\n")
        file.write(after)


def _summary(results: list[dict[str, Any]]) -> str:
    head = "".join(f"<th>{title}</th>" for title in COLUMNS)
    rows = [row for result in results for row in table_rows(result)]
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>\n" for row in rows
    )
    return f"<table><tr>{head}</tr>\n{body}</table>"


def _compact(path: Path, count: int) -> Iterator[dict[str, Any]]:
    """The records in short: what the page shows."""
    before = ""
    for place, record in enumerate(iterate_records(path)):
        if place == count:
            return
        prompt = record["prompt"]
        shared = _shared(before, prompt)
        yield _short(record) | {"p": [_utf16(prompt[:shared]), prompt[shared:]], "q": _question(prompt)}
        before = prompt


def _short(record: Record) -> dict[str, Any]:
    values = list(record["values"].values())
    short: dict[str, Any] = {
        "id": record["id"],
        "v": values[0] if values else None,
        "why": record.get("why", ""),
        "n": record["tokens"],
        "shots": max(0, record["shots"]),
        "b": record["border"],
    }
    if "groups" in record:
        short["g"] = record["groups"]
    if record.get("skipped"):
        short["cut"] = 1
    if "options" in record:
        rules = list(record["scores"])
        columns = list(record["scores"].values())
        short |= {
            "o": [
                [o["text"], round(o["logprob"], 4), o["tokens"], *(_rounded(column[i]) for column in columns)]
                for i, o in enumerate(record["options"])
            ],
            "rules": rules,
            "gold": record["gold"],
            "c": record["chosen"],
        }
    if "samples" in record:
        samples = record["samples"]
        short["s"] = [[s["text"], s["answer"], s["why"], s["value"], s["finish"]] for s in samples]
        short["r"] = record["references"]
        if any(sample["finish"] == "length" for sample in samples):
            short["cut"] = 1
    return short


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _shared(left: str, right: str) -> int:
    """The number of characters that both begin with."""
    low, high = 0, min(len(left), len(right))
    while low < high:  # by halves: comparing slices is quick
        middle = (low + high + 1) // 2
        low, high = (middle, high) if left[:middle] == right[:middle] else (low, middle - 1)
    return low


def _utf16(text: str) -> int:
    """The length of a text in JavaScript."""
    return len(text) + sum(ord(character) > 0xFFFF for character in text)


def _question(prompt: str) -> int:
    """Where the last example begins, for the page to show shots in grey."""
    marks = ("\n\nQ: ", "\n\nQuestion: ", "\n\nProblem:", "\nQ: ", "\n\nYou are an expert", "\n\n")
    places = [place for mark in marks if (place := prompt.rfind(mark, 0, len(prompt) - 1)) >= 0]
    return _utf16(prompt[: places[0]]) if places else 0
