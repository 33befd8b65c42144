"""The sizes of bottleneck ResNets (He et al. 2016)."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

EXPANSION = 4
Stage = tuple[int, int]  # the channels of its 3x3 convolutions, and its number of bottlenecks
PUBLISHED: dict[str, list[Stage]] = {
    "resnet50": [(64, 3), (128, 4), (256, 6), (512, 3)],
    "resnet101": [(64, 3), (128, 4), (256, 23), (512, 3)],
    "resnet152": [(64, 3), (128, 8), (256, 36), (512, 3)],
}
Widths = Annotated[list[Annotated[int, Field(ge=1, le=4096)]], Field(min_length=1, max_length=6)]
Blocks = list[Annotated[int, Field(ge=1, le=100)]]


def paired(widths: Sequence[int], blocks: Sequence[int]) -> list[Stage]:
    """Returns the stages of these widths and numbers of bottlenecks; raises ValueError if their lengths differ."""
    if len(widths) != len(blocks):
        raise ValueError(f"blocks has {len(blocks)} stages, but widths has {len(widths)}")
    return list(zip(widths, blocks, strict=True))


def fans(stages: Sequence[Stage], which: Literal["paper", "wide"], inputs: int | None = None) -> set[int]:
    """Returns the fans that occur among the slabs of the stages, on any side.

    Args:
        inputs: channels that the first stage reads; by default as many as its width, as behind a stem.
    """
    found: set[int] = set()
    inputs = stages[0][0] if inputs is None else inputs
    for width, blocks in stages:
        outputs = EXPANSION * width
        found |= {inputs, width} | ({outputs} if blocks > 1 or which == "wide" else set())
        inputs = outputs
    return found
