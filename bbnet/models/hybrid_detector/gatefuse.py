"""GateFuse, the thesis' way to join a deformable convolution and an attention."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from bbnet.models.hybrid_detector.layers import Convolution

FLOOR = 0.05  # smallest weight of either kernel


class GateFuse(nn.Module):
    """w a + .7 o + d b of maps a (convolution) and b (attention), where o refines what both say.

    f = norm(1x1 of a, b and a - b) + .05 MLP(f). Depthwise 3x3 and 5x5 convolutions of f are mixed by a softmax per
    channel, from the means of f over places, with a floor of .05; a gate s per place, in [.02, .98] and at first .15,
    makes o = s mix + (1 - s) f. The learned w is in [.1, .8] and begins at .24, d per group in [.15, .85] at .63.

    Args:
        groups: number of groups of channels that have a d of their own.
    """

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.project = nn.Linear(3 * width, width)
        self.norm = nn.LayerNorm(width)
        self.expand, self.contract = nn.Linear(width, width), nn.Linear(width, width)
        self.near, self.far = (Convolution(width, width, kernel, groups=width) for kernel in (3, 5))
        self.choice = nn.Linear(width, 2 * width)
        self.place = nn.Linear(width, 1)
        self.of_convolution = nn.Parameter(torch.tensor([-1.386]))
        self.of_attention = nn.Parameter(torch.full((groups, 1), 0.780))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sets the gate of places; the other layers draw themselves."""
        nn.init.normal_(self.place.weight, std=0.01)
        nn.init.constant_(self.place.bias, -1.854)

    def forward(self, convolved: Tensor, attended: Tensor) -> Tensor:
        joined = self.norm(self.project(torch.cat([convolved, attended, convolved - attended], dim=-1)))
        joined = joined + 0.05 * self.contract(functional.gelu(self.expand(joined)))
        pooled = joined.mean((1, 2), keepdim=True).detach()
        near, far = (FLOOR + (1 - 2 * FLOOR) * self.choice(pooled).unflatten(-1, (2, -1)).softmax(-2)).unbind(-2)
        mixed = near * self.near(joined) + far * self.far(joined)
        at = 0.02 + 0.96 * self.place(joined).sigmoid()
        refined = at * mixed + (1 - at) * joined
        of_convolution = 0.1 + 0.7 * self.of_convolution.sigmoid()
        of_attention = 0.15 + 0.7 * self.of_attention.sigmoid()
        grouped = attended.unflatten(-1, (of_attention.shape[0], -1))
        return of_convolution * convolved + 0.7 * refined + (of_attention * grouped).flatten(-2)
