"""Charts are honest: round ticks, centred means, no extreme lost."""

import math

import pytest

from puna.report.charts import Chart, Series, draw, log_ticks, round_ticks, smooth, thin


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


def test_a_thinned_curve_keeps_every_extreme():
    points = [(float(x), math.sin(x / 900)) for x in range(100_000)]
    points[4321] = (4321.0, 99.0)
    points[77_777] = (77_777.0, -99.0)
    kept = thin(points)
    assert len(kept) <= 1200
    assert {(4321.0, 99.0), (77_777.0, -99.0)} <= set(kept)
    assert kept == sorted(kept)


def test_a_chart_of_one_point_or_a_constant_can_be_drawn():
    for points in ([(4096.0, 8.3)], [(0.0, 0.0)], [(1.0, 5.0), (2.0, 5.0)]):
        drawn = draw(Chart("c", "t", "d", "loss", [Series("s", points, "points")]))
        assert "nan" not in drawn
        assert "<svg" in drawn
