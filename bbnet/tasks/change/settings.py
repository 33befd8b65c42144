"""Settings of the change-detection task."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from bbnet.tasks.settings import (
    Estimate,
    ModelLabel,
    NetworkSettings,
    PublishedPack,
    Section,
    SharedBatchTraining,
    TaskSettings,
)

if TYPE_CHECKING:
    from bbnet.data.packs import Pack


class AerialScenes(Section):
    """The embedded pack: rendered pairs of aerial scenes in the layout of LEVIR-CD."""

    pack: Literal["aerial_scenes"] = Field(description="Rendered locally, without any download.")
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of the generator; independent of the seeds of the study.")
    size: int = Field(ge=32, le=1024, description="Height and width of a scene in pixels.")
    train: int = Field(ge=1, le=100_000, description="Number of training pairs.")
    val: int = Field(ge=1, le=100_000, description="Number of validation pairs.")
    test: int = Field(ge=1, le=100_000, description="Number of test pairs.")
    unchanged: float = Field(0.2, ge=0, lt=1, description="Share of the pairs without any change.")


class LevirCD(PublishedPack):
    """LEVIR-CD, or any pack in its layout: {train,val,test}/{A,B,label}/name."""

    pack: Literal["levir_cd"]


Data = Annotated[AerialScenes | LevirCD, Field(discriminator="pack")]


class FCSiamConc(NetworkSettings):
    """The notebook's variant of FC-Siam-conc (Daudt et al. 2018): batch norm, 2x2 transposed convolutions."""

    widths: list[Annotated[int, Field(ge=1, le=4096)]] = Field(
        min_length=1, max_length=8, description="Channels of each level; 32, 64, 128, 256 in the released notebook."
    )


class Settings(TaskSettings):
    """Change detection between two aerial images."""

    data: Data = Field(description="Source of the image pairs.")
    tile: int = Field(ge=16, le=4096, description="Height and width of the tiles into which images are cut.")
    slabs: Literal["paper", "wide"] = Field("wide", description="One convolution per encoder block, or all 3x3 ones.")
    models: dict[ModelLabel, FCSiamConc] = Field(min_length=1, description="Settings of each model, by label.")
    training: SharedBatchTraining

    def estimate(self, pack: "Pack | None") -> Estimate:
        """Returns the size of the data: exact for the embedded pack, otherwise from the counts of `pack`."""
        if isinstance(self.data, AerialScenes):
            size, pairs = self.data.size, {split: getattr(self.data, split) for split in ("train", "val", "test")}
        else:
            size, pairs = pack.image_size, pack.counts
        tiles = pairs["train"] * (size // self.tile) ** 2
        return Estimate(tiles // self.training.batch_size, 7 * size**2 * sum(pairs.values()))

    def prepared_steps(self, _: Path, index: Mapping[str, Any]) -> int:
        """Returns the steps per epoch with the prepared data that `index` describes."""
        return index["splits"]["train"]["starts"][-1] // self.training.batch_size

    def fans(self) -> dict[str, set[int]]:
        """Returns the fans that occur among the slabs of each model, on any side."""
        joined = 3 if self.slabs == "wide" else 1
        return {
            label: {factor * width for width in model.widths for factor in (1, joined)}
            for label, model in self.models.items()
        }

    @model_validator(mode="after")
    def _fits(self) -> "Settings":
        for label, model in self.models.items():
            factor = 2 ** len(model.widths)
            if self.tile % factor:
                raise ValueError(f"tile {self.tile} must be a multiple of {factor} for the levels of model {label}")
        if isinstance(self.data, AerialScenes):
            if self.data.size % self.tile:
                raise ValueError(f"data.size {self.data.size} must be a multiple of tile {self.tile}")
            if not self.steps_per_epoch():
                tiles = self.data.train * (self.data.size // self.tile) ** 2
                raise ValueError(f"training.batch_size {self.training.batch_size} exceeds the {tiles} training tiles")
        return self
