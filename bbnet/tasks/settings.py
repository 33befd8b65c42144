"""Settings that all tasks share. Imports no torch, because Snakemake reads the settings when it builds the DAG."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, Field, StringConstraints, model_validator

ModelLabel = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]
Share = Annotated[float, Field(ge=0, lt=1)]


def _tidy(path: str) -> str:
    """Returns a path without ./, double and trailing slashes, which would name other data, and with its variables."""
    return str(Path(os.path.expandvars(path)))


# A path on this machine. Its readers expand ~.
LocalPath = Annotated[str, StringConstraints(min_length=1), AfterValidator(_tidy)]


class Section(BaseModel, extra="forbid", frozen=True):
    """Base class of the settings of a task. Unknown keys are errors."""


class Estimate(NamedTuple):
    """Estimated size of the data of a task, known before the data are prepared."""

    steps_per_epoch: int
    prepared_bytes: int


class TaskSettings(Section):
    """Base class of the complete settings of a task, which also have `estimate`, `prepared_steps` and `fans`."""

    def steps_per_epoch(self) -> int | None:
        """Returns the optimiser steps per epoch, or None if they are unknown until the data are prepared."""
        return None if isinstance(self.data, PublishedPack) else self.estimate(None).steps_per_epoch

    def scoring(self) -> dict[str, Any]:
        """Returns the settings that only scoring on test uses, none by default."""
        return {}


class PublishedPack(Section):
    """A pack of bbnet/data/packs.yaml, which is downloaded unless `path` names a local copy."""

    path: LocalPath | None = Field(None, description="Local folder, which is not copied, or archive; absent: download.")
    complete: bool = Field(True, description="Require the published counts; false: accept any pack in this layout.")


class Training(Section):
    """Training settings. The learning rate rises linearly, then falls along a cosine to zero, across both phases."""

    epochs: int = Field(ge=2, le=10_000, description="Passes over the training data, including the warm-up.")
    warm_up_epochs: int = Field(ge=1, description="Epochs of the dense first phase, which all methods of a seed share.")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="Optimiser; sgd uses momentum 0.9.")
    learning_rate: float = Field(gt=0, le=10, description="Largest learning rate of the schedule.")
    weight_decay: float = Field(0.0, ge=0, le=1, description="As the optimiser defines it; not on biases and norms.")
    betas: tuple[Share, Share] = Field((0.9, 0.999), description="Betas of adamw.")
    clip_norm: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="Largest norm of the gradients; absent: no clipping."
    )
    rise: float = Field(0.05, ge=0, le=0.5, description="Share of all steps over which the learning rate rises.")

    @property
    def sparse_epochs(self) -> int:
        return self.epochs - self.warm_up_epochs

    @model_validator(mode="after")
    def _sparse_phase_left(self) -> "Training":
        if self.warm_up_epochs >= self.epochs:
            raise ValueError(f"warm_up_epochs {self.warm_up_epochs} must be below epochs {self.epochs}")
        return self


class FixedBatchTraining(Training):
    """Training settings for batches that all have the same number of samples."""

    batch_size: int = Field(ge=2, le=65_536, description="Samples per step; an incomplete last batch is dropped.")
