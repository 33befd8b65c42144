"""Settings of the data of the detection task. Imports no torch."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from bbnet.tasks.detection.data.classes import SCENES, VOC
from bbnet.tasks.settings import PublishedPack, Section

if TYPE_CHECKING:
    from bbnet.data.packs import Pack

Share = Annotated[float, Field(ge=0, lt=1)]
Rule = Literal["refuse", "skip"]


class RenderedScenes(Section):
    """The embedded pack: rendered scenes of one to four objects of seven classes, in the layout of VOC."""

    pack: Literal["rendered_scenes"] = Field(description="Rendered locally, without any download.")
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of the generator; independent of the seeds of the study.")
    size: int = Field(96, ge=32, le=1024, description="Longer edge of an image in pixels; the shorter one varies.")
    train: int = Field(ge=1, le=1_000_000, description="Training images, without those of dev.")
    val: int = Field(ge=1, le=1_000_000, description="Images of dev.")
    test: int = Field(ge=1, le=1_000_000, description="Test images.")
    difficult: Share = Field(0.08, description="Share of the objects that are small and marked as difficult.")
    empty: Share = Field(0.05, description="Share of the images that have no object.")

    @property
    def classes(self) -> tuple[str, ...]:
        return SCENES

    def images(self, _: "Pack | None") -> dict[str, int]:
        """Returns the number of images of train, val and test."""
        return {"train": self.train, "val": self.val, "test": self.test}

    def dev_count(self, _: int) -> int:
        return self.val


class Voc(PublishedPack):
    """PASCAL VOC: trainval of 2007 and 2012, test of 2007; or any pack in its layout with its classes."""

    pack: Literal["voc"]
    dev_share: float = Field(
        0.05, gt=0, lt=1, description="Share of trainval that forms dev: images evenly spaced in its lists."
    )

    @property
    def classes(self) -> tuple[str, ...]:
        return VOC

    def images(self, pack: "Pack") -> dict[str, int]:
        """Returns the number of images of train, val and test of the published pack."""
        listed = pack.counts["trainval2007"] + pack.counts["trainval2012"]
        dev = self.dev_count(listed)
        return {"train": listed - dev, "val": dev, "test": pack.counts["test2007"]}

    def dev_count(self, listed: int) -> int:
        """Returns how many of the listed images form dev: `dev_share` of them, rounded, and at least one."""
        return max(1, round(self.dev_share * listed))


Data = Annotated[RenderedScenes | Voc, Field(discriminator="pack")]


class Faults(Section):
    """Handling of what is unusable: `refuse` raises an error, `skip` omits and counts the images or objects."""

    missing_image: Rule = Field("refuse", description="A listed image that does not exist; skip: the image is omitted.")
    undecodable: Rule = Field("refuse", description="An image that cannot be decoded; skip: the image is omitted.")
    annotation: Rule = Field(
        "refuse",
        description="A missing or broken XML file, or one of an image of another size; skip: the image is omitted.",
    )
    unknown_class: Rule = Field("refuse", description="An object of another class; skip: the object is omitted.")
    empty_box: Rule = Field("refuse", description="A box without area; skip: the object is omitted.")
    outside_box: Rule = Field(
        "refuse",
        description="A box that leaves the image by more than a pixel; skip: the object is omitted. Other boxes are "
        "clipped to the image.",
    )
