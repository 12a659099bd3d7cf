"""A finetuned run's page shows the scores before and after, beside the paper's LLaMA and LLaMA-I."""

import json
from dataclasses import replace
from pathlib import Path

from puna.config import to_dict
from puna.files import write_json
from puna.recipes import recipe
from puna.report.page import build_report


def score(value: float | None, error: float | None, n: int = 114) -> dict[str, object]:
    return {"score": value, "error": error, "chance": 25.0, "n": n}


def page_of(folder: Path, before: dict | None, after: dict | None) -> str:
    folder.mkdir()
    config = replace(recipe("15m"), data=("shards",))
    write_json(folder / "config.json", to_dict(config))
    records = [
        {"kind": "validation", "step": 0, "loss": 2.3, "evaluation": before},
        {"kind": "validation", "step": 10, "loss": 2.0},
        {"kind": "validation", "step": 30, "loss": 1.9, "evaluation": after, "final": True},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return build_report([folder], folder / "page.html").read_text(encoding="utf-8")


def test_scores_before_and_after_stand_beside_llama_i(tmp_path):
    before = {"mmlu": score(25.0, 3.0), "coqa": score(None, None)}
    page = page_of(tmp_path / "run", before, {"mmlu": score(29.5, 4.0), "coqa": score(1.0, None)})
    table = page[page.index("Before and after finetuning") :]
    for text in ("25.0 ± 3.0", "29.5 ± 4.0", "+4.5 ± 5.0", "114 of 14,042", "63.4", "68.9", "+5.5"):
        assert text in table, text
    assert "not scored" in table[: table.index("</table>")]


def test_a_run_without_both_scores_has_no_such_table(tmp_path):
    for name, before, after in (
        ("a", None, {"mmlu": score(25.0, 3.0)}),
        ("b", {"mmlu": score(25.0, 3.0)}, None),
    ):
        assert 'class="dense finetuned"' not in page_of(tmp_path / name, before, after)
