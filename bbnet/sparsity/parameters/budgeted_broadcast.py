from typing import Literal

from pydantic import Field

from bbnet.sparsity.limits import SMALLEST_BUDGET
from bbnet.sparsity.parameters import AVERAGE_DECAY, WeightMaskingParameters


class Parameters(WeightMaskingParameters):
    law: Literal["log_odds", "linear", "uniform", "shuffled", "inverted", "traffic"] = Field(
        "log_odds", description="How degrees follow on-rates. All laws but log_odds are controls."
    )
    gain: float = Field(0.10, gt=0, le=10, description="1 / (beta * fan): degrees per fan and nat of log-odds.")
    silent: Literal["smallest", "literal"] = Field(
        "smallest", description="Degree of units that were never on: k_min, or what the law assigns to them."
    )
    k_min: float = Field(
        float(SMALLEST_BUDGET),
        ge=0,
        le=1,
        description="Smallest degree of a unit, as a share of its fan: at least one connection, at most the budget.",
    )
    decay: float = Field(
        AVERAGE_DECAY, ge=0, lt=1, description="Decay of the moving average of on-rates, per optimiser step."
    )
    score: Literal["magnitude", "wanda"] = Field(
        "magnitude", description="What a unit keeps: its largest weights, or those with the largest score of Wanda."
    )
