"""Programmable gradient information (Wang et al. 2024, arXiv 2402.13616): an auxiliary branch that loses nothing.

The branch keeps the whole image: pixels move to channels where the maps shrink, and additive couplings (Gomez et al.
2017) can be inverted. It reads the backbone's maps of every level and predicts boxes from all levels together, so the
backbone gets gradients that were computed from undiminished information. Evaluation neither calls nor needs it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from bbnet.models.hybrid_detector.encoder import Proposals
from bbnet.models.hybrid_detector.layers import Convolution, resized
from bbnet.models.hybrid_detector.outputs import Predictions


class Coupling(nn.Module):
    """y1 = x1 + F(x2) + maps' projection; y2 = x2 + G(y1): the inputs follow from outputs and maps."""

    def __init__(self, half: int, maps: int, width: int) -> None:
        super().__init__()
        self.first, self.second = _Change(half, width), _Change(half, width)
        self.read = nn.Linear(maps, half)

    def forward(self, halves: Tensor, maps: Tensor) -> Tensor:
        """Maps both halves [batch, height, width, 2 * half], and the backbone's maps, to halves of the same shape."""
        first, second = halves.chunk(2, -1)
        first = first + self.first(second) + self.read(maps)
        return torch.cat([first, second + self.second(first)], dim=-1)

    def inverse(self, halves: Tensor, maps: Tensor) -> Tensor:
        """Returns the inputs of `forward`, up to rounding."""
        first, second = halves.chunk(2, -1)
        second = second - self.second(first)
        return torch.cat([first - self.first(second) - self.read(maps), second], dim=-1)


class _Change(nn.Module):
    """A norm, a 1x1 layer, a depthwise convolution, GELU and a 1x1 layer."""

    def __init__(self, half: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(half)
        self.reduce = nn.Linear(half, width)
        self.local = Convolution(width, width, 3, groups=width)
        self.expand = nn.Linear(width, half)

    def forward(self, half: Tensor) -> Tensor:
        return self.expand(functional.gelu(self.local(self.reduce(self.norm(half)))))


class ReversibleBranch(nn.Module):
    """A coupling for each level, and proposals from the tokens of all levels.

    Args:
        strides: of the maps of each level, in pixels of the image, each twice the one before or equal to it.
        channels: of the maps of each level.
        width, classes, queries, rated: as of the detector's own proposals.
    """

    def __init__(
        self, strides: Sequence[int], channels: Sequence[int], width: int, classes: int, queries: int, rated: bool
    ) -> None:
        super().__init__()
        self.strides = list(strides)
        halves = [3 * stride**2 // 2 for stride in strides]
        self.couplings = nn.ModuleList(Coupling(half, maps, width) for half, maps in zip(halves, channels, strict=True))
        self.project = nn.ModuleList(nn.Linear(2 * half, width) for half in halves)
        self.proposals = Proposals(width, classes, queries, rated)

    def forward(self, images: Tensor, maps: Sequence[Tensor]) -> Predictions:
        """Returns predictions from images [batch, 3, height, width] and the backbone's maps, finest first."""
        coarsest = self.strides[-1]
        height, width = images.shape[2:]
        halves = functional.pad(images, (0, -width % coarsest, 0, -height % coarsest)).permute(0, 2, 3, 1)
        tokens, before = [], 1
        for stride, each, coupling, project in zip(self.strides, maps, self.couplings, self.project, strict=True):
            halves = unshuffled(halves, stride // before)
            halves = coupling(halves, resized(each, halves))
            tokens.append(project(halves))
            before = stride
        return self.proposals(tokens).all


def unshuffled(maps: Tensor, factor: int) -> Tensor:
    """Moves factor x factor pixels of maps [batch, height, width, channels] into channels."""
    return functional.pixel_unshuffle(maps.permute(0, 3, 1, 2), factor).permute(0, 2, 3, 1)
