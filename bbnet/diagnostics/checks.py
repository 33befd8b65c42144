"""Checks on what a watch has recorded of a parameter. docs/diagnostics.md explains them with their sources."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from bbnet.diagnostics import thresholds as at

# From the worst on.
ORDER = (
    "non-finite",
    "never updated",
    "no gradient",
    "stuck",
    "no update despite gradient",
    "unchanged",
    "unchanged (relative)",
    "vanishing",
    "vanishing (RMS)",
    "dead units",
    "fast",
    "high",
    "slow",
    "low",
)

# The column of `Record.rows` that a check compares with the share from which it has a finding.
SHARES = {
    "vanishing": "vanishing_share",
    "vanishing (RMS)": "vanishing_rms_share",
    "low": "low_share",
    "high": "high_share",
    "slow": "slow_share",
    "fast": "fast_share",
}


@dataclass(frozen=True)
class Verdict:
    """A finding of a check.

    Args:
        kind: `published`, by an absolute threshold; `scale-free`, by one that does not depend on the size of a tensor;
            or `exact`, without a threshold.
        share: share of the observations, or of the units for dead units, to which it applies.
        observations: number of the observations that count for this check.
        evidence: the figures that it rests on.
    """

    check: str
    kind: Literal["published", "scale-free", "exact"]
    share: float
    observations: int
    evidence: str


def of(row: Mapping[str, Any]) -> list[Verdict]:
    """Returns the findings on a row of `Record.rows` of a parameter that was observed, the worst first."""
    observations = row["observations"]
    missing, gradients = row["gradient_missing"], row["gradients_above_zero"]
    finite = observations - missing - row["gradient_non_finite"]
    found = []

    def add(check: str, kind: Any, share: float, evidence: str, count: int = observations) -> None:
        found.append(Verdict(check, kind, share, count, evidence))

    ill = max(row["gradient_non_finite"], row["weight_non_finite"])
    if ill:
        evidence = (
            f"NaN or infinity in the gradient in {row['gradient_non_finite']} and in the weight in "
            f"{row['weight_non_finite']} of {observations} observations"
        )
        add("non-finite", "exact", ill / observations, evidence)
    if row["updates"] == 0:
        evidence = f"the largest change of an entry in a step is {_text(row['update_largest'])}"
        add("never updated", "published", 1.0, evidence)
    if missing > at.MOST * observations:
        add("no gradient", "exact", missing / observations, f"no gradient in {missing} of {observations} observations")
    if row["stuck"] > at.STUCK_OBSERVATIONS:
        evidence = f"not a bit changed in {row['stuck']} of {gradients} observations with a gradient"
        add("stuck", "scale-free", row["stuck"] / gradients, evidence, gradients)
    if row["no_update"] > at.STUCK_OBSERVATIONS:
        evidence = f"no change above {at.UPDATED:g} in {row['no_update']} of {gradients} observations with a gradient"
        add("no update despite gradient", "published", row["no_update"] / gradients, evidence, gradients)
    if gradients > at.GRADIENTS_SEEN and _below(row["change_largest"], at.UNCHANGED):
        evidence = f"the largest change since the start is {_text(row['change_largest'])}, after {gradients} gradients"
        add("unchanged", "published", 1.0, evidence, gradients)
    if gradients > at.GRADIENTS_SEEN and _below(row["change_ratio"], at.UNCHANGED_RATIO):
        evidence = f"change / weight since the start is {_text(row['change_ratio'])}, after {gradients} gradients"
        add("unchanged (relative)", "scale-free", 1.0, evidence, gradients)
    norm, rms, ratio = (_text(row[name]) for name in ("gradient_norm", "gradient_rms", "update_ratio"))
    compared = row["updates_compared"]
    by_share = (
        ("vanishing", "published", at.MOST, finite, f"gradient norm below {at.VANISHING_NORM:g}", norm),
        ("vanishing (RMS)", "scale-free", at.MOST, finite, f"gradient RMS below {at.VANISHING_RMS:g}", rms),
        ("low", "published", at.MOST, finite, f"gradient norm {at.VANISHING_NORM:g} to {at.LOW_NORM:g}", norm),
        ("high", "published", at.SOME, finite, f"gradient norm above {at.HIGH_NORM:g}", norm),
        ("slow", "scale-free", at.MOST, compared, f"update / weight below {at.SLOW_RATIO:g}", ratio),
        ("fast", "scale-free", at.SOME, compared, f"update / weight above {at.FAST_RATIO:g}", ratio),
    )
    for check, kind, limit, count, what, mean in by_share:
        share = row[SHARES[check]]
        if share is not None and share > limit:
            add(check, kind, share, f"{what} in {round(share * count)} of {count} observations; mean {mean}", count)
    if row["dead_units"]:
        dead, units = row["dead_units"], row["units"]
        evidence = f"{dead} of {units} units had no gradient in the last {at.DEAD_OBSERVATIONS} observations"
        add("dead units", "exact", dead / units, evidence)
    return sorted(found, key=lambda verdict: ORDER.index(verdict.check))


def is_healthy_as_published(row: Mapping[str, Any]) -> bool:
    """Returns whether a parameter has more than 5 updates, vanishes in under 10 % and is not unchanged."""
    unchanged = row["gradients_above_zero"] > at.GRADIENTS_SEEN and _below(row["change_largest"], at.UNCHANGED)
    vanishing = row["vanishing_share"]
    return row["updates"] > at.STUCK_OBSERVATIONS and vanishing is not None and vanishing < at.SOME and not unchanged


def _below(value: float | None, limit: float) -> bool:
    return value is not None and value < limit


def _text(value: float | None) -> str:
    return "not known" if value is None or math.isnan(value) else f"{value:.2g}"
