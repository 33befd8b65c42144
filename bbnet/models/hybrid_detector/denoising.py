"""Denoising: noised objects as further queries of the decoder, in training (Li et al. 2022, Zhang et al. 2023).

Each group has its own noise. Its first half has every object with little noise, which the decoder is to remove; its
second half has every object with more noise, which is to become background.
"""

import torch
from torch import Tensor, nn

from bbnet.models.hybrid_detector.boxes import corners
from bbnet.models.hybrid_detector.outputs import Targets

NOISE = 0.4  # largest shift of a side with little noise, in halves of the box; with more noise it is .4 to .8
FLIPPED = 0.2  # share of the labels that are drawn anew


class DenoisingQueries(nn.Module):
    """Makes queries from objects, for a decoder of `width` channels."""

    def __init__(self, classes: int, width: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.label = nn.Embedding(classes, width)

    def forward(self, targets: Targets) -> tuple[Tensor, Tensor]:
        """Returns states [batch, groups * 2 * M, width] and boxes [batch, groups * 2 * M, 4]."""
        labels = targets.labels.clamp(min=0).repeat(1, 2 * self.groups)
        others = torch.randint_like(labels, self.label.num_embeddings)
        labels = torch.where(torch.rand(labels.shape, device=labels.device) < FLIPPED, others, labels)
        return self.label(labels), noised(targets.boxes, self.groups)


def noised(boxes: Tensor, groups: int) -> Tensor:
    """Returns boxes [batch, groups * 2 * M, 4] whose four sides moved at random, clipped to the image.

    A side moves by up to .4 half widths or heights in the first half of a group, and by .4 to .8 in the second, in
    either direction. So a box keeps at least a fifth of its size. The noise of all boxes is independent.
    """
    batch, objects, _ = boxes.shape
    shifts = NOISE * torch.rand(batch, groups, 2, objects, 4, device=boxes.device, dtype=boxes.dtype)
    shifts[:, :, 1] += NOISE
    shifts *= torch.randint(2, shifts.shape, device=boxes.device) * 2 - 1
    sides = corners(boxes)[:, None, None] + shifts * (boxes[..., 2:] / 2).repeat(1, 1, 2)[:, None, None]
    low, high = sides.clamp(0, 1).flatten(1, 3).chunk(2, -1)
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def group_mask(labels: Tensor, groups: int, queries: int) -> Tensor:
    """Returns who may see whom, bool [batch, 1, T, T], for T = groups * 2 * M noised objects, then `queries` others.

    Noised objects see their own group and all others; the others see only each other. Nobody sees padding, but
    padding sees itself, since a softmax over nothing is not a number.
    """
    batch, objects = labels.shape
    group = torch.arange(groups, device=labels.device).repeat_interleave(2 * objects)
    group = torch.cat([group, group.new_full((queries,), groups)])
    allowed = (group[:, None] == group) | (group == groups)
    present = torch.cat([(labels >= 0).repeat(1, 2 * groups), labels.new_ones(batch, queries).bool()], dim=1)
    itself = torch.eye(len(group), dtype=torch.bool, device=labels.device)
    return ((allowed & present[:, None]) | itself)[:, None]
