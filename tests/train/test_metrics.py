"""The lines a run tells: rewound to a step, whatever characters they hold."""

import json

from puna.files import read_json_lines
from puna.train.metrics import JsonLines


def test_rewinding_keeps_the_lines_up_to_a_step(tmp_path):
    lines = JsonLines(tmp_path / "samples.jsonl")
    for step in range(1, 6):
        lines.write({"step": step, "text": f"a\u2028b\x85c\n{step}"})
    lines.rewind(3)
    assert [record["step"] for record in read_json_lines(lines.path)] == [1, 2, 3]
    lines.write({"step": 4, "text": "again"})
    assert [record["step"] for record in read_json_lines(lines.path)] == [1, 2, 3, 4]


def test_rewinding_drops_a_torn_last_line(tmp_path):
    lines = JsonLines(tmp_path / "metrics.jsonl")
    lines.write({"step": 1})
    lines.write({"step": 2})
    with lines.path.open("a") as file:
        file.write(json.dumps({"step": 2, "loss": 5.123})[:-4])
    lines.rewind(9)
    assert read_json_lines(lines.path) == [{"step": 1}, {"step": 2}]


def test_rewinding_nothing_is_nothing(tmp_path):
    JsonLines(tmp_path / "none.jsonl").rewind(3)
    assert not (tmp_path / "none.jsonl").exists()
