"""How many connections each unit of a slab may keep: exact degrees under a budget."""

import math
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from bbnet.sparsity.limits import smallest_degree

LAWS = ("log_odds", "linear", "uniform", "shuffled", "inverted", "traffic")

ON_RATE_FLOOR = 1e-3
# Degrees equal on paper must be equal in floating point too, or ties would be broken by rounding noise.
TIE_DECIMALS = 9


def as_budget(budget: float | str | Decimal) -> Decimal:
    """`budget` as the exact decimal that is written, in (0, 1]; raises ValueError outside."""
    try:
        exact = Decimal(str(budget))
    except ArithmeticError:
        raise ValueError(f"budget {budget!r} is not a number") from None
    if exact.is_nan() or not 0 < exact <= 1:
        raise ValueError(f"budget {budget} is outside (0, 1]")
    return exact


def connection_count(budget: Decimal, units: int, fan: int) -> int:
    """K = floor(b * U * n + 1/2), the number of connections that a slab of U units with fan n keeps."""
    return math.floor(budget * units * fan + Decimal("0.5"))


def erdos_renyi_counts(total: int, shapes: Sequence[tuple[int, int, tuple[int, ...]]]) -> list[int]:
    """`total` connections over slabs, at the densities of an Erdos-Renyi graph (ERK; Evci et al. 2020, section 3).

    The density of a slab is proportional to (units + fan + sum of taps) / (units * fan * product of taps), at most 1;
    counts are rounded by largest remainder, ties to the earlier slab.

    Args:
        total: at most the connections of all slabs.
        shapes: of each slab units, fan, and the extents of its kernel.
    """
    sizes = [units * fan for units, fan, _ in shapes]
    raw = [Fraction(units + fan + sum(taps), units * fan * math.prod(taps)) for units, fan, taps in shapes]
    whole: set[int] = set()
    while True:
        others = [index for index in range(len(sizes)) if index not in whole]
        left = total - sum(sizes[index] for index in whole)
        factor = left / sum(raw[index] * sizes[index] for index in others) if others else Fraction(0)
        crowded = {index for index in others if factor * raw[index] >= 1}
        if not crowded:
            break
        whole |= crowded
    shares = [Fraction(size) if index in whole else factor * raw[index] * size for index, size in enumerate(sizes)]
    counts = [math.floor(share) for share in shares]
    by_remainder = sorted(range(len(sizes)), key=lambda index: counts[index] - shares[index])
    for index in by_remainder[: total - sum(counts)]:
        counts[index] += 1
    return counts


def allocate_degrees(
    on_rates: Tensor,
    fan: int,
    budget: float | str | Decimal,
    *,
    law: str = "log_odds",
    gain: float = 0.10,
    min_degree: int | None = None,
    max_degree: int | None = None,
    silent: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Integer degrees of one slab that sum to `connection_count(budget, units, fan)` exactly.

    The degree of unit j is `clip(d0 + gain * fan * s_j, k_min, k_max)` with the selectivity
    `s_j = log((1 - a_j) / a_j)` (the balance line of arXiv 2510.01263, gain = 1 / (beta * fan)); d0 is solved so
    that the budget is met, and the degrees are rounded by largest remainder, ties going to the larger s, then the
    smaller on-rate, then the smaller index. So `a_i < a_j` implies `k_i >= k_j` under `log_odds`.

    Args:
        on_rates: [units], shares in [0, 1].
        fan: connections that a unit could have.
        budget: kept share of the slab's `units * fan` connections.
        law: `log_odds` | `linear` (s = 1 - 2a at the spread of the log-odds) | `uniform` (s = 0) | `shuffled`
            (log-odds degrees handed to permuted units) | `inverted` (s negated: hubs) | `traffic` (degree c / a_j).
        gain: degrees per fan and nat of log-odds.
        min_degree, max_degree: k_min and k_max; by default ceil(max(1, 0.05 fan)) and `fan`.
        silent: bool [units], units that were never on. They get k_min, and more only when all others have k_max.
        generator: draws the permutation of `shuffled`; required there, unused elsewhere.

    Returns: int64 [units].
    Raises: ValueError for on-rates that are NaN or outside [0, 1], an unknown law, or a budget that no degrees meet.
    """
    if law not in LAWS:
        raise ValueError(f"unknown law {law!r}, allowed: {', '.join(LAWS)}")
    # By numpy also for a GPU's slab: of a few dozen to thousand numbers torch's calls take longer than the work.
    rates = on_rates.detach().double().cpu().numpy()
    if not ((rates >= 0) & (rates <= 1)).all():
        raise ValueError("on-rates must be shares in [0, 1]; found NaN or values outside")
    units = len(rates)
    low = smallest_degree(fan) if min_degree is None else math.ceil(min_degree)
    high = fan if max_degree is None else math.floor(max_degree)
    exact = as_budget(budget)
    check_feasible(exact, fan, low, high)
    total = connection_count(exact, units, fan)
    permutation = _permutation(law, units, generator)

    if silent is None or not bool(silent.any()):
        degrees = _law_degrees(law, rates, gain * fan, low, high, total, permutation)
        return torch.from_numpy(degrees).to(on_rates.device)
    unheard = silent.cpu().numpy()
    heard = ~unheard
    heard_total = min(total - np.count_nonzero(unheard) * low, np.count_nonzero(heard) * high)

    degrees = np.empty(units, dtype=np.int64)
    permutation = None if permutation is None else permutation[heard].argsort().argsort()
    degrees[heard] = _law_degrees(law, rates[heard], gain * fan, low, high, heard_total, permutation)
    degrees[unheard] = _law_degrees("uniform", rates[unheard], 0.0, low, high, total - heard_total, None)
    return torch.from_numpy(degrees).to(on_rates.device)


def _permutation(law: str, units: int, generator: torch.Generator | None) -> np.ndarray | None:
    """Who gets whose degree under `shuffled`; None under every other law."""
    if law != "shuffled":
        return None
    if generator is None:
        raise ValueError("law 'shuffled' needs a generator for its permutation")
    return torch.randperm(units, generator=generator).numpy()


def _law_degrees(
    law: str, rates: np.ndarray, scale: float, low: int, high: int, total: int, permutation: np.ndarray | None
) -> np.ndarray:
    """Degrees of units under one law, in [low, high], that sum to `total`."""
    offset, slope = _law_line(law, rates, scale)
    degrees = _meet_total(offset, slope, rates, low, high, total)
    return degrees if permutation is None else degrees[permutation]


def check_feasible(budget: Decimal, fan: int, low: int, high: int) -> None:
    """Raises ValueError naming the feasible range if no degrees in [low, high] of `fan` can meet `budget`."""
    if not 1 <= low <= high <= fan:
        raise ValueError(f"degrees from {low} to {high} do not fit a fan of {fan}")
    if not low <= budget * fan <= high:
        raise ValueError(
            f"budget {budget} cannot be met with fan {fan} and degrees from {low} to {high}: "
            f"feasible budgets are {math.ceil(1e4 * low / fan) / 1e4:g} to {math.floor(1e4 * high / fan) / 1e4:g}"
        )


def _law_line(law: str, rates: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Offset and slope of the law's degrees in its free parameter t: x_j(t) = offset_j + slope_j * t."""
    clipped = rates.clip(ON_RATE_FLOOR, 1 - ON_RATE_FLOOR)
    if law == "traffic":
        return np.zeros_like(clipped), 1 / clipped
    log_odds = np.log((1 - clipped) / clipped)
    if law == "uniform" or len(rates) == 0:
        selectivity = np.zeros_like(log_odds)
    elif law == "linear":
        line = 1 - 2 * clipped
        spread = line.std()
        selectivity = line * (log_odds.std() / spread if spread > 0 else 0.0)
    elif law == "inverted":
        selectivity = -log_odds
    else:
        selectivity = log_odds
    return scale * selectivity, np.ones_like(clipped)


def _meet_total(
    offset: np.ndarray, slope: np.ndarray, rates: np.ndarray, low: int, high: int, total: int
) -> np.ndarray:
    """Integers in [low, high] that sum to `total`, rounded from clip(offset + slope * t, low, high)."""
    if len(rates) == 0:
        return np.empty(0, dtype=np.int64)
    level = _solve_level(offset, slope, low, high, total)
    wanted = (offset + slope * level).clip(low, high).round(TIE_DECIMALS)
    floors = np.floor(wanted)
    remainders = np.where(floors < high, (wanted - floors).round(TIE_DECIMALS), -1.0)

    # The last key comes first: largest remainder, then largest selectivity, then smallest on-rate, then index.
    order = np.lexsort((rates, -(offset + slope), -remainders))
    degrees = floors.astype(np.int64)
    degrees[order[: total - degrees.sum()]] += 1
    return degrees


def _solve_level(offset: np.ndarray, slope: np.ndarray, low: int, high: int, total: int) -> float:
    """The t at which sum_j clip(offset_j + slope_j * t, low, high) == total: exact, piecewise linear and increasing."""
    knots = np.concatenate([(low - offset) / slope, (high - offset) / slope])
    order = knots.argsort(kind="stable")
    knots = knots[order]
    slopes = np.concatenate([slope, -slope])[order].cumsum()
    sums = low * len(offset) + np.concatenate([[0.0], (slopes[:-1] * np.diff(knots)).cumsum()])
    before = min(max(np.searchsorted(sums, total) - 1, 0), len(knots) - 2)
    # Where some units are at `low` and all others at `high`, the slope is 0 but for rounding.
    with np.errstate(divide="ignore"):
        level = knots[before] + (total - sums[before]) / slopes[before]
    return level.clip(knots[before], knots[before + 1])
