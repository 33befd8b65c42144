"""Settings of the face task."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from bbnet.models.settings import big_little, bottleneck_resnet
from bbnet.models.settings.big_little import Divisor
from bbnet.models.settings.bottleneck_resnet import Blocks, Stage, Widths, paired
from bbnet.tasks.settings import (
    Estimate,
    LocalPath,
    ModelLabel,
    NetworkSettings,
    PublishedPack,
    Section,
    SharedBatchTraining,
    TaskSettings,
    TrainedWeights,
)

if TYPE_CHECKING:
    from bbnet.data.packs import Pack

NETWORKS = ("big_little", "bottleneck_resnet", "slabs")  # modules of bbnet.models


class RenderedFaces(Section):
    """The embedded pack: rendered faces in the layout of the face pack."""

    pack: Literal["rendered_faces"] = Field(description="Rendered locally, without any download.")
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of the generator; independent of the seeds of the study.")
    size: int = Field(ge=24, le=512, description="Height and width of an image in pixels.")
    identities: int = Field(ge=2, le=100_000, description="Number of people to classify.")
    train: int = Field(ge=4, le=10_000_000, description="Training images of all these people in total.")
    zipf: float = Field(0.7, ge=0, le=3, description="Each person has two, plus a share of the rest ~ rank^-zipf.")
    val: int = Field(ge=1, le=1000, description="Images of each person in dev.")
    test: int = Field(ge=1, le=1000, description="Images of each person in test.")
    gallery: int = Field(ge=0, le=100_000, description="Other people, who form the gallery of verification.")
    gallery_images: int = Field(1, ge=1, le=1000, description="Images of each of them in the gallery.")
    probes: int = Field(ge=0, le=1000, description="Probes of each of them in dev, and as many in test.")
    strangers: int = Field(ge=0, le=100_000, description="Probes of further people in dev, and as many in test.")

    @model_validator(mode="after")
    def _images_suffice(self) -> "RenderedFaces":
        if self.train < 2 * self.identities:
            raise ValueError(f"train {self.train} is below two images for each of {self.identities} identities")
        return self


class FacePack(PublishedPack):
    """The face pack, or any pack in its layout: *classification/ and *verification/."""

    pack: Literal["faces"]


Data = Annotated[RenderedFaces | FacePack, Field(discriminator="pack")]

Rule = Literal["refuse", "skip"]


class Faults(Section):
    """Handling of unusable files: `refuse` raises an error, `skip` omits and counts them."""

    undecodable: Rule = Field("refuse", description="An image that cannot be decoded.")
    empty_identity: Rule = Field("refuse", description="An identity's folder without images of a format that is read.")


class Weights(Section):
    """ImageNet weights of torchvision's ResNet-101, `resnet101-63fe2227.pth`."""

    pack: Literal["imagenet_resnet101"]
    path: LocalPath | None = Field(
        None, description="Local file, whose name ends in the first digits of its SHA-256; absent: download."
    )


def _source(weights: Any) -> str:
    """Returns the class of the settings of weights: those that name a run, or else those of a pack."""
    trained = isinstance(weights, TrainedWeights) or (isinstance(weights, dict) and "run" in weights)
    return (TrainedWeights if trained else Weights).__name__


Start = Annotated[
    Annotated[Weights, Tag("Weights")] | Annotated[TrainedWeights, Tag("TrainedWeights")], Discriminator(_source)
]


class ResNet(NetworkSettings):
    """A bottleneck ResNet or a Big-Little ResNet, for photographs or for small images."""

    architecture: Literal["resnet101", "small", "bl_resnet50", "bl_resnet101", "bl_resnet152", "big_little"] = Field(
        description="small, big_little: a 3x3 convolution of stride 2, no max pooling, then one stage per width."
    )
    widths: Widths | None = Field(
        None,
        description="Only for small and big_little: channels of the 3x3 convolutions of each stage, which outputs 4 "
        "times as many.",
    )
    blocks: Blocks | None = Field(
        None, description="Only for small and big_little: number of bottlenecks of each stage."
    )
    alpha: Divisor | None = Field(None, description=f"Only for Big-Little ResNets. {big_little.ALPHA}")
    beta: Divisor | None = Field(None, description=f"Only for Big-Little ResNets. {big_little.BETA}")
    weights: Start | None = Field(
        None,
        description="What the model starts from: a published pack, only for resnet101, or a run of the study; absent: "
        "random weights.",
    )
    head: Literal["linear", "arcface"] = Field("linear", description="arcface: cosines with an angular margin.")
    arcface_scale: float = Field(30.0, gt=0, le=1000, description="Only for arcface: s, the factor of the cosines.")
    arcface_margin: float = Field(0.5, ge=0, le=1.5, description="Only for arcface: m, added to the angle, in radians.")
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="0.1 in the released notebook.")

    @model_validator(mode="after")
    def _fits_architecture(self) -> "ResNet":
        for needed, names in ((self.small, ("widths", "blocks")), (self.branched, ("alpha", "beta"))):
            for name in names:
                if (getattr(self, name) is None) == needed:
                    problem = "is missing for" if needed else "is not allowed with"
                    raise ValueError(f"{name} {problem} architecture {self.architecture}")
        if self.branched:
            big_little.check_stages(self.stages())
        elif self.small:
            self.stages()
        if self.architecture != "resnet101" and isinstance(self.weights, Weights):
            raise ValueError(f"weights of pack {self.weights.pack} are only allowed with architecture resnet101")
        return self

    @property
    def small(self) -> bool:
        """Whether the network is one for small images, whose stages are given."""
        return self.architecture in ("small", "big_little")

    @property
    def stem(self) -> Literal["imagenet", "small"]:
        return "small" if self.small else "imagenet"

    @property
    def branched(self) -> bool:
        """Whether the network is a Big-Little ResNet."""
        return self.architecture not in ("resnet101", "small")

    def stages(self) -> list[Stage]:
        """Returns the width and the number of bottlenecks of each stage."""
        if self.small:
            return paired(self.widths, self.blocks)
        return (big_little if self.branched else bottleneck_resnet).PUBLISHED[self.architecture]

    def fans(self, which: Literal["paper", "wide"]) -> set[int]:
        """Returns the fans that occur among the slabs, on any side."""
        if self.branched:
            return big_little.fans(self.stages(), self.alpha, self.beta, self.stem, which)
        return bottleneck_resnet.fans(self.stages(), which)


class Augmentation(Section):
    """Random changes of training images, uniform within these bounds. Images are mirrored with probability 0.5."""

    rotation: float = Field(10.0, ge=0, le=180, description="Largest rotation in degrees; new area is black.")
    brightness: float = Field(0.2, ge=0, lt=1, description="Largest difference of the factor from 1.")
    contrast: float = Field(0.2, ge=0, lt=1, description="The same, relative to the mean grey of the image.")
    saturation: float = Field(0.2, ge=0, lt=1, description="The same, relative to the grey of each pixel.")
    hue: float = Field(0.1, ge=0, le=0.5, description="Largest rotation of the hue, in full turns.")


class FaceTraining(SharedBatchTraining):
    """Training settings of the face task, with batches of a fixed number of images."""

    augmentation: Augmentation = Field(default_factory=Augmentation, description=Augmentation.__doc__)


class Settings(TaskSettings):
    """Face identification and verification."""

    data: Data = Field(description="Source of the images.")
    size: int = Field(ge=16, le=1024, description="Height and width to which images are resized.")
    resize: Literal["crop", "pad", "stretch"] = Field(
        "crop",
        description="crop: scale the shorter edge to size, then crop; pad: scale the longer edge, pad with black.",
    )
    faults: Faults = Field(default_factory=Faults, description=Faults.__doc__)
    slabs: Literal["paper", "wide"] = Field("paper", description="1x1 reduce convolutions, or all 1x1 convolutions.")
    models: dict[ModelLabel, ResNet] = Field(min_length=1, description="Settings of each model, by label.")
    training: FaceTraining

    def estimate(self, pack: "Pack | None") -> Estimate:
        """Returns the size of the data: exact for the embedded pack, otherwise from the counts of `pack`."""
        data = self.data
        if isinstance(data, RenderedFaces):
            verification = data.gallery * (data.gallery_images + 2 * data.probes) + 2 * data.strangers
            train, others = data.train, data.identities * (data.val + data.test) + verification
        else:
            train = pack.counts["train"]
            others = sum(pack.counts.values()) - train - pack.counts["identities"]
        return Estimate(train // self.training.batch_size, 3 * self.size**2 * (train + others))

    def prepared_steps(self, _: Path, index: Mapping[str, Any]) -> int:
        """Returns the steps per epoch with the prepared data that `index` describes."""
        return len(index["splits"]["train"]["labels"]) // self.training.batch_size

    @model_validator(mode="after")
    def _batch_fits(self) -> "Settings":
        if self.steps_per_epoch() == 0:
            size, images = self.training.batch_size, self.data.train
            raise ValueError(f"training.batch_size {size} exceeds the {images} training images")
        return self
