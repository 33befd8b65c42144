"""Ramp, refreshes and freeze against values worked by hand."""

from decimal import Decimal
from fractions import Fraction

import pytest

from bbnet.sparsity.schedule import Schedule


def refresh_steps(schedule):
    return [step for step in range(1, schedule.total_steps + 1) if schedule.is_refresh(step)]


def test_the_default_refreshes_of_four_hundred_steps():
    # Every 1/40 of 400 = 10 steps up to the freeze at 75 % = 300, itself a refresh.
    assert refresh_steps(Schedule(400, Decimal("0.5"))) == [
        10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120, 130, 140, 150,
        160, 170, 180, 190, 200, 210, 220, 230, 240, 250, 260, 270, 280, 290, 300,
    ]  # fmt: skip


def test_the_freeze_is_a_refresh_off_the_grid_too():
    assert refresh_steps(Schedule(100, Decimal("0.5"), every=20, freeze=0.75)) == [20, 40, 60, 75]


def test_the_ramp_is_cubic():
    # To b = .2 over 160 of 400 steps: b + (1 - b) (1 - t / 160)^3.
    schedule = Schedule(400, Decimal("0.2"))
    by_hand = {0: 1.0, 40: 0.2 + 0.8 * 27 / 64, 80: 0.2 + 0.8 / 8, 120: 0.2 + 0.8 / 64, 160: 0.2, 170: 0.2, 300: 0.2}
    assert {step: float(schedule.budget_at(step)) for step in by_hand} == pytest.approx(by_hand, rel=1e-12)


@pytest.mark.parametrize("budget", ["0.1", "0.25", "0.50", "1.00"])
@pytest.mark.parametrize("total, ramp_end", [(400, 0.4), (333, 0.37), (47, 0.1)])
def test_the_ramp_falls_to_the_budget_and_stays(budget, total, ramp_end):
    schedule = Schedule(total, Decimal(budget), ramp_end=ramp_end)
    values = [schedule.budget_at(step) for step in range(total + 1)]
    assert values[0] == 1
    assert values == sorted(values, reverse=True)
    for step, value in enumerate(values):
        left = max(1 - Fraction(step) / (Fraction(str(ramp_end)) * total), 0)
        exact = Fraction(budget) + (1 - Fraction(budget)) * left**3
        assert float(value) == pytest.approx(float(exact), rel=1e-12)
        assert (value == Decimal(budget)) == (exact == Fraction(budget))


def test_without_a_ramp_the_budget_holds_from_the_start():
    schedule = Schedule(40, Decimal("0.3"), ramp_end=0)
    assert {schedule.budget_at(step) for step in range(41)} == {Decimal("0.3")}


def test_the_freeze_refresh_is_at_the_budget_exactly():
    for total in range(10, 200, 7):
        schedule = Schedule(total, Decimal("0.30"), ramp_end=0.75)
        assert schedule.budget_at(schedule.freeze_step) == Decimal("0.30")


@pytest.mark.parametrize("every", [25, 30, 100])
def test_fewer_than_three_refreshes_before_the_freeze_are_an_error(every):
    # The freeze at 75 is the last refresh, not one of the three before it.
    with pytest.raises(ValueError, match="refreshes before the freeze.*at least 3"):
        Schedule(100, Decimal("0.5"), every=every)


def test_three_refreshes_before_the_freeze_suffice():
    assert refresh_steps(Schedule(100, Decimal("0.5"), every=24)) == [24, 48, 72, 75]


@pytest.mark.parametrize(
    "options",
    [
        {"ramp_end": 0.8},
        {"ramp_end": -0.1},
        {"freeze": 1.1},
        {"every": 0},
        {"every": -5},
        {"total_steps": 0},
        {"total_steps": -40},
        {"total_steps": 4},
    ],
    ids=str,
)
def test_a_schedule_that_makes_no_sense_is_refused(options):
    with pytest.raises(ValueError, match=r"ramp|freeze|every"):
        Schedule(**{"total_steps": 400, "budget": Decimal("0.5")} | options)
