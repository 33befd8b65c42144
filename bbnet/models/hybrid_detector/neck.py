"""The neck: maps of several levels are joined downwards, then upwards, as in BiFPN (Tan et al. 2020)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from bbnet.models.hybrid_detector.layers import Convolution, MapNorm, resized

GROUPS = 4  # of channels, with weights of their own
FLOOR = 0.02  # smallest weight of an input


class Fusion(nn.Module):
    """A weighted mean of maps, whose weights depend on place and group of channels, then a 3x3 convolution.

    The weights are softplus of a linear layer over all inputs, divided by their sum, and at least .02.
    """

    def __init__(self, width: int, inputs: int) -> None:
        super().__init__()
        self.weight = nn.Linear(inputs * width, inputs * GROUPS) if inputs > 1 else None
        self.convolution = Convolution(width, width, 3)
        self.norm = MapNorm(width)

    def reset_parameters(self) -> None:
        """Sets the weights of the inputs to be nearly equal; the convolution draws itself."""
        if self.weight is not None:
            nn.init.normal_(self.weight.weight, std=0.01)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        if self.weight is None:
            (mean,) = inputs
        else:
            weights = functional.softplus(self.weight(torch.cat(list(inputs), dim=-1))).unflatten(-1, (-1, GROUPS, 1))
            weights = weights / (weights.sum(-3, keepdim=True) + 1e-4)
            weights = FLOOR + (1 - len(inputs) * FLOOR) * weights
            grouped = torch.stack(list(inputs), dim=-2).unflatten(-1, (GROUPS, -1))
            mean = (weights * grouped).sum(-3).flatten(-2)
        return mean + self.norm(self.convolution(functional.silu(mean)))


class Round(nn.Module):
    """One round: from the coarsest level to the finest, then back. It has 2 levels - 1 fusions."""

    def __init__(self, width: int, levels: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(Fusion(width, 2 if level < levels - 1 else 1) for level in range(levels))
        self.up = nn.ModuleList(Fusion(width, 3) for _ in range(levels - 1))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps the maps of all levels, finest first, to maps of the same sizes."""
        downwards: list[Tensor] = []
        for own, fusion in zip(reversed(maps), reversed(self.down), strict=True):
            downwards.append(fusion([own, resized(downwards[-1], own)] if downwards else [own]))
        downwards.reverse()
        upwards = downwards[:1]
        for own, joined, fusion in zip(maps[1:], downwards[1:], self.up, strict=True):
            upwards.append(fusion([own, joined, resized(upwards[-1], own)]))
        return upwards


class Neck(nn.Module):
    """1x1 projections of the backbone's maps to one width, with norm and SiLU, and the rounds."""

    def __init__(self, inputs: Sequence[int], width: int, rounds: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Linear(channels, width) for channels in inputs)
        self.norm = nn.ModuleList(MapNorm(width) for _ in inputs)
        self.rounds = nn.Sequential(*(Round(width, len(inputs)) for _ in range(rounds)))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        layers = zip(maps, self.lateral, self.norm, strict=True)
        return self.rounds([functional.silu(norm(lateral(each))) for each, lateral, norm in layers])
