"""Settings of the face task."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from bbnet.tasks.settings import Estimate, FixedBatchTraining, ModelLabel, PublishedPack, Section

if TYPE_CHECKING:
    from bbnet.data.packs import Pack

RESNET101 = {"widths": [64, 128, 256, 512], "blocks": [3, 4, 23, 3]}
EXPANSION = 4


class RenderedFaces(Section):
    """The embedded pack: rendered faces in the face pack's layout."""

    pack: Literal["rendered_faces"] = Field(description="Rendered here, nothing is fetched.")
    seed: int = Field(0, ge=0, lt=2**31, description="Of the generator; not a seed of the study.")
    size: int = Field(ge=24, le=512, description="Height and width of an image in pixels.")
    identities: int = Field(ge=2, le=100_000, description="People to classify.")
    train: int = Field(ge=4, le=10_000_000, description="Training images of all of them together.")
    zipf: float = Field(0.7, ge=0, le=3, description="Beyond two each they are shared as rank^-zipf.")
    val: int = Field(ge=1, le=1000, description="Images of each in dev.")
    test: int = Field(ge=1, le=1000, description="Images of each in test.")
    gallery: int = Field(ge=0, le=100_000, description="People known to verification, who are not in training.")
    gallery_images: int = Field(1, ge=1, le=1000, description="Images of each of them in the gallery.")
    probes: int = Field(ge=0, le=1000, description="Further images of each, in either set to be identified.")
    strangers: int = Field(ge=0, le=100_000, description="People in either set who are not in the gallery.")

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
    """What is done with unusable files: `refuse` raises an error, `skip` leaves them out and counts them."""

    undecodable: Rule = Field("refuse", description="An image that cannot be decoded.")
    empty_identity: Rule = Field("refuse", description="An identity's folder without images.")


class Weights(Section):
    """ImageNet weights of torchvision's ResNet-101, as `resnet101-63fe2227.pth`."""

    pack: Literal["imagenet_resnet101"]
    path: str | None = Field(
        None,
        min_length=1,
        description="The file, read in place, whose name ends in the first digits of its SHA-256; absent: downloaded.",
    )


class ResNet(Section):
    """A bottleneck ResNet: torchvision's ResNet-101, or a small one for small images."""

    architecture: Literal["resnet101", "small"] = Field(
        description="small: a 3x3 convolution of stride 2 in front, no pooling, a stage per width."
    )
    widths: list[Annotated[int, Field(ge=1, le=4096)]] | None = Field(
        None,
        min_length=1,
        max_length=6,
        description="Of small: channels of each stage's 3x3 convolutions; 4 times as many leave it.",
    )
    blocks: list[Annotated[int, Field(ge=1, le=100)]] | None = Field(
        None, description="Of small: bottlenecks of each stage."
    )
    weights: Weights | None = Field(None, description="Of resnet101: where it starts; absent: at random.")
    head: Literal["linear", "arcface"] = Field("linear", description="arcface: cosines with an angular margin.")
    arcface_scale: float = Field(30.0, gt=0, le=1000, description="Of arcface: s, what cosines are multiplied by.")
    arcface_margin: float = Field(0.5, ge=0, le=1.5, description="Of arcface: m, added to the angle, in radians.")
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="0.1 in the released notebook.")

    @model_validator(mode="after")
    def _small_has_sizes(self) -> "ResNet":
        small = self.architecture == "small"
        for name in ("widths", "blocks"):
            if (getattr(self, name) is None) == small:
                raise ValueError(
                    f"{name} {'is missing' if small else 'is of small alone'}: architecture {self.architecture}"
                )
        if small and len(self.widths) != len(self.blocks):
            raise ValueError(f"blocks has {len(self.blocks)} stages, widths {len(self.widths)}")
        if small and self.weights is not None:
            raise ValueError("weights are of resnet101 alone")
        return self

    def stages(self) -> list[tuple[int, int]]:
        """Returns width and number of bottlenecks of each stage."""
        sizes = RESNET101 if self.widths is None else {"widths": self.widths, "blocks": self.blocks}
        return list(zip(sizes["widths"], sizes["blocks"], strict=True))


class Augmentation(Section):
    """Random variants of training images: mirrored with probability 0.5, the rest uniform within these bounds."""

    rotation: float = Field(10.0, ge=0, le=180, description="Degrees to either side; what is uncovered is black.")
    brightness: float = Field(0.2, ge=0, lt=1, description="Factor 1 ± this.")
    contrast: float = Field(0.2, ge=0, lt=1, description="Factor 1 ± this, about the image's mean grey.")
    saturation: float = Field(0.2, ge=0, lt=1, description="Factor 1 ± this, about each pixel's grey.")
    hue: float = Field(0.1, ge=0, le=0.5, description="Turns of the colour circle to either side.")


class FaceTraining(FixedBatchTraining):
    """Training with batches of equally many images."""

    augmentation: Augmentation = Field(default_factory=Augmentation, description=Augmentation.__doc__)


class Settings(Section):
    """Face identification and verification."""

    data: Data = Field(description="Where images come from.")
    size: int = Field(ge=16, le=1024, description="Images are prepared at this height and width.")
    resize: Literal["crop", "pad", "stretch"] = Field(
        "crop",
        description="crop: the shorter edge to size, then the middle; pad: the longer edge to size, black around.",
    )
    faults: Faults = Field(default_factory=Faults, description=Faults.__doc__)
    slabs: Literal["paper", "wide"] = Field("paper", description="1x1 reduce convolutions, or all 1x1 of the blocks.")
    models: dict[ModelLabel, ResNet] = Field(min_length=1, description="Label: its sizes.")
    training: FaceTraining

    def estimate(self, pack: "Pack | None") -> Estimate:
        """Returns the exact size of the embedded pack, or that of a published one by its counts."""
        data = self.data
        if isinstance(data, RenderedFaces):
            verification = data.gallery * (data.gallery_images + 2 * data.probes) + 2 * data.strangers
            train, others = data.train, data.identities * (data.val + data.test) + verification
        else:
            train = pack.counts["train"]
            others = sum(pack.counts.values()) - train - pack.counts["identities"]
        return Estimate(train // self.training.batch_size, 3 * self.size**2 * (train + others))

    def steps_per_epoch(self) -> int | None:
        """Returns the optimiser steps of an epoch if they are known before the data are prepared."""
        return self.estimate(None).steps_per_epoch if isinstance(self.data, RenderedFaces) else None

    def scoring(self) -> dict[str, Any]:
        """Returns the settings that only the scoring on test uses: none."""
        return {}

    def fans(self) -> dict[str, set[int]]:
        """Returns the fans of the slabs of each model, on either side."""
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
            raise ValueError(
                f"training.batch_size {self.training.batch_size} exceeds the {self.data.train} training images"
            )
        return self
