"""Settings of the classification task."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from bbnet.models.settings import big_little, bottleneck_resnet, cifar_resnet, hybrid_detector
from bbnet.models.settings.big_little import Divisor
from bbnet.models.settings.bottleneck_resnet import Blocks, Stage, Widths
from bbnet.tasks.classification.data_settings import Data, Faults
from bbnet.tasks.settings import (
    ColourJitter,
    Estimate,
    ModelLabel,
    NetworkSettings,
    Section,
    SharedBatchTraining,
    TaskSettings,
    estimate_of_images,
)

if TYPE_CHECKING:
    from bbnet.data.packs import Pack

NETWORKS = (
    "big_little",
    "bottleneck_resnet",
    "cifar_resnet",
    "hybrid_detector",
    "operators",
    "slabs",
)  # modules of bbnet.models
Which = Literal["paper", "wide"]
SLABS_OF_BACKBONE: dict[str, hybrid_detector.Which] = {"paper": "ffn", "wide": "wide"}
Probability = Annotated[float, Field(ge=0, le=1)]


class Network(NetworkSettings):
    """Base class of the settings of all models."""

    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Share of the target that all classes have in common.")


class CifarResNet(Network):
    """ResNet-20, 32, 44, 56 or 110 for CIFAR (He et al. 2016): shortcuts without weights."""

    architecture: Literal["cifar_resnet"]
    depth: int = Field(20, ge=8, le=1202, description="6n + 2 for n blocks in each of three stages.")
    width: int = Field(16, ge=1, le=4096, description="Channels of the first stage; the later ones double them.")
    stem_stride: Literal[1, 2] = Field(1, description="Stride of the first convolution; 2 costs a quarter of 1.")

    @field_validator("depth")
    @classmethod
    def _of_whole_blocks(cls, depth: int) -> int:
        cifar_resnet.blocks_per_stage(depth)
        return depth

    def fans(self, _: Which) -> set[int]:
        return cifar_resnet.fans(self.width)


class BottleneckNetwork(Network):
    """Base class of the settings of bottleneck ResNets, which have `stages`."""

    def fans(self, which: Which) -> set[int]:
        return bottleneck_resnet.fans(self.stages(), which)


class SmallResNet(BottleneckNetwork):
    """A bottleneck ResNet for small images: a 3x3 convolution of stride 2, no max pooling, then one stage per width."""

    architecture: Literal["bottleneck_resnet"]
    widths: Widths = Field(description="Channels of the 3x3 convolutions of each stage, which outputs 4 times as many.")
    blocks: Blocks = Field(description="Number of bottlenecks of each stage.")

    @model_validator(mode="after")
    def _paired(self) -> "SmallResNet":
        self.stages()
        return self

    def stages(self) -> list[Stage]:
        return bottleneck_resnet.paired(self.widths, self.blocks)


class ImageNetResNet(BottleneckNetwork):
    """ResNet-50, 101 or 152 for ImageNet, with the structure and the initial weights of torchvision's."""

    architecture: Literal["resnet50", "resnet101", "resnet152"]

    def stages(self) -> list[Stage]:
        return bottleneck_resnet.PUBLISHED[self.architecture]


class BigLittleNetwork(Network):
    """Base class of the settings of Big-Little ResNets, which have `stages` and a `stem`."""

    branched = True
    stem: ClassVar[Literal["imagenet", "small"]]
    alpha: Divisor = Field(description=big_little.ALPHA)
    beta: Divisor = Field(description=big_little.BETA)

    def fans(self, which: Which) -> set[int]:
        return big_little.fans(self.stages(), self.alpha, self.beta, self.stem, which)


class SmallBigLittle(BigLittleNetwork):
    """A Big-Little ResNet for small images: a 3x3 convolution of stride 2, then one stage per width."""

    stem = "small"
    architecture: Literal["big_little"]
    widths: Widths = Field(description="Channels of the 3x3 convolutions of each stage, which outputs 4 times as many.")
    blocks: Blocks = Field(description="Number L of bottlenecks of each stage; all stages but the last have branches.")

    @model_validator(mode="after")
    def _branched(self) -> "SmallBigLittle":
        big_little.check_stages(self.stages())
        return self

    def stages(self) -> list[Stage]:
        return bottleneck_resnet.paired(self.widths, self.blocks)


class ImageNetBigLittle(BigLittleNetwork):
    """bL-ResNet-50, 101 or 152 for ImageNet (Chen et al., ICLR 2019), as in the authors' code."""

    stem = "imagenet"
    architecture: Literal["bl_resnet50", "bl_resnet101", "bl_resnet152"]

    def stages(self) -> list[Stage]:
        return big_little.PUBLISHED[self.architecture]


class HybridBackbone(Network, hybrid_detector.HybridBackbone):
    """The backbone of the hybrid detector, from which a detector of the same sizes and flags can start."""

    architecture: Literal["hybrid_backbone"]

    def fans(self, which: Which) -> set[int]:
        return self.backbone_fans(SLABS_OF_BACKBONE[which])


Model = Annotated[
    CifarResNet | SmallResNet | ImageNetResNet | SmallBigLittle | ImageNetBigLittle | HybridBackbone,
    Field(discriminator="architecture"),
]


class PadCrop(Section):
    """Images are moved by whole pixels; new area is black. As padding them, then cropping their size at random."""

    kind: Literal["pad"]
    pixels: int = Field(4, ge=1, le=256, description="Largest shift down, up, right and left.")


class ResizedCrop(Section):
    """A random part of the image, 3/4 to 4/3 times as wide as high, is scaled to the image's size, bilinearly."""

    kind: Literal["resized"]
    smallest: float = Field(0.08, gt=0, le=1, description="Smallest share of the image's area.")
    largest: float = Field(1.0, gt=0, le=1, description="Largest share of the image's area.")

    @model_validator(mode="after")
    def _in_order(self) -> "ResizedCrop":
        return _in_order(self)


class Erasing(Section):
    """Random erasing (Zhong et al. 2020): a rectangle, .3 to 3.3 times as wide as high, becomes random pixels."""

    probability: Probability = Field(0.25, description="Share of the images that lose a rectangle.")
    smallest: float = Field(0.02, gt=0, le=1, description="Smallest share of the image's area.")
    largest: float = Field(0.2, gt=0, le=1, description="Largest share of the image's area.")

    @model_validator(mode="after")
    def _in_order(self) -> "Erasing":
        return _in_order(self)


def _in_order(areas: Any) -> Any:
    """Returns settings with a smallest and a largest area; raises ValueError if the former exceeds the latter."""
    if areas.smallest > areas.largest:
        raise ValueError(f"smallest {areas.smallest} must not exceed largest {areas.largest}")
    return areas


class Augmentation(Section):
    """Random changes of training images, in this order."""

    flip: bool = Field(True, description="Mirror images with probability 0.5.")
    crop: Annotated[PadCrop | ResizedCrop, Field(discriminator="kind")] | None = Field(
        default_factory=lambda: PadCrop(kind="pad"), description="Move images, or cut a part; null: neither."
    )
    colour: ColourJitter | None = Field(None, description=ColourJitter.__doc__)
    erasing: Erasing | None = Field(None, description=Erasing.__doc__)
    mixup: float | None = Field(
        None,
        gt=0,
        le=100,
        description="Mixup (Zhang et al. 2018): each image and its target are mixed with another one's; the shares are "
        "drawn from Beta(mixup, mixup).",
    )


class ClassificationTraining(SharedBatchTraining):
    """Training settings of the classification task, with batches of a fixed number of images."""

    augmentation: Augmentation = Field(default_factory=Augmentation, description=Augmentation.__doc__)


class Settings(TaskSettings):
    """Classification of images."""

    data: Data = Field(description="Source of the images.")
    size: int = Field(32, ge=16, le=1024, description="Height and width to which images are resized.")
    input_size: int | None = Field(
        None,
        ge=16,
        description="Height and width of what the network sees, at most size: in training a part that "
        "augmentation.crop of kind resized cuts, else the centre; absent: size.",
    )
    large_size: int | None = Field(
        None,
        description="Test images are also scored at this size, above input_size and at most size, as top1_large: the "
        "centre of the image.",
    )
    resize: Literal["crop", "pad", "stretch"] = Field(
        "crop",
        description="crop: scale the shorter edge to size, then crop; pad: scale the longer edge, pad with black.",
    )
    faults: Faults = Field(default_factory=Faults, description=Faults.__doc__)
    slabs: Which = Field(
        "paper",
        description="The first convolution of each block (cifar_resnet: 3x3, others: 1x1), or all of its size there; "
        "of hybrid_backbone the feed-forward layers, or also the ends of cross-stage partial blocks.",
    )
    models: dict[ModelLabel, Model] = Field(min_length=1, description="Settings of each model, by label.")
    training: ClassificationTraining

    @property
    def seen_size(self) -> int:
        """Height and width of what the network sees in training, and where it is scored once."""
        return self.size if self.input_size is None else self.input_size

    def scoring(self) -> dict[str, Any]:
        return {"large_size": self.large_size}

    def estimate(self, pack: "Pack | None") -> Estimate:
        """Returns the size of the data: exact for the embedded pack, otherwise from the counts of `pack`."""
        return estimate_of_images(self.data.images(pack), self.size, self.training.batch_size)

    def prepared_steps(self, _: Path, index: Mapping[str, Any]) -> int:
        """Returns the steps per epoch with the prepared data that `index` describes."""
        return len(index["splits"]["train"]["labels"]) // self.training.batch_size

    @model_validator(mode="after")
    def _fits(self) -> "Settings":
        if self.steps_per_epoch() == 0:
            size, images = self.training.batch_size, self.data.train
            raise ValueError(f"training.batch_size {size} exceeds the {images} training images")
        crop, seen = self.training.augmentation.crop, self.seen_size
        if seen > self.size:
            raise ValueError(f"input_size {seen} must not exceed size {self.size}")
        if seen < self.size and not isinstance(crop, ResizedCrop):
            raise ValueError(
                f"input_size {seen} below size {self.size} needs training.augmentation.crop: {{kind: resized}}"
            )
        if self.large_size is not None and not seen < self.large_size <= self.size:
            raise ValueError(
                f"large_size {self.large_size} must be above input_size {seen} and at most size {self.size}"
            )
        if isinstance(crop, PadCrop) and crop.pixels >= self.size:
            raise ValueError(f"training.augmentation.crop.pixels {crop.pixels} must be below size {self.size}")
        return self
