"""Two flags of the thesis: what a stage also reads from the maps before it."""

import torch
from torch import Tensor, nn

from bbnet.models.hybrid_detector.layers import Convolution, MapNorm, resized

DROPPED = 0.1  # share of the images that skip the residual branch in training


class CrossScaleInjection(nn.Module):
    """maps + sigmoid(w) norm(resized(linear(source))), with w per channel; the sigmoid begins at .54."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.adapter = nn.Linear(inputs, width)
        self.norm = nn.LayerNorm(width)
        self.weight = nn.Parameter(torch.full((width,), 0.16))

    def forward(self, maps: Tensor, source: Tensor) -> Tensor:
        return maps + self.weight.sigmoid() * self.norm(resized(self.adapter(source), maps))


class GradientInjection(nn.Module):
    """The thesis' "programmable gradient injection": maps + drop(norm(grouped 3x3(maps)) + s g MLP(resized(adapter))).

    The last term is there in training mode alone, with s in [.2, .7], learned from .5, and g per channel from .5. So it
    is a skip that evaluation lacks, unlike the PGI of YOLOv9. `drop` drops the sum for a tenth of the images.
    """

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.grouped = Convolution(width, width, 3, groups=width // 4)
        self.norm = MapNorm(width)
        self.adapter = nn.Linear(inputs, width)
        self.expand = nn.Linear(width, width)
        self.contract = nn.Linear(width, width)
        self.strength = nn.Parameter(torch.tensor([0.4055]))  # .5 = .2 + .5 sigmoid
        self.gain = nn.Parameter(torch.full((width,), 0.5))

    def forward(self, maps: Tensor, source: Tensor) -> Tensor:
        branch = self.norm(self.grouped(maps))
        if not self.training:
            return maps + branch
        earlier = self.contract(nn.functional.gelu(self.expand(resized(self.adapter(source), maps))))
        branch = branch + (0.2 + 0.5 * self.strength.sigmoid()) * self.gain * earlier
        kept = torch.rand(len(maps), 1, 1, 1, device=maps.device) >= DROPPED
        return maps + branch * kept / (1 - DROPPED)
