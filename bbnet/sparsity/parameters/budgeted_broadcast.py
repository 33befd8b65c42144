from typing import Literal

from pydantic import Field

from bbnet.sparsity.parameters import WeightMaskingParameters


class Parameters(WeightMaskingParameters):
    law: Literal["log_odds", "linear", "uniform", "shuffled", "inverted", "traffic"] = Field(
        "log_odds", description="How degrees follow on-rates. All laws but log_odds are controls."
    )
    gain: float = Field(0.10, gt=0, le=10, description="1 / (beta * fan): degrees per fan and nat of log-odds.")
    silent: Literal["smallest", "literal"] = Field(
        "smallest", description="Degree of units that were never on: k_min, or what the law assigns to them."
    )
