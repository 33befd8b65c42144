"""Settings of the face task."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from bbnet.tasks.settings import (
    Estimate,
    FixedBatchTraining,
    LocalPath,
    ModelLabel,
    PublishedPack,
    Section,
    TaskSettings,
)

if TYPE_CHECKING:
    from bbnet.data.packs import Pack

RESNET101 = {"widths": [64, 128, 256, 512], "blocks": [3, 4, 23, 3]}
EXPANSION = 4


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


class ResNet(Section):
    """A bottleneck ResNet: torchvision's ResNet-101, or a network for small images."""

    architecture: Literal["resnet101", "small"] = Field(
        description="small: a 3x3 convolution of stride 2, no max pooling, then one stage per width."
    )
    widths: list[Annotated[int, Field(ge=1, le=4096)]] | None = Field(
        None,
        min_length=1,
        max_length=6,
        description="Only for small: channels of the 3x3 convolutions of each stage, which outputs 4 times as many.",
    )
    blocks: list[Annotated[int, Field(ge=1, le=100)]] | None = Field(
        None, description="Only for small: number of bottlenecks of each stage."
    )
    weights: Weights | None = Field(None, description="Only for resnet101: pretrained weights; absent: random weights.")
    head: Literal["linear", "arcface"] = Field("linear", description="arcface: cosines with an angular margin.")
    arcface_scale: float = Field(30.0, gt=0, le=1000, description="Only for arcface: s, the factor of the cosines.")
    arcface_margin: float = Field(0.5, ge=0, le=1.5, description="Only for arcface: m, added to the angle, in radians.")
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="0.1 in the released notebook.")

    @model_validator(mode="after")
    def _small_has_sizes(self) -> "ResNet":
        small = self.architecture == "small"
        for name in ("widths", "blocks"):
            if (getattr(self, name) is None) == small:
                problem = "is missing for" if small else "is not allowed with"
                raise ValueError(f"{name} {problem} architecture {self.architecture}")
        if small and len(self.widths) != len(self.blocks):
            raise ValueError(f"blocks has {len(self.blocks)} stages, but widths has {len(self.widths)}")
        if small and self.weights is not None:
            raise ValueError("weights is only allowed with architecture resnet101")
        return self

    def stages(self) -> list[tuple[int, int]]:
        """Returns the width and the number of bottlenecks of each stage."""
        sizes = RESNET101 if self.widths is None else {"widths": self.widths, "blocks": self.blocks}
        return list(zip(sizes["widths"], sizes["blocks"], strict=True))


class Augmentation(Section):
    """Random changes of training images, uniform within these bounds. Images are mirrored with probability 0.5."""

    rotation: float = Field(10.0, ge=0, le=180, description="Largest rotation in degrees; new area is black.")
    brightness: float = Field(0.2, ge=0, lt=1, description="Largest difference of the factor from 1.")
    contrast: float = Field(0.2, ge=0, lt=1, description="The same, relative to the mean grey of the image.")
    saturation: float = Field(0.2, ge=0, lt=1, description="The same, relative to the grey of each pixel.")
    hue: float = Field(0.1, ge=0, le=0.5, description="Largest rotation of the hue, in full turns.")


class FaceTraining(FixedBatchTraining):
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

    def fans(self) -> dict[str, set[int]]:
        """Returns the fans that occur among the slabs of each model, on any side."""
        found = {}
        for label, model in self.models.items():
            fans, inputs = set(), model.stages()[0][0]
            for width, blocks in model.stages():
                outputs = EXPANSION * width
                fans |= {inputs, width} | ({outputs} if blocks > 1 or self.slabs == "wide" else set())
                inputs = outputs
            found[label] = fans
        return found

    @model_validator(mode="after")
    def _batch_fits(self) -> "Settings":
        if self.steps_per_epoch() == 0:
            size, images = self.training.batch_size, self.data.train
            raise ValueError(f"training.batch_size {size} exceeds the {images} training images")
        return self
