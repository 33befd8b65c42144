"""Detectable differences, against simulated studies and closed forms."""

import numpy as np
import pandas as pd
import pytest
from scipy import optimize, stats

from bbnet.analysis.power import POWER, Components, components_of, detectable_difference
from bbnet.analysis.statistics import ItemVariance, p_value


def test_without_items_it_is_the_power_of_the_t_test():
    """By the noncentral t distribution."""
    for seeds, contrasts in ((3, 1), (5, 20), (10, 74)):
        t = stats.t.isf(0.05 / contrasts / 2, seeds - 1)
        exact = optimize.brentq(lambda off, t=t, df=seeds - 1: stats.nct.sf(t, df, off) - POWER, 0.1, 1e4)
        found = detectable_difference(Components(60, 1.0, 0.0, 0.0), seeds, contrasts)
        assert found == pytest.approx(exact / np.sqrt(seeds), rel=0.01)


def test_without_seeds_it_is_that_of_the_items_whatever_the_number_of_seeds():
    t, power = stats.t.isf(0.025 / 10, 59), stats.norm.ppf(POWER)
    for seeds in (2, 10):
        found = detectable_difference(Components(60, 0.0, 0.04, 0.0), seeds, 10)
        assert found == pytest.approx(0.2 * (t + power), rel=1e-3)


@pytest.mark.parametrize(("seeds", "more"), [(3, 1), (5, 1), (5, 4), (10, 2)])
def test_simulated_studies_detect_it_in_80_of_100(seeds, more):
    found, contrasts, items = Components(50, 0.3, 0.02, 0.5), 8, 50 * more
    difference = detectable_difference(found, seeds, contrasts, more)
    generator, detected, studies = np.random.default_rng(seeds), 0, 600
    for _ in range(studies):
        scores = difference + np.sqrt(found.seeds) * generator.normal(size=(seeds, 1))
        scores = scores + np.sqrt(found.shared * found.items) * generator.normal(size=(1, items))
        scores = scores + np.sqrt(found.interaction * found.items) * generator.normal(size=(seeds, items))
        of_mean, of_seed = scores.mean(0).var(ddof=1) / items, scores.var(1, ddof=1).mean() / items
        interaction = seeds * (of_seed - of_mean) / (seeds - 1)
        variance = ItemVariance(items, max(0, of_mean - interaction / seeds), interaction)
        detected += p_value(scores.mean(1), variance) < 0.05 / contrasts
    assert detected / studies == pytest.approx(POWER, abs=0.06)


def test_it_falls_with_seeds_and_items_and_grows_with_contrasts():
    found = Components(60, 0.3, 0.02, 0.5)
    by_seeds = [detectable_difference(found, seeds, 10) for seeds in (2, 3, 5, 10, 30)]
    assert by_seeds == sorted(by_seeds, reverse=True)
    by_items = [detectable_difference(found, 5, 10, more) for more in (1, 2, 4, 100)]
    assert by_items == sorted(by_items, reverse=True)
    by_contrasts = [detectable_difference(found, 5, contrasts) for contrasts in (1, 10, 100)]
    assert by_contrasts == sorted(by_contrasts)


def test_components_are_means_over_contrasts_of_two_seeds_or_more():
    rows = [
        {"n_seeds": 2, "differences": "1.0 3.0", "n_items": 60, "item_variance": 0.1, "interaction_variance": 0.5},
        {"n_seeds": 3, "differences": "0.0 0.0 0.0", "n_items": 60, "item_variance": 0.3, "interaction_variance": 0.1},
        {"n_seeds": 1, "differences": "9.0", "n_items": 60, "item_variance": 9.0, "interaction_variance": np.nan},
    ]
    found = components_of(pd.DataFrame(rows))
    assert found == Components(60, pytest.approx((2 + 0) / 2 - 0.3), pytest.approx(0.2), pytest.approx(0.3))
    assert components_of(pd.DataFrame(rows[2:])) is None
