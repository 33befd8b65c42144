"""Settings of the data of the classification task. Imports no torch."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from bbnet.data.files import contents
from bbnet.tasks.classification.data.split import dev_count, long_tail_counts
from bbnet.tasks.settings import LocalPack, PublishedPack, Section

if TYPE_CHECKING:
    from bbnet.data.packs import Pack

OBJECT_CLASSES = 10
ASSUMED_CLASSES = 1000
DevShare = Annotated[float, Field(gt=0, lt=1)]


class RenderedObjects(Section):
    """The embedded pack: rendered objects of ten classes, in CIFAR's layout at 32 pixels, else in folders."""

    pack: Literal["rendered_objects"] = Field(description="Rendered locally, without any download.")
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of the generator; independent of the seeds of the study.")
    size: int = Field(32, ge=16, le=512, description="Height and width of an image in pixels.")
    train: int = Field(ge=20, le=10_000_000, description="Training images of all ten classes, without those of dev.")
    val: int = Field(ge=10, le=1_000_000, description="Images of dev, as many of each class.")
    test: int = Field(ge=10, le=1_000_000, description="Test images, as many of each class.")
    difficulty: float = Field(
        0.45, ge=0, le=1, description="Strength of pose, clutter, occlusion, light and noise; 0: upright and clean."
    )
    imbalance: float = Field(
        1.0, ge=1, le=1000, description="Training images of the most frequent class / of the least frequent one."
    )

    @model_validator(mode="after")
    def _fits_ten_classes(self) -> "RenderedObjects":
        for name in ("val", "test"):
            if getattr(self, name) % OBJECT_CLASSES:
                raise ValueError(f"{name} {getattr(self, name)} is not a multiple of the {OBJECT_CLASSES} classes")
        if min(self.training_counts()) < 1:
            raise ValueError(
                f"train {self.train} with imbalance {self.imbalance:g} leaves no image of the least frequent class"
            )
        return self

    def training_counts(self) -> list[int]:
        """Returns the number of training images of each class, in the order of labels, without those of dev."""
        return long_tail_counts(self.train, OBJECT_CLASSES, self.imbalance)

    def images(self, _: "Pack | None") -> dict[str, int]:
        """Returns the number of images of train, val and test."""
        return {"train": self.train, "val": self.val, "test": self.test}

    def class_count(self, _: "Pack | None") -> int:
        return OBJECT_CLASSES


class Cifar10(PublishedPack):
    """CIFAR-10, the python version, or any pack in its layout: data_batch_1 to 5, test_batch and batches.meta."""

    pack: Literal["cifar10"]
    dev_share: DevShare = Field(
        0.1, description="Share of each class's training images that forms dev: the last ones in the archive's order."
    )

    def images(self, pack: "Pack") -> dict[str, int]:
        """Returns the number of images of train, val and test of the published pack."""
        classes = pack.counts["classes"]
        dev = classes * dev_count(pack.counts["train"] // classes, self.dev_share)
        return {"train": pack.counts["train"] - dev, "val": dev, "test": pack.counts["test"]}

    def class_count(self, pack: "Pack") -> int:
        return pack.counts["classes"]


class ImageFolder(LocalPack):
    """A folder of your own, or an archive: train/{class}/*, val/{class}/* and, if there is one, test/{class}/*."""

    pack: Literal["image_folder"]
    dev_share: DevShare = Field(
        0.1,
        description="Without test/, val/ is the test set, and this share of each class's training images forms dev: "
        "the last ones by name.",
    )

    def class_count(self, _: "Pack | None") -> int:
        """Returns the number of classes in a folder, and 1000 for an archive, whose classes are not known yet."""
        train = Path(self.path).expanduser() / "train"
        return len(contents(train)[1]) if train.is_dir() else ASSUMED_CLASSES


Data = Annotated[RenderedObjects | Cifar10 | ImageFolder, Field(discriminator="pack")]

Rule = Literal["refuse", "skip"]


class Faults(Section):
    """Handling of unusable files of an image folder: `refuse` raises an error, `skip` omits and counts them."""

    undecodable: Rule = Field("refuse", description="An image that cannot be decoded.")
    empty_class: Rule = Field("refuse", description="A class's folder without images of a format that is read.")
