from typing import Literal

from pydantic import Field

from bbnet.sparsity.parameters import WeightMaskingParameters


class Parameters(WeightMaskingParameters):
    distribution: Literal["uniform", "global"] = Field(
        "uniform", description="Keep the largest connections of each slab, or the largest of all slabs together."
    )
