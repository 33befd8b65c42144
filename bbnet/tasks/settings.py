"""Settings that every task has. Imports no torch: the DAG is parsed with these."""

from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, Field, StringConstraints, model_validator

ModelLabel = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]
Share = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel, extra="forbid", frozen=True):
    """A part of a task's settings."""


class Estimate(NamedTuple):
    """What a study's data amount to, before they are there."""

    steps_per_epoch: int
    prepared_bytes: int


class PublishedPack(Section):
    """A pack of bbnet/data/packs.yaml, downloaded unless it is on this machine already."""

    path: str | None = Field(
        None, min_length=1, description="A folder, read in place, or an archive; absent: it is downloaded."
    )
    complete: bool = Field(
        True, description="It must be whole, by the published counts; false takes any pack of this layout."
    )


class Training(Section):
    """One learning-rate schedule spans the dense warm-up and the sparse phase: linear rise, then cosine to zero."""

    epochs: int = Field(ge=2, le=10_000, description="Passes over the training data, warm-up included.")
    warm_up_epochs: int = Field(ge=1, description="The dense first phase, shared by all methods of a seed.")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="sgd: with momentum 0.9.")
    learning_rate: float = Field(gt=0, le=10, description="At the top of the schedule.")
    weight_decay: float = Field(0.0, ge=0, le=1, description="As the optimiser defines it; not on biases and norms.")
    betas: tuple[Share, Share] = Field((0.9, 0.999), description="Of adamw.")
    clip_norm: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="Gradients are scaled to at most this norm; absent: not."
    )
    rise: float = Field(0.05, ge=0, le=0.5, description="Share of all steps over which the learning rate rises.")

    @property
    def sparse_epochs(self) -> int:
        """Epochs of the sparse phase."""
        return self.epochs - self.warm_up_epochs

    @model_validator(mode="after")
    def _sparse_phase_left(self) -> "Training":
        if self.warm_up_epochs >= self.epochs:
            raise ValueError(f"warm_up_epochs {self.warm_up_epochs} must be below epochs {self.epochs}")
        return self


class FixedBatchTraining(Training):
    """Batches of equally many samples."""

    batch_size: int = Field(ge=2, le=65_536, description="Samples per step; an incomplete last batch is left out.")
