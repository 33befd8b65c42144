"""Histograms over a range that grows with the values, in a fixed number of bins."""

import math
from typing import Any

import torch
from torch import Tensor

BINS = 64  # a multiple of 4, so that a range can be doubled
SMALLEST = -100  # power of two


class Histogram:
    """Counts of values in `BINS` equal bins from -2^k to 2^k.

    k is the smallest one that fits all values, so that histograms of different layers, models or epochs can be compared
    after joining the bins of the narrower one. Values that are not finite are counted apart.
    """

    def __init__(self) -> None:
        self.power = SMALLEST
        self.counts = torch.zeros(BINS, dtype=torch.int64)
        self.non_finite = 0

    def add(self, values: Tensor) -> None:
        """Adds all entries of a tensor."""
        values = values.detach().float().flatten()
        finite = values[values.isfinite()]
        self.non_finite += values.numel() - finite.numel()
        if not finite.numel():
            return
        largest = float(finite.abs().max())
        if largest > 0:
            mantissa, exponent = math.frexp(largest)  # largest = mantissa * 2^exponent, mantissa in [0.5, 1)
            self._grow(exponent - 1 if mantissa == 0.5 else exponent)
        # A product with a power of two is exact, so each value is in the bin to which its bounds say that it belongs.
        places = (finite * (BINS / 2 / 2.0**self.power)).floor().to(torch.int64) + BINS // 2
        places.clamp_(0, BINS - 1)
        self.counts += torch.bincount(places, minlength=BINS).cpu()

    def _grow(self, power: int) -> None:
        if not self.counts.any():
            self.power = max(self.power, power)
        while self.power < power:
            joined = self.counts.reshape(-1, 2).sum(1)
            self.counts = torch.zeros_like(self.counts)
            self.counts[BINS // 4 : 3 * BINS // 4] = joined
            self.power += 1

    def rows(self) -> list[dict[str, Any]]:
        """Returns low, high and count of each bin that is not empty."""
        width = 2.0 ** (self.power + 1) / BINS
        low = -(2.0**self.power)
        return [
            {"low": low + place * width, "high": low + (place + 1) * width, "count": count}
            for place, count in enumerate(self.counts.tolist())
            if count
        ]
