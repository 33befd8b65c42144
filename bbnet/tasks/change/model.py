"""FC-Siam-conc, a siamese U-Net whose decoder concatenates the skips of both dates, as in the released notebook.

Unlike the network of Daudt et al. (2018), it has two convolutions instead of three at levels 3 and 4, no dropout, the
maps of both dates at the bottleneck, and a 1x1 convolution as head.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from bbnet.sparsity.slab import Slab


class Block(nn.Module):
    """Two 3x3 convolutions, each followed by batch norm and ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)

    def forward(self, maps: Tensor) -> Tensor:
        maps = functional.relu(self.norm1(self.conv1(maps)))
        return functional.relu(self.norm2(self.conv2(maps)))


class Level(nn.Module):
    """A decoder level: doubles the size of the maps, concatenates the skips of both dates and applies a block."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(inputs, outputs, 2, stride=2)
        self.block = Block(3 * outputs, outputs)

    def forward(self, maps: Tensor, skips: Sequence[Tensor]) -> Tensor:
        return self.block(torch.cat([self.up(maps), *skips], dim=1))


class FCSiamConc(nn.Module):
    """Predicts the logits of change between two dates.

    Args:
        widths: channels of each level.
        mean, sd: mean and standard deviation of the training pixels, 0 to 255, per channel.
    """

    def __init__(self, widths: Sequence[int], mean: Sequence[float], sd: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).reshape(3, 1, 1), persistent=False)
        self.register_buffer("sd", torch.tensor(sd).reshape(3, 1, 1), persistent=False)
        self.encoder = nn.ModuleList(Block(inputs, outputs) for inputs, outputs in pairwise([3, *widths]))
        upwards = [2 * widths[-1], *widths[::-1]]
        self.decoder = nn.ModuleList(Level(inputs, outputs) for inputs, outputs in pairwise(upwards))
        self.head = nn.Conv2d(widths[0], 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images [batch, 2, 3, height, width] of pixels 0 to 255 to logits [batch, height, width]."""
        maps = (images.flatten(0, 1) - self.mean) / self.sd
        skips = []
        for block in self.encoder:
            maps = block(maps)
            skips.append(maps.unflatten(0, (-1, 2)).unbind(1))
            maps = functional.max_pool2d(maps, 2)
        maps = maps.unflatten(0, (-1, 2)).flatten(1, 2)
        for level, dates in zip(self.decoder, reversed(skips), strict=True):
            maps = level(maps, dates)
        return self.head(maps).squeeze(1)


def slabs(model: FCSiamConc, which: str, side: str) -> list[Slab]:
    """Returns the slabs of the 3x3 convolutions that may be sparsified.

    `paper` selects one per encoder block: the first on side `in`, which masks the inputs of its channels; the second on
    side `out`, which masks the outputs of the first one's channels. `wide` selects all of encoder and decoder, on side
    `out` except the one that reads pixels. Side `both` masks the first of every block on `in`, the second on `out`.
    """
    # By block, the names of the units that it reads: those of the previous level, none for the first.
    blocks: dict[str, tuple[str, ...]] = {"encoder.0": ()}
    blocks |= {f"encoder.{depth}": (f"encoder.{depth - 1}.norm2",) for depth in range(1, len(model.encoder))}
    if which == "wide":
        deepest = len(model.encoder) - 1
        blocks |= {
            f"decoder.{step}.block": (f"decoder.{step}.up", *2 * (f"encoder.{deepest - step}.norm2",))
            for step in range(len(model.decoder))
        }
    first_in = [Slab(f"{block}.conv1", "in", f"{block}.norm1", normalised=True) for block in blocks]
    second_in = [Slab(f"{block}.conv2", "in", f"{block}.norm2", normalised=True) for block in blocks]
    first_out = [Slab(f"{block}.conv1", "out", inputs) for block, inputs in blocks.items() if inputs]
    second_out = [Slab(f"{block}.conv2", "out", f"{block}.norm1") for block in blocks]
    if side == "both":
        return first_in + second_out
    if which == "paper":
        return first_in if side == "in" else second_out
    return first_in + second_in if side == "in" else first_out + second_out
