"""Charts are honest: round ticks, centred means, no extreme lost."""

import json
import math

import numpy as np
import pytest

from puna.report.axes import log_ticks, round_ticks
from puna.report.charts import Chart, draw
from puna.report.series import series, smooth, thin


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (4.3, 8.4, [4, 5, 6, 7, 8, 9]),
        (0, 0.001, [0, 0.0002, 0.0004, 0.0006, 0.0008, 0.001]),
        (0, 1.4e12, [0, 5e11, 1e12, 1.5e12]),
    ],
)
def test_ticks_stand_at_round_numbers_around_the_values(low, high, expected):
    assert round_ticks(low, high) == pytest.approx(expected)


def test_log_ticks_are_powers_of_ten_and_their_two_and_five_folds():
    assert log_ticks(0.3, 40) == pytest.approx([0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100])


def test_the_mean_is_centred_and_leaves_out_what_is_not_finite():
    assert smooth([1.0, 2.0, 6.0, 4.0], 3) == pytest.approx([1, 3, 4, 4])
    values = smooth([1.0, math.nan, 3.0, 5.0], 3)
    assert values[2] == pytest.approx(4)
    assert math.isnan(values[1])


def test_a_thinned_curve_keeps_every_extreme_and_every_gap():
    values = np.sin(np.arange(100_000) / 900)
    values[4321], values[77_777], values[50_000:50_400] = 99.0, -99.0, math.nan
    kept = thin(values)
    assert len(kept) <= 3 * 600
    assert {4321, 77_777} <= set(kept.tolist())
    assert np.isnan(values[kept]).any()
    assert (np.diff(kept) > 0).all()


def test_a_chart_of_one_point_or_a_constant_can_be_drawn():
    for points in ([(1, 4096, 8.3)], [(0, 0, 0.0)], [(1, 1, 5.0), (2, 2, 5.0)]):
        drawn = draw(Chart("c", "t", "d", "loss", [series("s", points, style="points")]))
        assert "nan" not in drawn
        assert "<svg" in drawn


def test_the_script_gets_bins_with_their_means_and_extremes():
    values = np.zeros(100_000)
    values[31_415] = 7.0
    points = [(step, 10 * step, y) for step, y in enumerate(values, 1)]
    raw = series("raw", points, style="raw")
    mean = series("mean", points, style="mean")
    drawn = draw(Chart("c", "t", "d", "loss", [raw, mean]))
    data = json.loads(drawn.split('<script type="application/json">')[1].split("</script>")[0])
    first, second = data["series"]
    assert second["of"] == 0
    assert "y" not in second
    assert len(first["y"]) == 4000
    assert max(first["high"]) == 7.0
    assert max(first["y"]) == pytest.approx(7 / 25)
    assert first["tokens"] == [10 * step for step in first["steps"]]


def test_no_name_ends_the_block_of_data():
    drawn = draw(Chart("c", "t", "d", "loss", [series("</script><script>alert(1)", [(1, 1, 5.0)])]))
    assert drawn.count("<script") == drawn.count("</script>") == 1
