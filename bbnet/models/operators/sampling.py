"""Weighted sums of maps at any places, the core of all deformable operators."""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional


def weighted_samples(maps: Tensor, points: Tensor, weights: Tensor) -> Tensor:
    """Returns sum_k weights_k maps(points_k) [batch, Q, groups, channels], interpolated bilinearly, 0 outside.

    It is computed in the dtype of `points`, because places in half precision are whole pixels apart on large maps, and
    returned in that of `maps`.

    Args:
        maps: [batch, height, width, groups, channels].
        points: x and y [batch, Q, groups, K, 2] in pixels; 0 is the centre of the first pixel.
        weights: [batch, Q, groups, K].
    """
    batch, height, width, groups, channels = maps.shape
    _, queries, _, taps, _ = points.shape
    grid = (2 * points + 1) / extent(height, width, points.device, points.dtype) - 1
    grid = grid.transpose(1, 2).reshape(batch * groups, queries, taps, 2)
    stacked = maps.to(points.dtype).permute(0, 3, 4, 1, 2).reshape(batch * groups, channels, height, width)
    sampled = functional.grid_sample(stacked, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    weights = weights.to(points.dtype).transpose(1, 2).reshape(batch * groups, 1, queries, taps)
    summed = (sampled * weights).sum(-1)
    return summed.reshape(batch, groups, channels, queries).permute(0, 3, 1, 2).to(maps.dtype)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def extent(height: int, width: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Returns width and height as a tensor [2], which is kept, since making it on a GPU would wait for the CPU."""
    return torch.tensor([width, height], device=device, dtype=dtype)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def cell_centres(height: int, width: int, device: torch.device) -> Tensor:
    """Returns x and y of all pixels of a map [height * width, 2], row by row, in pixels, in float32."""
    rows = torch.arange(height, device=device, dtype=torch.float32)
    columns = torch.arange(width, device=device, dtype=torch.float32)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x, y], dim=-1).flatten(0, 1)
