"""Settings that every task has. Imports no torch, because they are needed to parse the DAG."""

from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, Field, StringConstraints, model_validator

ModelLabel = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]
Share = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel, extra="forbid", frozen=True):
    """A part of a task's settings."""


class Estimate(NamedTuple):
    """Estimated size of a study's data, before they are prepared."""

    steps_per_epoch: int
    prepared_bytes: int


class PublishedPack(Section):
    """A pack of bbnet/data/packs.yaml. It is downloaded unless `path` names a copy on this machine."""

    path: str | None = Field(
        None, min_length=1, description="A folder, read in place, or an archive; downloaded if absent."
    )
    complete: bool = Field(True, description="Require the published counts; false accepts any pack in this layout.")


class Training(Section):
    """Settings of the training. The learning rate rises linearly and falls along a cosine to zero, over both phases."""

    epochs: int = Field(ge=2, le=10_000, description="Passes over the training data, warm-up included.")
    warm_up_epochs: int = Field(ge=1, description="The dense first phase, shared by all methods of a seed.")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="sgd: with momentum 0.9.")
    learning_rate: float = Field(gt=0, le=10, description="The largest of the schedule.")
    weight_decay: float = Field(0.0, ge=0, le=1, description="As the optimiser defines it; not on biases and norms.")
    betas: tuple[Share, Share] = Field((0.9, 0.999), description="Of adamw.")
    clip_norm: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="Gradients are scaled down to at most this norm; not if absent."
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
    """Training with batches of equally many samples."""

    batch_size: int = Field(ge=2, le=65_536, description="Samples per step; an incomplete last batch is left out.")
