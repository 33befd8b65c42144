"""What the weights of a method of a study may be. Imports no torch, so that a study can be validated without it."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field, model_validator


class WeightValues(BaseModel, extra="forbid", frozen=True):
    """The axis of a method that is independent of its algorithm; see `bbnet.binarize`."""

    weights: Literal["float", "binary", "stochastic_binary"] = Field(
        "float", description="binary: -h or h by the sign of a latent weight; stochastic_binary: drawn at every step."
    )
    binary_layers: Literal["inner", "all"] = Field(
        "inner", description="Only for binary weights. inner: all layers except the first and the last."
    )
    binary_scale: Literal["glorot", "one"] = Field(
        "glorot", description="Only for binary weights. h is sqrt(1.5 / (fan_in + fan_out)) for each layer, or 1."
    )
    latent_decay: bool = Field(
        False, description="Only for binary weights. Whether the weight decay of the training acts on latent weights."
    )

    @model_validator(mode="after")
    def _only_for_binary(self) -> "WeightValues":
        if self.weights == "float":
            for name in ("binary_layers", "binary_scale", "latent_decay"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name} {getattr(self, name)} is not allowed with weights float")
        return self


def is_binary(method: Mapping[str, Any]) -> bool:
    """Whether the weights of a method, as a record or a summary describes it, are binary; older ones do not say it."""
    return method.get("weights", "float") != "float"
