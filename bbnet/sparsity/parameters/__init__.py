"""The parameters of the algorithms. Nothing here imports torch, so that a study can be validated without it.

`parameters/{name}.py` declares the class `Parameters` of the algorithm `algorithms/{name}.py`. An algorithm without
such a file is a weight-masking algorithm without parameters of its own: it has those of `WeightMaskingParameters`.
"""

import importlib
import importlib.util
from typing import Literal

from pydantic import BaseModel, Field

AVERAGE_DECAY = 0.99  # of on-rates and input norms, per optimiser step


class AlgorithmParameters(BaseModel, extra="forbid", frozen=True):
    """Base of the parameters of all algorithms. Unknown names are rejected."""


class WeightMaskingParameters(AlgorithmParameters):
    """Parameters of every algorithm that masks weights."""

    side: Literal["in", "out", "both"] = Field(
        "in", description="Which connections of a unit are masked: its inputs, its outputs, or one of them per block."
    )
    pattern: str | None = Field(
        None,
        pattern=r"^[1-9][0-9]*:[1-9][0-9]*$",
        description="N:M, such as 2:4: N of every M neighbouring connections of a unit are kept, so all units have the "
        "same degree. The budget must be N/M.",
    )

    def group(self) -> tuple[int, int] | None:
        """Returns N and M of the pattern, or None without a pattern."""
        if self.pattern is None:
            return None
        kept, size = map(int, self.pattern.split(":"))
        return kept, size


class SparseFromStartParameters(WeightMaskingParameters):
    """Parameters of the algorithms that meet the budget before the first step of the sparse phase."""

    ramp: bool = Field(False, description="Reduce the density along the study's ramp instead.")
    distribution: Literal["uniform", "erk"] = Field(
        "uniform",
        description="The same density in every slab, or that of an Erdos-Renyi graph (Evci et al. 2020): smaller slabs "
        "are denser, the total is the same.",
    )


class DropAndGrowParameters(SparseFromStartParameters):
    """Parameters of the algorithms that replace connections at every refresh."""

    drop_fraction: float = Field(
        0.3, gt=0, le=1, description="Share of the live connections replaced by the first refresh."
    )


def parameters_of(name: str) -> type[AlgorithmParameters]:
    """Returns the parameters class of the algorithm `name`."""
    module = f"{__name__}.{name}"
    if importlib.util.find_spec(module) is None:
        return WeightMaskingParameters
    return importlib.import_module(module).Parameters
