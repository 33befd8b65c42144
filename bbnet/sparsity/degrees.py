"""Degrees: how many connections each unit of a slab keeps, such that a budget is met exactly."""

import math
from collections.abc import Iterable, Sequence
from decimal import Decimal
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from bbnet.sparsity.limits import smallest_degree

LAWS = ("log_odds", "linear", "uniform", "shuffled", "inverted", "traffic")

ON_RATE_FLOOR = 1e-3
# Degrees are compared after rounding to this many decimals, since rounding noise would otherwise break their ties.
TIE_DECIMALS = 9


def as_budget(budget: float | str | Decimal) -> Decimal:
    """Returns `budget` as the exact decimal that was written; raises ValueError if it is outside (0, 1]."""
    try:
        exact = Decimal(str(budget))
    except ArithmeticError:
        raise ValueError(f"budget {budget!r} is not a number") from None
    if exact.is_nan() or not 0 < exact <= 1:
        raise ValueError(f"budget {budget} is outside (0, 1]")
    return exact


def connection_count(budget: Decimal, units: int, fan: int) -> int:
    """Returns K = floor(b * U * n + 1/2), the number of connections that a slab of U units with fan n keeps."""
    return math.floor(budget * units * fan + Decimal("0.5"))


def weight_count(budget: Decimal, shapes: Iterable[tuple[int, int, tuple[int, ...]]]) -> int:
    """Returns floor(b * W + 1/2), the number of the W weights of all slabs that the budget keeps.

    Args:
        shapes: units, fan and kernel size of each slab.
    """
    weights = sum(units * fan * math.prod(taps) for units, fan, taps in shapes)
    return math.floor(budget * weights + Decimal("0.5"))


def erdos_renyi_counts(total: int, shapes: Sequence[tuple[int, int, tuple[int, ...]]]) -> list[int]:
    """Distributes `total` weights over slabs as in an Erdos-Renyi graph (ERK; Evci et al. 2020, section 3).

    The density of a slab is proportional to (units + fan + sum of taps) / (units * fan * product of taps), capped at 1.
    A connection is a whole kernel. The numbers of connections are rounded by largest remainder, ties to the earlier
    slab, as long as their weights do not exceed `total`. Less than the weights of one kernel are missing from it.

    Args:
        total: number of weights to keep, at most those of all slabs.
        shapes: units, fan and kernel size of each slab.
    Returns: the number of connections of each slab.
    """
    sizes = [units * fan for units, fan, _ in shapes]
    kernels = [math.prod(taps) for _, _, taps in shapes]
    # In weights of a slab, its density times its size is proportional to units + fan + sum of taps.
    raw = [units + fan + sum(taps) for units, fan, taps in shapes]
    full: set[int] = set()
    while True:
        others = [index for index in range(len(sizes)) if index not in full]
        left = total - sum(sizes[index] * kernels[index] for index in full)
        factor = Fraction(left, sum(raw[index] for index in others)) if others else Fraction(0)
        saturated = {index for index in others if factor * raw[index] >= sizes[index] * kernels[index]}
        if not saturated:
            break
        full |= saturated
    shares = [
        Fraction(size) if index in full else factor * raw[index] / kernels[index] for index, size in enumerate(sizes)
    ]
    counts = [math.floor(share) for share in shares]
    left = total - sum(count * kernel for count, kernel in zip(counts, kernels, strict=True))
    for index in sorted(range(len(sizes)), key=lambda index: counts[index] - shares[index]):
        if counts[index] < shares[index] and kernels[index] <= left:
            counts[index] += 1
            left -= kernels[index]
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
    """Returns integer degrees for the units of one slab that sum to exactly `connection_count(budget, units, fan)`.

    The degree of unit j is `clip(d0 + gain * fan * s_j, k_min, k_max)` with the selectivity
    `s_j = log((1 - a_j) / a_j)` (the balance line of arXiv 2510.01263, gain = 1 / (beta * fan)). d0 is chosen
    such that the budget is met. Degrees are rounded by largest remainder, ties going to the larger s, then the
    smaller on-rate, then the smaller index. Under `log_odds`, `a_i < a_j` therefore implies `k_i >= k_j`. Under
    `uniform` ties go by the index alone, so that degrees do not depend on on-rates at all.

    Args:
        on_rates: [units], shares in [0, 1].
        fan: number of connections that a unit could have.
        budget: share of the slab's `units * fan` connections that is kept.
        law: `log_odds` | `linear` (s = 1 - 2a, scaled to the spread of the log-odds) | `uniform` (s = 0) | `shuffled`
            (log-odds degrees of permuted units) | `inverted` (s negated: hubs) | `traffic` (degree c / a_j).
        gain: degrees per fan and nat of log-odds.
        min_degree, max_degree: k_min and k_max; by default ceil(max(1, 0.05 fan)) and `fan`.
        silent: bool [units], units that were never on. They get k_min, and more only if all others have k_max.
        generator: draws the permutation of `shuffled`, which requires it; other laws do not use it.

    Returns: int64 [units].
    Raises: ValueError for on-rates that are NaN or outside [0, 1], an unknown law, or an infeasible budget.
    """
    if law not in LAWS:
        raise ValueError(f"unknown law {law!r}, allowed: {', '.join(LAWS)}")
    # numpy is used for GPU slabs too: for a few dozen to a few thousand numbers, launching kernels takes longer.
    rates = on_rates.detach().double().cpu().numpy()
    if not ((rates >= 0) & (rates <= 1)).all():
        raise ValueError("on-rates must be in [0, 1], found NaN or values outside")
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
    off = silent.cpu().numpy()
    on = ~off
    on_total = min(total - np.count_nonzero(off) * low, np.count_nonzero(on) * high)

    degrees = np.empty(units, dtype=np.int64)
    permutation = None if permutation is None else permutation[on].argsort().argsort()
    degrees[on] = _law_degrees(law, rates[on], gain * fan, low, high, on_total, permutation)
    degrees[off] = _law_degrees("uniform", rates[off], 0.0, low, high, total - on_total, None)
    return torch.from_numpy(degrees).to(on_rates.device)


def _permutation(law: str, units: int, generator: torch.Generator | None) -> np.ndarray | None:
    """Returns the permutation of units under `shuffled`, None under every other law."""
    if law != "shuffled":
        return None
    if generator is None:
        raise ValueError("law 'shuffled' needs a generator for its permutation")
    return torch.randperm(units, generator=generator, device="cpu").numpy()


def _law_degrees(
    law: str, rates: np.ndarray, scale: float, low: int, high: int, total: int, permutation: np.ndarray | None
) -> np.ndarray:
    """Returns degrees in [low, high] under one law that sum to `total`."""
    offset, slope = _law_line(law, rates, scale)
    degrees = _rounded(offset, slope, np.zeros_like(rates) if law == "uniform" else rates, low, high, total)
    return degrees if permutation is None else degrees[permutation]


def check_feasible(budget: Decimal, fan: int, low: int, high: int) -> None:
    """Raises ValueError with the feasible range if degrees in [low, high] of `fan` cannot meet `budget`."""
    if not 1 <= low <= high <= fan:
        raise ValueError(f"degrees from {low} to {high} do not fit a fan of {fan}")
    if not low <= budget * fan <= high:
        raise ValueError(
            f"budget {budget} cannot be met with fan {fan} and degrees from {low} to {high}: "
            f"feasible budgets are {math.ceil(1e4 * low / fan) / 1e4:g} to {math.floor(1e4 * high / fan) / 1e4:g}"
        )


def _law_line(law: str, rates: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns offset and slope of each unit's degree in the free parameter t: x_j(t) = offset_j + slope_j * t."""
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


def _rounded(offset: np.ndarray, slope: np.ndarray, rates: np.ndarray, low: int, high: int, total: int) -> np.ndarray:
    """Returns integers that sum to `total`, rounded from clip(offset + slope * t, low, high)."""
    if len(rates) == 0:
        return np.empty(0, dtype=np.int64)
    level = solve_level(offset, slope, low, high, total)
    wanted = (offset + slope * level).clip(low, high).round(TIE_DECIMALS)
    floors = np.floor(wanted)
    remainders = np.where(floors < high, (wanted - floors).round(TIE_DECIMALS), -1.0)

    # lexsort starts with its last key: largest remainder, then largest selectivity, then smallest on-rate, then index.
    order = np.lexsort((rates, -(offset + slope), -remainders))
    degrees = floors.astype(np.int64)
    degrees[order[: total - degrees.sum()]] += 1
    return degrees


def solve_level(
    offset: np.ndarray, slope: np.ndarray, low: int | np.ndarray, high: int | np.ndarray, total: int
) -> float:
    """Solves sum_j clip(offset_j + slope_j * t, low_j, high_j) == total for t; the sum is piecewise linear in t."""
    knots = np.concatenate([(low - offset) / slope, (high - offset) / slope])
    order = knots.argsort(kind="stable")
    knots = knots[order]
    slopes = np.concatenate([slope, -slope])[order].cumsum()
    sums = np.broadcast_to(low, offset.shape).sum() + np.concatenate([[0.0], (slopes[:-1] * np.diff(knots)).cumsum()])
    before = min(max(np.searchsorted(sums, total) - 1, 0), len(knots) - 2)
    # Where some units are at `low` and all others at `high`, the slope is 0 up to rounding.
    with np.errstate(divide="ignore"):
        level = knots[before] + (total - sums[before]) / slopes[before]
    return level.clip(knots[before], knots[before + 1])
