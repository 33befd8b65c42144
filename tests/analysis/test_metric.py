"""How values of metrics are written, and which differences are worth stating."""

import pytest

from bbnet.analysis.metric import Metric


@pytest.mark.parametrize(
    ("unit", "heading", "shown", "difference"),
    [
        ("share", "score", "0.346", "+0.346"),
        ("nats", "score (nats)", "0.346", "+0.346 nats"),
        ("%", "score (%)", "0.3", "+0.3 points"),
        ("points", "score (points)", "0.3", "+0.3 points"),
    ],
)
def test_values_have_the_decimals_of_their_unit(unit, heading, shown, difference):
    metric = Metric("score", unit, "lower")
    assert metric.heading == heading
    assert metric.shown_value(0.3456) == shown
    assert metric.signed(0.3456) + metric.difference_unit == difference
    assert metric.signed(-0.00001) == f"+{metric.shown_value(0)}"


@pytest.mark.parametrize(("unit", "high", "largest"), [("share", 1, 1), ("%", float("inf"), 100)])
def test_differences_beyond_the_range_of_a_metric_are_not_stated(unit, high, largest):
    assert Metric("score", unit, "lower", 0, high).largest_difference == largest


def test_any_finite_difference_of_a_metric_without_bounds_is_stated_and_no_infinite_one():
    assert 1e300 < Metric("score", "nats", "lower", 0).largest_difference < float("inf")
