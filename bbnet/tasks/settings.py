"""Settings that all tasks share. Imports no torch, because Snakemake reads the settings when it builds the DAG."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import AfterValidator, BaseModel, Field, StringConstraints, model_validator

from bbnet.data.paths import one_name

ModelLabel = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]
Share = Annotated[float, Field(ge=0, lt=1)]


# A path on this machine, by one name, because another name would name other data.
LocalPath = Annotated[str, StringConstraints(min_length=1), AfterValidator(one_name)]


class Section(BaseModel, extra="forbid", frozen=True):
    """Base class of the settings of a task. Unknown keys are errors."""


class Estimate(NamedTuple):
    """Estimated size of the data of a task, known before the data are prepared."""

    steps_per_epoch: int
    prepared_bytes: int


class TrainedWeights(Section):
    """The selected weights of the dense run of another model of the study, of the same seed, which is trained first.

    Tensors load whose names and shapes are those of the model's own; the others keep their random values.
    """

    run: str = Field(
        pattern=r"^[a-z][a-z0-9_]*/[a-z][a-z0-9_]*$", description="Task and label of that model, as task/model."
    )

    @property
    def source(self) -> tuple[str, str]:
        """Task and model of the run."""
        task, model = self.run.split("/")
        return task, model


class NetworkSettings(Section):
    """Base class of the settings of a model.

    `branched` says whether it is a Big-Little network. `of_training` names the settings that replace those of training.
    """

    branched: ClassVar[bool] = False
    of_training: ClassVar[tuple[str, ...]] = ("learning_rate", "warm_up_epochs")
    learning_rate: float | None = Field(
        None, gt=0, le=10, description="Of this model, in place of the one of training; absent: that of training."
    )
    warm_up_epochs: int | None = Field(
        None, ge=1, description="Of this model, in place of those of training, of as many epochs in total."
    )
    weights: TrainedWeights | None = Field(
        None,
        description="{run: task/model}, another model of the study that this one starts from; absent: random weights.",
    )


class TaskSettings(Section):
    """Base class of the complete settings of a task, which also have `estimate`, `prepared_steps` and `fans`.

    `models_in_panels` says whether panels also show the dense run of each model beside that of the baseline.
    """

    models_in_panels: ClassVar[bool] = False
    baseline: str | None = Field(
        None, description="A model of the task, with which its other models are compared at the same method and budget."
    )
    beside: dict[str, str] = Field(
        {}, description="By model, one more with which it is compared, such as one that differs from it in one thing."
    )

    def steps_per_epoch(self) -> int | None:
        """Returns the optimiser steps per epoch, or None if they are unknown until the data are prepared."""
        return None if isinstance(self.data, PublishedPack | LocalPack) else self.estimate(None).steps_per_epoch

    def training_of(self, label: str) -> "Training":
        """Returns the training settings of a model, with its own where it has them."""
        own = {name: getattr(self.models[label], name) for name in self.models[label].of_training}
        return self.training.model_copy(update={name: value for name, value in own.items() if value is not None})

    def fans(self) -> dict[str, set[int]]:
        """Returns the fans that occur among the slabs of each model, on any side."""
        return {label: model.fans(self.slabs) for label, model in self.models.items()}

    def scoring(self) -> dict[str, Any]:
        """Returns the settings that only scoring on test uses, none by default."""
        return {}

    @model_validator(mode="after")
    def _sparse_phase_of_models_left(self) -> "TaskSettings":
        for label in self.models:
            training = self.training_of(label)
            if training.warm_up_epochs >= training.epochs:
                raise ValueError(
                    f"models.{label}: warm_up_epochs {training.warm_up_epochs} must be below epochs {training.epochs}"
                )
        return self

    @model_validator(mode="after")
    def _baseline_is_a_model(self) -> "TaskSettings":
        if self.baseline is not None and self.baseline not in self.models:
            raise ValueError(
                f"baseline {self.baseline!r} is not a model of the task, allowed: {', '.join(self.models)}"
            )
        return self

    @model_validator(mode="after")
    def _models_beside_each_other(self) -> "TaskSettings":
        others = [label for label in self.models if label != self.baseline]
        for pair in self.beside.items():
            if self.baseline is None:
                raise ValueError("beside needs a baseline")
            if not {*pair}.issubset(others) or len({*pair}) == 1:
                raise ValueError(
                    f"beside: {': '.join(pair)} must be two different models besides the baseline, allowed: "
                    f"{', '.join(others)}"
                )
        return self


def estimate_of_images(images: Mapping[str, int], size: int, batch_size: int) -> Estimate:
    """Returns the size of the data of a task that prepares images in RGB as squares of `size` pixels.

    Args:
        images: number of images of each split, `train` among them.
    """
    return Estimate(images["train"] // batch_size, 3 * size**2 * sum(images.values()))


class PublishedPack(Section):
    """A pack of bbnet/data/packs.yaml, which is downloaded unless `path` names a local copy."""

    path: LocalPath | None = Field(None, description="Local folder, which is not copied, or archive; absent: download.")
    complete: bool = Field(True, description="Require the published counts; false: accept any pack in this layout.")


class LocalPack(Section):
    """A pack of the user's own, which no table describes and nothing is known of before it is prepared."""

    published: ClassVar[bool] = False
    path: LocalPath = Field(description="Local folder, which is not copied, or archive.")


class Training(Section):
    """Training settings. The learning rate rises linearly, then falls along a cosine to zero, across both phases."""

    epochs: int = Field(ge=2, le=10_000, description="Passes over the training data, including the warm-up.")
    warm_up_epochs: int = Field(ge=1, description="Epochs of the dense first phase, which all methods of a seed share.")
    optimizer: Literal["adamw", "adam", "sgd"] = Field("adamw", description="Optimiser; sgd uses momentum 0.9.")
    nesterov: bool = Field(False, description="Only for sgd: Nesterov's momentum.")
    learning_rate: float = Field(gt=0, le=10, description="Largest learning rate of the schedule.")
    weight_decay: float = Field(0.0, ge=0, le=1, description="As the optimiser defines it; not on biases and norms.")
    betas: tuple[Share, Share] = Field((0.9, 0.999), description="Betas of adamw and adam.")
    clip_norm: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="Largest norm of the gradients; absent: no clipping."
    )
    rise: float = Field(0.05, ge=0, le=0.5, description="Share of all steps over which the learning rate rises.")
    watch_balance: bool = Field(
        False, description="Fit the balance line after each epoch, which takes a pass over dev; there is a figure then."
    )

    @property
    def sparse_epochs(self) -> int:
        return self.epochs - self.warm_up_epochs

    @property
    def device_count(self) -> int:
        """The number of devices that a training takes: one, unless the settings of the task have `devices`."""
        return 1

    def on_one_device(self) -> Self:
        """Returns settings whose step on one device is what each device of a training does in a step."""
        return self

    def rising(self, steps_per_epoch: int) -> tuple[int, float, float]:
        """Returns the number of steps over which the learning rate rises, where it begins, and its largest value."""
        return max(1, round(self.rise * self.epochs * steps_per_epoch)), 0.0, self.learning_rate

    @model_validator(mode="after")
    def _sparse_phase_left(self) -> "Training":
        if self.warm_up_epochs >= self.epochs:
            raise ValueError(f"warm_up_epochs {self.warm_up_epochs} must be below epochs {self.epochs}")
        return self

    @model_validator(mode="after")
    def _nesterov_of_sgd(self) -> "Training":
        if self.nesterov and self.optimizer != "sgd":
            raise ValueError(f"nesterov is only allowed with optimizer sgd, found {self.optimizer}")
        return self


class LargeBatch(Section):
    """The rule of Goyal et al. (2017) for large batches: learning_rate is that of a batch of `of` samples.

    It is multiplied by batch_size / of, and rises from the former to the latter over `epochs`, in place of `rise`.
    """

    of: int = Field(256, ge=1, le=65_536, description="Samples of the batch for which learning_rate was chosen.")
    epochs: float = Field(5.0, gt=0, le=1000, description="Epochs over which the learning rate rises.")


class FixedBatchTraining(Training):
    """Training settings for batches that all have the same number of samples."""

    batch_size: int = Field(ge=2, le=65_536, description="Samples per step; an incomplete last batch is dropped.")
    large_batch: LargeBatch | None = Field(None, description=" ".join(LargeBatch.__doc__.split()))

    def rising(self, steps_per_epoch: int) -> tuple[int, float, float]:
        if self.large_batch is None:
            return super().rising(steps_per_epoch)
        steps = max(1, round(self.large_batch.epochs * steps_per_epoch))
        return steps, self.learning_rate, self.learning_rate * self.batch_size / self.large_batch.of

    @model_validator(mode="after")
    def _falls_after_the_rise(self) -> "FixedBatchTraining":
        if self.large_batch is not None and self.large_batch.epochs >= self.epochs:
            raise ValueError(f"large_batch.epochs {self.large_batch.epochs:g} must be below epochs {self.epochs}")
        return self


class SharedBatchTraining(FixedBatchTraining):
    """Training settings for batches that several devices may share, for tasks whose splits have `part`."""

    devices: int = Field(
        1,
        ge=1,
        le=64,
        description="Devices of one machine that a training takes, which share each batch; other numbers give other "
        "bits (docs/cluster.md). Not of asr, detection and language.",
    )

    @property
    def device_count(self) -> int:
        return self.devices

    def on_one_device(self) -> Self:
        return self.model_copy(update={"batch_size": -(-self.batch_size // self.devices), "devices": 1})

    @model_validator(mode="after")
    def _a_sample_for_each_device(self) -> "SharedBatchTraining":
        if self.devices > self.batch_size:
            raise ValueError(f"devices {self.devices} exceeds batch_size {self.batch_size}")
        return self


class ColourJitter(Section):
    """Random changes of the colours, uniform within these bounds."""

    brightness: float = Field(0.0, ge=0, lt=1, description="Largest difference of the factor from 1.")
    contrast: float = Field(0.0, ge=0, lt=1, description="The same, relative to the mean grey of the image.")
    saturation: float = Field(0.0, ge=0, lt=1, description="The same, relative to the grey of each pixel.")
    hue: float = Field(0.0, ge=0, le=0.5, description="Largest rotation of the hue, in full turns.")
