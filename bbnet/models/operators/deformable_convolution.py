"""DCNv4 (Xiong et al. 2024, arXiv 2401.06197): a weighted sum of nine places that depend on the input."""

import torch
from torch import Tensor, nn

from bbnet.models.operators.sampling import cell_centres, weighted_samples
from bbnet.models.settings.hybrid_detector import SPAN

TAPS = 9


def deformable_convolution(maps: Tensor, offsets: Tensor, masks: Tensor, scale: float = 1.0) -> Tensor:
    """Returns y(p) = sum_k m_k(p) x(p + scale (tap_k + offset_k(p))), [batch, height, width, groups, channels].

    The taps are those of a 3x3 kernel, column by column: (-1, -1), (-1, 0), (-1, 1), (0, -1), ... in x and y. Values
    between pixels are interpolated, those outside are 0. `scale` multiplies taps and offsets, as in the authors' code.

    Args:
        maps: [batch, height, width, groups, channels].
        offsets: x and y [batch, height, width, groups, 9, 2] in pixels.
        masks: [batch, height, width, groups, 9], of any sign and sum.
    """
    batch, height, width, groups, _ = maps.shape
    taps = cell_centres(3, 3, offsets.device).flip(1) - 1
    points = cell_centres(height, width, offsets.device)[:, None, None] + scale * (taps + offsets.flatten(1, 2))
    return weighted_samples(maps, points, masks.flatten(1, 2)).reshape(batch, height, width, groups, -1)


class DeformableConvolution(nn.Module):
    """DCNv4 with its pointwise layers: one linear layer predicts offsets and masks of all groups of 16 channels.

    Offsets begin at 0, and masks near 1/9, so that the layer begins near the mean of 3x3 places.

    Args:
        width: channels of the maps [batch, height, width, channels]; a multiple of 16.
        scale: distance of the taps in pixels.
    """

    def __init__(self, width: int, scale: float = 1.0) -> None:
        super().__init__()
        self.groups = width // SPAN
        self.scale = scale
        self.value = nn.Linear(width, width)
        self.offset_mask = nn.Linear(width, 3 * TAPS * self.groups)
        self.output = nn.Linear(width, width)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Sets the layer of offsets and masks; the pointwise layers draw themselves."""
        weight = self.offset_mask.weight.view(self.groups, 3 * TAPS, -1)
        bias = self.offset_mask.bias.view(self.groups, 3 * TAPS)
        weight[:, : 2 * TAPS] = 0.0
        nn.init.normal_(weight[:, 2 * TAPS :], std=0.02)
        bias[:, : 2 * TAPS] = 0.0
        bias[:, 2 * TAPS :] = 1 / TAPS

    def forward(self, maps: Tensor) -> Tensor:
        predicted = self.offset_mask(maps).unflatten(-1, (self.groups, 3 * TAPS))
        # Places need more than half precision, also under autocast.
        predicted = predicted.to(torch.promote_types(predicted.dtype, torch.float32))
        offsets, masks = predicted[..., : 2 * TAPS].unflatten(-1, (TAPS, 2)), predicted[..., 2 * TAPS :]
        values = self.value(maps).unflatten(-1, (self.groups, SPAN))
        return self.output(deformable_convolution(values, offsets, masks, self.scale).flatten(3))
