"""Tests the paper's claims about units in each slab: balance of on-rate and degree, entropy, correlation, rank."""

import pandas as pd

from bbnet.analysis.balance import NO_SPREAD, selectivity
from bbnet.analysis.collect import KEYS

SLAB = ["slab", "slab_side"]
WARM_START = ["task", "model", "seed", *SLAB, "unit"]
MEASURES = {
    "binary_entropy": "entropy of a unit (bits)",
    "code_entropy": "entropy of codes (bits per unit)",
    "correlation": "mean |correlation| of units",
    "effective_rank": "effective rank (share of units)",
}
LINE = ("r2_before", "r2", "rises_before", "rises")


def slabs_table(codes: pd.DataFrame, units: pd.DataFrame) -> pd.DataFrame:
    """Returns one row per run and slab: the columns of `codes_table`, and the fit of the balance line to its units.

    The line selectivity = slope * degree + intercept is fitted by least squares to the units that are not silent.
    `slope` and `r2` use the on-rates of the run; `slope_before` and `r2_before` those of the warm start, with the same
    degrees. They are NaN if all degrees or all selectivities are equal, as in a dense slab.
    """
    of_runs = with_warm_start(units)
    active = of_runs[~of_runs["silent"].astype(bool)]
    fits = pd.concat([_fit(active, suffix) for suffix in ("", "_before")], axis=1)
    return codes.merge(fits.reset_index(), on=[*KEYS, *SLAB], how="left")


def with_warm_start(units: pd.DataFrame) -> pd.DataFrame:
    """Returns the units of runs with the additional column `on_rate_before`, the on-rate in the warm start."""
    before = units[units["phase"] == "warm_up"][[*WARM_START, "on_rate"]]
    return units[units["phase"] == "run"].merge(before, on=WARM_START, how="left", suffixes=("", "_before"))


def _fit(units: pd.DataFrame, suffix: str) -> pd.DataFrame:
    """Returns slope and R^2 of the regression of selectivity on the degree for each run and slab."""
    units = units.dropna(subset=f"on_rate{suffix}")
    y = selectivity(units[f"on_rate{suffix}"])
    keys = [units[name] for name in [*KEYS, *SLAB]]
    x, y = (each - each.groupby(keys, sort=False).transform("mean") for each in (units["degree"].astype(float), y))
    products = pd.DataFrame({"xx": x**2, "yy": y**2, "xy": x * y})
    totals = products.groupby(keys, sort=False).sum(min_count=1)
    varies = (totals["xx"] > NO_SPREAD) & (totals["yy"] > NO_SPREAD)
    slope = (totals["xy"] / totals["xx"].where(varies)).rename(f"slope{suffix}")
    r2 = (totals["xy"] ** 2 / (totals["xx"] * totals["yy"]).where(varies)).rename(f"r2{suffix}")
    return pd.concat([slope, r2], axis=1)


def claims_table(slabs: pd.DataFrame) -> pd.DataFrame:
    """Returns one row per run and measure: `value`, and `dense`, the value of the dense run of the same seed.

    Both are means over the slabs of the run, weighted by number of units. `rises` and `rises_before` are 1 for a slab
    whose balance line has a positive slope, as in the paper, else 0. What belongs to the line is NaN for dense.
    """
    slabs = slabs.copy()
    for suffix in ("", "_before"):
        slope = slabs[f"slope{suffix}"]
        slabs[f"rises{suffix}"] = (slope > 0).astype(float).where(slope.notna())
    names = [*MEASURES, *LINE]
    weighted = slabs.melt([*KEYS, *SLAB, "units"], names, "measure", "value").dropna(subset="value")
    dense = weighted[weighted["method"] == "dense"]
    same = ["task", "model", "seed", *SLAB, "measure"]
    sparse = weighted[weighted["method"] != "dense"]
    joined = sparse.merge(dense[[*same, "value"]], on=same, how="left", suffixes=("", "_dense"))
    joined["units_dense"] = joined["units"].where(joined["value_dense"].notna())
    for column, units in (("value", "units"), ("value_dense", "units_dense")):
        joined[column] *= joined[units]
    keys, columns = [*KEYS, "measure"], ["value", "value_dense", "units", "units_dense"]
    sums = joined.groupby(keys, sort=False)[columns].sum(min_count=1).reset_index()
    return sums[keys].assign(value=sums["value"] / sums["units"], dense=sums["value_dense"] / sums["units_dense"])
