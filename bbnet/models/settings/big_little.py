"""The sizes of Big-Little networks (Chen et al., ICLR 2019, arXiv 1807.03848)."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from bbnet.models.settings.bottleneck_resnet import EXPANSION, Stage
from bbnet.models.settings.bottleneck_resnet import fans as fans_of_stacks

# As many bottlenecks as the authors' networks have, which are not those of the plain ResNet-101 and 152.
PUBLISHED: dict[str, list[Stage]] = {
    "bl_resnet50": [(64, 3), (128, 4), (256, 6), (512, 3)],
    "bl_resnet101": [(64, 4), (128, 8), (256, 18), (512, 3)],
    "bl_resnet152": [(64, 5), (128, 12), (256, 30), (512, 3)],
}
Divisor = Annotated[float, Field(ge=1, le=64)]
ALPHA = "The little branch has 1/alpha of the channels."
BETA = "The little branch has max(1, floor(L / beta) - 1) of the L bottlenecks of a stage."
Branch = Literal["stem", "big", "little", "fusion", "last"]


def narrowed(channels: int, alpha: float) -> int:
    """Returns the channels of the little branch where the big one has `channels`: 1/alpha, rounded, at least 1."""
    return max(1, round(channels / alpha))


def little_blocks(blocks: int, beta: float) -> int:
    """Returns the number of bottlenecks of the little branch of a stage of `blocks` bottlenecks."""
    return max(1, int(blocks // beta) - 1)


def check_stages(stages: Sequence[Stage]) -> None:
    """Raises ValueError if a stage that has branches has a single bottleneck, or if no stage has branches."""
    if len(stages) < 2:
        raise ValueError("a Big-Little network needs at least two stages, of which the last has no branches")
    for number, (_, blocks) in enumerate(stages[:-1], start=1):
        if blocks < 2:
            raise ValueError(
                f"stage {number} of a Big-Little network has {blocks} bottleneck; all stages but the last need two, "
                "because one follows the branches"
            )


def fans(
    stages: Sequence[Stage], alpha: float, beta: float, stem: Literal["imagenet", "small"], which: str
) -> set[int]:
    """Returns the fans that occur among the slabs of the network, on any side."""
    inputs = stages[0][0]
    found = {inputs, narrowed(inputs, alpha)} if (stem, which) == ("imagenet", "wide") else set()
    for width, blocks in stages[:-1]:
        outputs, little = EXPANSION * width, narrowed(width, alpha)
        stacks = (inputs, width, blocks - 1), (inputs, little, little_blocks(blocks, beta)), (outputs, width, 1)
        found |= set().union(*(fans_of_stacks([(own, number)], which, before) for before, own, number in stacks))
        inputs = outputs
    return found | fans_of_stacks(stages[-1:], which, inputs)


def branch_of(layer: str) -> Branch:
    """Returns the part of the network to which a layer belongs, by its dotted name.

    `little` contains the convolution that expands the little branch to the width of the big one, and `last` the stage
    without branches.
    """
    parts = layer.split(".")
    branches: dict[str, Branch] = {"stem": "stem", "big": "big", "little": "little", "expand": "little"}
    branches |= {"fusion": "fusion"}
    return next((branches[part] for part in parts if part in branches), "last")
