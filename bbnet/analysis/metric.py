"""What the analysis has to know about a metric."""

import math
import sys
from dataclasses import dataclass
from typing import Literal

WITHOUT_UNIT = ("share", "number")
DECIMALS = {"share": 3, "nats": 3, "bits per byte": 3, "number": 2}  # 1 for all other units


@dataclass(frozen=True)
class Metric:
    """A metric of a task.

    Args:
        title: its name in figures and tables, as the field writes it.
        unit: "share" (of 1), "number" (without a unit), "%", "points" (differences of percentages or shares), "nats",
            "bits per byte", "FLOPs", "parameters" or "bytes".
        low, high: the smallest and the largest value that it can take.
        shown: whether the table of results shows it.
        optional: whether that table leaves it out where no run has it.
    """

    title: str
    unit: str
    better: Literal["higher", "lower"]
    low: float = -math.inf
    high: float = math.inf
    shown: bool = True
    optional: bool = False

    def __post_init__(self) -> None:
        bounds = (self.low, self.high)
        if self.better not in ("higher", "lower") or not all(isinstance(bound, int | float) for bound in bounds):
            raise ValueError(
                f"metric {self.title!r}: better must be higher or lower, found {self.better!r}; low and high must be "
                f"numbers or left out, found {self.low!r} and {self.high!r}"
            )

    @property
    def heading(self) -> str:
        """The title with the unit. Shares and numbers have none."""
        return self.title if self.unit in WITHOUT_UNIT else f"{self.title} ({self.unit})"

    @property
    def difference_unit(self) -> str:
        """The unit of a difference, after a blank: points of a percentage; shares and numbers have none."""
        return "" if self.unit in WITHOUT_UNIT else " points" if self.unit == "%" else f" {self.unit}"

    @property
    def largest_difference(self) -> float:
        """The largest difference worth stating: that of its range, or 100 for a percentage without a largest value.

        Of other metrics without a largest value, it is the largest finite number.
        """
        span = self.high - self.low
        if math.isinf(span):
            return 100.0 if self.unit in ("%", "points") else sys.float_info.max
        return span

    def shown_value(self, value: float) -> str:
        """Formats a value for a text or table, with as many decimals as `DECIMALS` says."""
        decimals = DECIMALS.get(self.unit, 1)
        return f"{round(value, decimals) + 0.0:.{decimals}f}"  # a sum with 0 has no negative zero

    def signed(self, difference: float) -> str:
        """Formats a difference with its sign."""
        text = self.shown_value(difference)
        return text if text.startswith("-") else f"+{text}"
