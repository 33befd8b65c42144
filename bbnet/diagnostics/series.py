"""Means over training in a fixed number of bins, however long the training is."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

BINS = 64


class Series:
    """Means of figures of some parameters, over bins of consecutive observations.

    All bins but the last have the same number of observations. When `BINS` bins are full, neighbours are joined, and
    bins become twice as wide.

    Args:
        names: names of the figures.
        parameters: number of parameters.
    """

    def __init__(self, names: tuple[str, ...], parameters: int) -> None:
        self.names = names
        self.observations = 0
        self.width = 1
        self._sums = np.zeros((BINS, len(names), parameters))
        self._counts = np.zeros((BINS, len(names), parameters), dtype=np.int64)
        self._first = np.zeros(BINS, dtype=np.int64)
        self._last = np.zeros(BINS, dtype=np.int64)

    def __len__(self) -> int:
        return -(-self.observations // self.width)

    def add(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        """Adds an observation of all parameters at a step; NaN where a parameter has no value."""
        if self.observations == BINS * self.width:
            self._widen()
        place, inside = divmod(self.observations, self.width)
        if inside == 0:
            self._first[place] = step
        self._last[place] = step
        stacked = np.stack([values[name] for name in self.names])
        known = ~np.isnan(stacked)
        self._sums[place][known] += stacked[known]
        self._counts[place] += known
        self.observations += 1

    def _widen(self) -> None:
        """Joins neighbouring bins."""
        for array in (self._sums, self._counts):
            array[: BINS // 2] = array[::2] + array[1::2]
            array[BINS // 2 :] = 0
        self._first[: BINS // 2] = self._first[::2].copy()
        self._last[: BINS // 2] = self._last.reshape(-1, 2).max(1)  # 0 where no observation has been made yet
        for array in (self._first, self._last):
            array[BINS // 2 :] = 0
        self.width *= 2

    def rows(self) -> list[tuple[int, int, int, dict[str, float]]]:
        """Returns (index of the parameter, first step, last step, means by name) of each bin and parameter."""
        found = []
        for place in range(len(self)):
            with np.errstate(invalid="ignore"):
                means = self._sums[place] / self._counts[place]
            for parameter in range(means.shape[1]):
                values = dict(zip(self.names, means[:, parameter].tolist(), strict=True))
                found.append((parameter, int(self._first[place]), int(self._last[place]), values))
        return found

    def merge(self, other: "Series") -> None:
        """Adds the observations of another rank, which were made at the same steps."""
        while self.width < other.width:
            self._widen()
        aligned = Series.of_state(other.state_dict())
        while aligned.width < self.width:
            aligned._widen()
        self._sums += aligned._sums
        self._counts += aligned._counts
        if aligned.observations > self.observations:
            self._first, self._last = aligned._first, aligned._last
        self.observations = max(self.observations, aligned.observations)

    def state_dict(self) -> dict[str, Any]:
        return {
            "names": list(self.names),
            "observations": self.observations,
            "width": self.width,
            **{key: torch.from_numpy(getattr(self, f"_{key}").copy()) for key in ("sums", "counts", "first", "last")},
        }

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> "Series":
        series = cls(tuple(state["names"]), state["sums"].shape[2])
        series.observations, series.width = state["observations"], state["width"]
        for key in ("sums", "counts", "first", "last"):
            setattr(series, f"_{key}", state[key].numpy().copy())
        return series
