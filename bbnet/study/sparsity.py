"""Settings of the sparse phase: those that the methods of a study share, and those that a method has of its own."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

Rescale = Literal["none", "sqrt", "energy"]
RampEnd = Annotated[float, Field(ge=0, le=0.95)]
Freeze = Annotated[float, Field(gt=0, le=0.95)]
Every = Annotated[int, Field(ge=1)]


class Sparsity(BaseModel, extra="forbid", frozen=True):
    """Settings shared by all weight-masking methods of a study, except where a method has its own."""

    rescale: Rescale = Field("none", description="How the weights of a unit are rescaled when its connections change.")
    ramp_end: RampEnd = Field(0.40, description="Share of the sparse phase after which the budget is reached.")
    freeze: Freeze = Field(0.75, description="Share of the sparse phase after which masks are fixed.")
    every: Every | None = Field(None, description="Optimiser steps between refreshes; 1/40 of the phase if absent.")

    def schedule(self) -> dict[str, Any]:
        """Returns the settings that decide when masks are refreshed."""
        return self.model_dump(exclude={"rescale"})

    @model_validator(mode="after")
    def _ramp_before_freeze(self) -> "Sparsity":
        if self.ramp_end > self.freeze:
            raise ValueError(f"ramp_end {self.ramp_end} must not exceed freeze {self.freeze}")
        return self


class OwnSparsity(BaseModel, extra="forbid", frozen=True):
    """Settings of the sparse phase that a method has in place of those of the study."""

    rescale: Rescale | None = Field(None, description="In place of the study's.")
    ramp_end: RampEnd | None = Field(None, description="In place of the study's.")
    freeze: Freeze | None = Field(None, description="In place of the study's.")
    every: Every | None = Field(None, description="In place of the study's.")

    def given(self) -> dict[str, Any]:
        """Returns the settings that are not those of the study."""
        return self.model_dump(exclude_none=True)


class SparsifyingMethod(BaseModel, extra="forbid", frozen=True):
    """What a study adds to the parameters of an algorithm that does not leave the network dense."""

    sparsity: OwnSparsity | None = Field(
        None, description="Settings of the sparse phase in place of the study's: any of its `sparsity`, as {every: 20}."
    )


def faults(method: BaseModel, shared: Sparsity) -> Iterator[str]:
    """Yields what is wrong with the own settings of a method, each with its key: what has no effect or does not fit.

    Args:
        method: a method of a study.
        shared: the settings of the study.
    """
    own = getattr(method, "sparsity", None)
    if own is None:
        return
    given = own.given()
    if not given:
        yield f"sparsity: names no setting, allowed: {', '.join(OwnSparsity.model_fields)}"
    for name, value in given.items():
        if name in _without_effect(method, given):
            yield f"sparsity.{name}: has no effect on this method"
        elif value == getattr(shared, name):
            yield f"sparsity.{name}: {value} is that of the study already"
    both = shared.model_dump() | given
    if both["ramp_end"] > both["freeze"]:
        yield f"sparsity: ramp_end {both['ramp_end']} must not exceed freeze {both['freeze']}"


def _without_effect(method: BaseModel, given: dict[str, Any]) -> set[str]:
    """Returns the settings that a method does not use."""
    if not hasattr(method, "side"):  # its weights are dense
        return {"rescale"}
    if getattr(method, "ramp", True):
        return set()
    if not hasattr(method, "drop_fraction"):  # its masks never change
        return {"ramp_end", "freeze", "every"}
    return set() if "freeze" in given else {"ramp_end"}  # which must not exceed the freeze
