from pydantic import Field

from bbnet.sparsity.parameters import WeightMaskingParameters


class Parameters(WeightMaskingParameters):
    damping: float = Field(
        0.01, gt=0, le=1, description="Added to the diagonal of the Hessian, as a share of the mean of the diagonal."
    )
