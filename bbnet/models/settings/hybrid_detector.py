"""The sizes of the hybrid detector and the flags that its ablations switch."""

from math import prod
from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator

Kind = Literal["convolution", "depthwise", "deformable_convolution", "operator"]
Which = Literal["ffn", "wide"]
Width = Annotated[int, Field(ge=8, le=4096, multiple_of=4)]
SPAN = 16  # channels of a group of the deformable convolution


class Stage(BaseModel, extra="forbid", frozen=True):
    """A stage of the backbone: a convolution with the stride, if there is anything to change, then its blocks."""

    width: Width = Field(description="Channels; a multiple of 16 where a block deforms.")
    stride: Literal[1, 2] = Field(2, description="Factor by which the stage shrinks the maps.")
    blocks: tuple[Kind, ...] = Field((), description="What mixes places in each block; `operator` is that of the flag.")
    expansion: int = Field(2, ge=0, le=8, description="Hidden units per channel of the blocks' feed-forward; 0: none.")
    squeeze: bool = Field(False, description="Squeeze and excitation in each block.")
    split: bool = Field(False, description="Blocks mix places in half of the channels (cross-stage partial).")
    separable: bool = Field(False, description="The convolution with the stride is depthwise, then 1x1.")
    joined: bool = Field(False, description="Whether gatefuse joins two operators in the blocks.")


class Sizes(BaseModel, extra="forbid", frozen=True):
    """The sizes of all parts of the detector. The defaults are those of the embedded study."""

    stem: tuple[tuple[Width, Literal[1, 2]], ...] = Field(
        ((16, 2), (32, 2)), min_length=1, description="Channels and stride of each 3x3 convolution of the stem."
    )
    stages: tuple[Stage, ...] = Field(
        (
            Stage(width=64, blocks=("convolution", "convolution")),
            Stage(width=96, blocks=("depthwise", "operator"), joined=True),
        ),
        min_length=1,
        description="Stages of the backbone.",
    )
    levels: int = Field(2, ge=1, le=6, description="Number of stages, the last ones, whose maps the neck reads.")
    kernel: Literal[3, 5, 7, 9] = Field(5, description="Height and width of a neighbourhood.")
    head_width: int = Field(24, ge=4, le=128, description="Channels of a head of the attention in the backbone.")
    width: Width = Field(64, description="Channels of neck, encoder and decoder.")
    rounds: int = Field(1, ge=1, le=8, description="Rounds of the neck, each downwards and upwards.")
    encoder_layers: int = Field(1, ge=0, le=12, description="Layers of the encoder.")
    encoder_levels: int = Field(1, ge=1, le=6, description="Number of levels, the coarsest, that the encoder updates.")
    decoder_layers: int = Field(2, ge=1, le=12, description="Layers of the decoder.")
    heads: int = Field(4, ge=1, le=32, description="Heads of the attention in encoder and decoder.")
    points: int = Field(4, ge=1, le=16, description="Places per head and level at which deformable attention reads.")
    hidden: Width = Field(128, description="Hidden units of the feed-forward layers of encoder and decoder.")
    gated: bool = Field(False, description="SwiGLU in encoder and decoder, in place of GELU.")
    queries: int = Field(20, ge=1, le=2000, description="Number of boxes that the decoder predicts.")

    @model_validator(mode="after")
    def _fits(self) -> "Sizes":
        if self.levels > len(self.stages):
            raise ValueError(f"levels {self.levels} exceeds the {len(self.stages)} stages")
        if self.encoder_levels > self.levels:
            raise ValueError(f"encoder_levels {self.encoder_levels} exceeds levels {self.levels}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
        for number, stage in enumerate(self.stages, start=1):
            mixed = stage.width // 2 if stage.split else stage.width
            attends = "operator" in stage.blocks or (stage.joined and "deformable_convolution" in stage.blocks)
            if attends and mixed % self.head_width:
                raise ValueError(f"width {mixed} of stage {number} must be a multiple of head_width {self.head_width}")
            if {"operator", "deformable_convolution"} & {*stage.blocks} and mixed % SPAN:
                raise ValueError(f"width {mixed} of stage {number} must be a multiple of {SPAN}, as its blocks deform")
        return self


SMALL = Sizes()
THESIS = Sizes(
    stem=((64, 2), (64, 1), (128, 2)),
    stages=(
        Stage(
            width=128,
            stride=1,
            blocks=("convolution", "convolution", "deformable_convolution", "deformable_convolution"),
            expansion=0,
            squeeze=True,
        ),
        Stage(width=256, blocks=("deformable_convolution",) * 4, expansion=0, split=True, separable=True, joined=True),
        Stage(width=640, blocks=("operator",) * 4, expansion=4, separable=True),
        Stage(width=768, separable=True),
    ),
    levels=4,
    kernel=7,
    head_width=64,
    width=320,
    rounds=2,
    encoder_layers=2,
    encoder_levels=4,
    decoder_layers=4,
    heads=10,
    hidden=768,
    gated=True,
    queries=200,
)
NAMED = {"small": SMALL, "thesis": THESIS}


class HybridBackbone(BaseModel, extra="forbid", frozen=True):
    """Settings of the backbone of the hybrid detector. Every flag is off by default."""

    sizes: Literal["small", "thesis"] | Sizes = Field("small", description="A published set of sizes, or all of them.")
    operator: Literal["neighbourhood", "deformable_attention", "deformable_convolution", "depthwise"] = Field(
        "neighbourhood",
        description="What mixes places in the coarse blocks. deformable_attention replaces every second one, the last "
        "included, by true deformable attention, as DAT++ alternates them.",
    )
    tap_scale: float = Field(
        1.0, gt=0, le=4, description="Distance of the taps of deformable convolutions in pixels; the thesis has 0.1."
    )
    gatefuse: bool = Field(
        False, description="Attention and deformable convolution side by side, joined by the thesis' gate."
    )
    cross_scale_injection: bool = Field(False, description="Each stage also reads the maps of the one before it.")
    gradient_injection: bool = Field(
        False, description="The thesis' injection: a term of the maps of the stage before, in training alone."
    )

    @model_validator(mode="after")
    def _joins(self) -> "HybridBackbone":
        if self.gatefuse and self.operator == "depthwise":
            raise ValueError("gatefuse joins an attention and a deformable convolution, not operator depthwise")
        return self

    @property
    def size(self) -> Sizes:
        """The sizes, also where they are named."""
        return NAMED[self.sizes] if isinstance(self.sizes, str) else self.sizes

    def backbone_fans(self, which: Which) -> set[int]:
        """Returns the fans that occur among the slabs of the backbone, on any side."""
        with_blocks = [stage for stage in self.size.stages if stage.blocks]
        found = {stage.width for stage in with_blocks if stage.expansion}
        return found | {stage.width for stage in with_blocks if stage.split and which == "wide"}


class HybridDetector(HybridBackbone):
    """Settings of the hybrid detector. Every flag is off by default, except that training has denoising."""

    reversible_branch: bool = Field(
        False, description="PGI of YOLOv9: a reversible branch with a loss of its own, in training alone."
    )
    denoising: int = Field(
        2, ge=0, le=16, description="Groups of noised boxes that training also reconstructs; 0: no denoising."
    )
    iou_scoring: bool = Field(False, description="A head that predicts each box's IoU, which multiplies its score.")

    def fans(self, which: Which) -> set[int]:
        """Returns the fans that occur among the slabs of the network, on any side."""
        sizes = self.size
        found = self.backbone_fans(which) | {sizes.width}
        return found | {stage.width for stage in sizes.stages[-sizes.levels :] if which == "wide"}


def strides(sizes: Sizes) -> list[int]:
    """Returns the stride of the maps of each stage, in pixels of the image."""
    stride = prod(step for _, step in sizes.stem)
    return [stride := stride * stage.stride for stage in sizes.stages]
