"""The settings of one-shot methods. Imports no torch, so that a study can be validated without it."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

METHODS = ("budgeted_broadcast", "magnitude", "random", "ria", "sparsegpt", "wanda")
ALLOCATIONS = ("uniform", "owl")


class OneShotSettings(BaseModel, extra="forbid", frozen=True):
    """How a trained dense network is pruned once, without training."""

    sequences: int = Field(64, ge=1, le=1_000_000, description="Number of training samples for calibration.")
    allocation: Literal["uniform", "owl"] = Field(
        "uniform", description="The same density in every layer, or more where there are more outliers (OWL)."
    )
    recovery_epochs: int = Field(
        0, ge=0, le=10_000, description="Epochs for which the pruned network is trained with the masks as they are."
    )
    recovery_rate: float = Field(
        0.1, gt=0, le=1, description="Largest learning rate of these epochs, as a share of that of the training."
    )


def _switch(value: Any) -> Any:
    return {True: {}, False: None}[value] if isinstance(value, bool) else value


class OneShotMethod(BaseModel, extra="forbid", frozen=True):
    """The axis of a method that says when it prunes."""

    one_shot: Annotated[
        OneShotSettings | None, BeforeValidator(_switch, json_schema_input_type=OneShotSettings | bool | None)
    ] = Field(
        None,
        description="true, or how: prune the dense run of the same seed once, after its training. By default a method "
        "prunes gradually in training; sparsegpt prunes once only.",
    )

    @model_serializer(mode="wrap")
    def _without_default(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves out the key of a gradual method, so that what was made before the key existed is not out of date."""
        described = serialise(self)
        if described.get("one_shot") is None:
            described.pop("one_shot", None)
        return described

    @model_validator(mode="after")
    def _fits_the_algorithm(self) -> "OneShotMethod":
        algorithm = getattr(self, "algorithm", None)
        if self.one_shot is None:
            if algorithm == "sparsegpt":
                raise ValueError("sparsegpt prunes a trained network: it needs one_shot: true")
            return self
        if getattr(self, "weights", "float") != "float":
            raise ValueError(f"one_shot prunes float weights, not {self.weights}")
        if getattr(self, "distribution", "uniform") != "uniform":
            raise ValueError("one_shot distributes connections by its own allocation: distribution must be uniform")
        if getattr(self, "pattern", None) is not None and self.one_shot.allocation != "uniform":
            raise ValueError(f"pattern {self.pattern} needs allocation uniform")
        return self
