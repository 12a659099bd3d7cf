"""The state of a run and the steps that deserve a look."""

import json
import math
import os
from pathlib import Path

import pytest

from puna.files import read_json_lines
from puna.report.health import health, outliers, stalls, time_by_part
from puna.report.run import read_run
from tests.report.test_report import make_run


def with_records(run: Path, change) -> Path:
    """The run with its training records changed by a function of them."""
    path = run / "metrics.jsonl"
    records = read_json_lines(path)
    change({record["step"]: record for record in records if record["kind"] == "train"})
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return run


@pytest.fixture
def unfinished(tmp_path):
    return make_run(tmp_path, steps=90, finished=False)


def test_a_run_that_wrote_lately_runs_and_one_that_did_not_has_stopped(unfinished):
    run = read_run(unfinished)
    assert health(run, now=run.written + 60).state == "running"
    assert "left" in health(run, now=run.written + 60).line
    assert health(run, now=run.written + 3600).state == "stopped"
    assert "left" not in health(run, now=run.written + 3600).line


def test_slow_steps_are_waited_for(unfinished):
    def change(steps):
        for step, record in steps.items():
            record["seconds"] = 600 * step

    run = read_run(with_records(unfinished, change))
    assert health(run, now=run.written + 3600).state == "running"


def test_a_run_that_ends_with_nan_has_diverged(unfinished):
    run = read_run(with_records(unfinished, lambda steps: steps[90].update(loss=math.nan)))
    found = health(run, now=run.written)
    assert found.state == "diverged"
    assert "last loss nan, " in found.line
    assert "1 steps not finite" in found.line


def test_the_trend_is_told_only_when_it_is_more_than_noise(tmp_path):
    run = make_run(tmp_path)
    falling = with_records(run, lambda steps: [r.update(loss=9 - r["step"] / 40) for r in steps.values()])
    assert "falling by 0.500 over the last 20 steps" in health(read_run(falling)).line
    noisy = with_records(run, lambda steps: [r.update(loss=4 + (-1) ** r["step"]) for r in steps.values()])
    assert "level over the last 20 steps" in health(read_run(noisy)).line


def test_outliers_name_their_step_and_the_command_that_shows_the_batch(tmp_path):
    def change(steps):
        steps[40].update(grad_norm=500.0)
        steps[60].update(skipped=True)
        steps[70].update(loss=math.nan)

    found = outliers(read_run(with_records(make_run(tmp_path), change)))
    assert [record["step"] for record in found] == [40, 60, 70]
    assert [record["why"].split()[0] for record in found] == ["gradient", "skipped", "not"]
    assert found[0]["command"].endswith(f"--model {tmp_path}/runs/demo --step 39")


def test_stalls_are_steps_far_over_the_median_duration(tmp_path):
    def change(steps):
        for step, record in steps.items():
            record["seconds"] = 0.5 * step + (20 if step >= 33 else 0)

    found = stalls(read_run(with_records(make_run(tmp_path), change)))
    assert [(record["step"], record["seconds"]) for record in found] == [(33, 20.5)]
    assert found[0]["times"] == pytest.approx(41)


def test_time_by_part_adds_up_over_the_steps(tmp_path):
    def change(steps):
        steps[1]["seconds_by_part"] = {"data": 1.0, "compute": 2.0}
        steps[2]["seconds_by_part"] = {"compute": 3.0, "checkpoint": 0.5}

    run = with_records(make_run(tmp_path), change)
    assert time_by_part(read_run(run)) == [("compute", 5.0), ("data", 1.0), ("checkpoint", 0.5)]


def test_an_empty_directory_with_a_configuration_has_not_begun(unfinished):
    os.truncate(unfinished / "metrics.jsonl", 0)
    assert health(read_run(unfinished)).state == "not begun"
