"""Settings of the detection task."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from bbnet.models.settings import hybrid_detector
from bbnet.models.settings.hybrid_detector import Which
from bbnet.tasks.detection.data_settings import Data, Faults, RenderedScenes
from bbnet.tasks.settings import (
    ColourJitter,
    Estimate,
    FixedBatchTraining,
    ModelLabel,
    NetworkSettings,
    Section,
    TaskSettings,
    estimate_of_images,
)

if TYPE_CHECKING:
    from bbnet.data.packs import Pack

NETWORKS = ("hybrid_detector", "operators")  # modules and packages of bbnet.models
MOST_DETECTIONS, LEAST_SCORE = 100, 0.01
OBJECT_SIDES = (32.0, 96.0)
Positive = Annotated[float, Field(gt=0)]


class Model(NetworkSettings, hybrid_detector.HybridDetector):
    """The hybrid detector: a convolutional and attentive backbone, a neck, a deformable encoder and decoder."""


class Augmentation(Section):
    """Random changes of training images with their boxes, uniform within these bounds."""

    flip: bool = Field(True, description="Mirror images with probability 0.5.")
    zoom: tuple[Positive, Positive] = Field(
        (0.8, 1.25), description="Smallest and largest factor of the size; its logarithm is uniform."
    )
    shift: float = Field(0.1, ge=0, lt=0.5, description="Largest shift in each direction, as a share of the image.")
    colour: ColourJitter | None = Field(
        default_factory=lambda: ColourJitter(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.05),
        description=ColourJitter.__doc__,
    )

    @model_validator(mode="after")
    def _in_order(self) -> "Augmentation":
        if self.zoom[0] > self.zoom[1]:
            raise ValueError(f"zoom {self.zoom[0]:g} must not exceed {self.zoom[1]:g}")
        return self


class DetectionTraining(FixedBatchTraining):
    """Training settings of the detection task, with batches of a fixed number of images."""

    augmentation: Augmentation = Field(default_factory=Augmentation, description=Augmentation.__doc__)


class Settings(TaskSettings):
    """Detection of objects, as boxes with classes."""

    models_in_panels = True
    data: Data = Field(description="Source of the images.")
    size: int = Field(
        96, ge=32, le=2048, multiple_of=32, description="Height and width in which images are letterboxed."
    )
    faults: Faults = Field(default_factory=Faults, description=Faults.__doc__)
    detections: int = Field(MOST_DETECTIONS, ge=1, le=1000, description="Largest number of an image that are scored.")
    least_score: float = Field(LEAST_SCORE, ge=0, lt=1, description="Detections of a lower score are not scored.")
    object_sides: tuple[Positive, Positive] = Field(
        OBJECT_SIDES,
        description="Objects are small up to, and large from, the areas of squares of these sides, in pixels of the "
        "original image.",
    )
    slabs: Which = Field("wide", description="The feed-forward layers, or all 1x1 projections too.")
    models: dict[ModelLabel, Model] = Field(min_length=1, description="Settings of each model, by label.")
    training: DetectionTraining

    def scoring(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in ("detections", "least_score", "object_sides")}

    def estimate(self, pack: "Pack | None") -> Estimate:
        """Returns the size of the data: exact for the embedded pack, otherwise from the counts of `pack`."""
        return estimate_of_images(self.data.images(pack), self.size, self.training.batch_size)

    def prepared_steps(self, _: Path, index: Mapping[str, Any]) -> int:
        """Returns the steps per epoch with the prepared data that `index` describes."""
        return len(index["splits"]["train"]["files"]) // self.training.batch_size

    @model_validator(mode="after")
    def _fits(self) -> "Settings":
        if isinstance(self.data, RenderedScenes) and not self.steps_per_epoch():
            size, images = self.training.batch_size, self.data.train
            raise ValueError(f"training.batch_size {size} exceeds the {images} training images")
        if self.object_sides[0] > self.object_sides[1]:
            raise ValueError(f"object_sides {self.object_sides[0]:g} must not exceed {self.object_sides[1]:g}")
        return self
