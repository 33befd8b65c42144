"""The schedule of the sparse phase: when masks are recomputed, and for which budget."""

from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from numbers import Integral

REFRESHES_PER_PHASE = 40
LEAST_REFRESHES = 3


@dataclass(frozen=True)
class Schedule:
    """The sparse phase: a ramp from 1 to `budget` (cubic; Zhu & Gupta 2017, eq. 1), a constant budget, a freeze.

    Steps are applied optimiser steps, counted from 1. The last refresh is at the freeze step.

    Args:
        total_steps: length of the sparse phase.
        budget: kept share at the end of the ramp.
        ramp_end: share of the phase after which the ramp ends.
        freeze: share of the phase after which masks no longer change.
        every: steps between refreshes; by default 1/40 of the phase.
    Raises: ValueError if there are fewer than 3 refreshes before the freeze.
    """

    total_steps: int
    budget: Decimal
    ramp_end: float = 0.40
    freeze: float = 0.75
    every: int | None = None

    def __post_init__(self) -> None:
        for name, kind in (("total_steps", Integral), ("every", Integral | None)):
            steps = getattr(self, name)
            if not isinstance(steps, kind):
                raise ValueError(f"{name} must be an integer number of steps, got {steps!r}")
        if not 0 <= self.ramp_end <= self.freeze <= 1:
            found = f"ramp_end {self.ramp_end} and freeze {self.freeze}"
            raise ValueError(f"need 0 <= ramp_end <= freeze <= 1, got {found}")
        if self.interval < 1:
            raise ValueError(f"every must be at least 1 step, got {self.every}")
        before_freeze = (self.freeze_step - 1) // self.interval
        if before_freeze < LEAST_REFRESHES:
            raise ValueError(
                f"only {max(before_freeze, 0)} refreshes before the freeze at step {self.freeze_step} of "
                f"{self.total_steps} (one every {self.interval} steps); at least {LEAST_REFRESHES} are needed"
            )

    @cached_property
    def freeze_step(self) -> int:
        return round(self.freeze * self.total_steps)

    @cached_property
    def interval(self) -> int:
        return max(1, round(self.total_steps / REFRESHES_PER_PHASE)) if self.every is None else self.every

    def is_refresh(self, step: int) -> bool:
        return step == self.freeze_step or (step < self.freeze_step and step % self.interval == 0)

    def budget_at(self, step: int) -> Decimal:
        """Returns b(t) in [budget, 1]: exactly `budget` after the ramp and from the freeze step on."""
        ramp_steps = self.ramp_end * self.total_steps
        if step >= ramp_steps or step >= self.freeze_step:
            return self.budget
        remaining = Decimal(str((1 - step / ramp_steps) ** 3))
        return self.budget + (1 - self.budget) * remaining
