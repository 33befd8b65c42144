"""Boxes: centre x, centre y, width, height, in shares of the image, and what losses and refinement need of them."""

import torch
from torch import Tensor

SMALLEST = 1e-5  # distance to 0 and 1 that logits of shares keep


def corners(boxes: Tensor) -> Tensor:
    """Returns left, top, right and bottom [..., 4] of boxes [..., 4]."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def logit(shares: Tensor) -> Tensor:
    """Returns the inverse of the sigmoid, for shares at least 1e-5 from 0 and 1."""
    return torch.logit(shares, eps=SMALLEST)


def overlaps(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Returns IoU and generalised IoU (Rezatofighi et al. 2019, algorithm 1) [...] of boxes [..., 4], broadcast.

    Boxes must not have negative sizes. Two boxes without area have an IoU of 0, and a generalised one of 0 where they
    are equal.
    """
    one, other = corners(first), corners(second)
    shared = (torch.minimum(one[..., 2:], other[..., 2:]) - torch.maximum(one[..., :2], other[..., :2])).clamp(min=0)
    around = torch.maximum(one[..., 2:], other[..., 2:]) - torch.minimum(one[..., :2], other[..., :2])
    intersection, hull = shared.prod(-1), around.prod(-1)
    union = first[..., 2:].prod(-1) + second[..., 2:].prod(-1) - intersection
    tiny = torch.finfo(union.dtype).tiny
    iou = intersection / union.clamp(min=tiny)
    return iou, iou - (hull - union) / hull.clamp(min=tiny)
