"""Random changes of batches of images together with their boxes, on the device of the images."""

import math
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from bbnet.data.image_folders import GREY
from bbnet.tasks.augmentation import colour_changes, recoloured
from bbnet.tasks.detection.data.batches import Scenes
from bbnet.tasks.detection.data.prepare import PADDING
from bbnet.tasks.detection.settings import Augmentation

LEAST_LEFT = 0.3  # share of the area of an object below which it is removed
LEAST_SIDE = 1.0  # pixel, alike


def augmented(batch: Scenes, how: Augmentation, generator: torch.Generator) -> Scenes:
    """Returns random variants of the images, as float, with their boxes.

    Args:
        generator: a generator on the device of the images.
    """
    images = batch.images.float()
    device, count = images.device, len(images)
    mirror, zoom, *shifts = torch.rand(4, count, generator=generator, device=device)
    mirrored = (mirror < 0.5) if how.flip else torch.zeros_like(mirror, dtype=torch.bool)
    low, high = map(math.log, how.zoom)
    zooms = (low + (high - low) * zoom).exp()
    moves = how.shift * (2 * torch.stack(shifts, dim=1) - 1)
    found = placed(Scenes(images, batch.boxes, batch.labels), mirrored, zooms, moves)
    if how.colour is None:
        return found
    colours = colour_changes(images, how.colour, generator)
    return replace(found, images=recoloured(found.images, *colours))


def placed(batch: Scenes, mirrored: Tensor, zooms: Tensor, moves: Tensor) -> Scenes:
    """Mirrors the images where `mirrored`, then scales them about the centre, then moves them; new area is grey.

    Boxes are clipped to the image. An object of which less than 30 % of the area is left, or less than a pixel of a
    side, is removed: its label becomes -1.

    Args:
        batch: images as float.
        mirrored: bool [batch].
        zooms: [batch], factors of the size.
        moves: [batch, 2], right and down, in shares of the image.
    """
    sides = torch.where(mirrored, -1.0, 1.0)
    factors = torch.stack([sides * zooms, zooms], dim=1)
    return Scenes(_sampled(batch.images, factors, moves), *_moved(batch, factors, moves))


def _sampled(images: Tensor, factors: Tensor, moves: Tensor) -> Tensor:
    """Returns images whose point at c is what was at (c - moves) / factors, from the centre, bilinearly."""
    size = images.shape[-1]
    places = (2 * torch.arange(size, device=images.device) + 1) / size - 1
    across, down = ((places - 2 * moves[:, axis, None]) / factors[:, axis, None] for axis in (0, 1))
    grid = torch.stack(torch.broadcast_tensors(across[:, None], down[:, :, None]), dim=-1)
    return functional.grid_sample(images - GREY, grid, align_corners=False) + GREY


def _moved(batch: Scenes, factors: Tensor, moves: Tensor) -> tuple[Tensor, Tensor]:
    """Returns boxes and labels of the images that `_sampled` returns."""
    centre = (batch.boxes[..., :2] - 0.5) * factors[:, None] + 0.5 + moves[:, None]
    lengths = batch.boxes[..., 2:] * factors[:, None].abs()
    first, last = (centre - lengths / 2).clamp(0, 1), (centre + lengths / 2).clamp(0, 1)
    left = last - first
    stays = (left.prod(-1) >= LEAST_LEFT * lengths.prod(-1)) & (left.amin(-1) * batch.images.shape[-1] >= LEAST_SIDE)
    boxes = torch.cat([(first + last) / 2, left], dim=-1)
    return boxes, torch.where(stays, batch.labels, PADDING)
