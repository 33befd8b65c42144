"""Changes of batches of images, on the device of the images, by amounts that are given for each image."""

import math
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from bbnet.tasks.settings import ColourJitter

LUMA = (0.299, 0.587, 0.114)
# From RGB to YIQ (NTSC), that is luma and two chroma axes, in whose plane the hue is an angle.
TO_YIQ = ((0.299, 0.587, 0.114), (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135))


def rotated(images: Tensor, angles: Tensor, mirrored: Tensor) -> Tensor:
    """Mirrors the images where `mirrored` [batch], then rotates them counter-clockwise by `angles` [batch] in radians.

    Square images [batch, 3, size, size] are rotated about the centre with bilinear interpolation; new area is black.
    """
    size = images.shape[-1]
    cos, sin = (each.reshape(-1, 1, 1) for each in (torch.cos(angles), torch.sin(angles)))
    flip = torch.where(mirrored, -1.0, 1.0).reshape(-1, 1, 1)
    across = (2 * torch.arange(size, device=images.device) + 1) / size - 1
    down = across[:, None]
    # The sampling grid is computed here because torch's affine_grid takes longer than the sampling itself.
    grid = images.new_empty(len(images), size, size, 2)
    torch.sub(flip * cos * across, flip * sin * down, out=grid[..., 0])
    torch.add(sin * across, cos * down, out=grid[..., 1])
    return functional.grid_sample(images, grid, align_corners=False)


def recoloured(images: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor) -> Tensor:
    """Changes the colours of images [batch, 3, height, width] of 0 to 255; the result is clamped.

    `brightness`, `contrast` and `saturation` [batch] are factors of the distance from black, the image's mean grey and
    each pixel's grey; `hue` [batch] is the rotation of the chroma in radians.
    """
    brightness, contrast, saturation, hue = (each.reshape(-1, 1, 1) for each in (brightness, contrast, saturation, hue))
    luma, to_yiq, from_yiq = _colour_axes(images.device)
    eye = torch.eye(3, device=images.device)
    turn = torch.zeros(len(images), 3, 3, device=images.device)
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = torch.cos(hue).flatten()
    turn[:, 1, 2], turn[:, 2, 1] = -torch.sin(hue).flatten(), torch.sin(hue).flatten()
    to_grey = luma.expand(3, 3)
    colours = from_yiq @ turn @ to_yiq @ (saturation * eye + (1 - saturation) * to_grey)
    bright = (images * brightness[..., None]).clamp_(0, 255)
    grey = torch.einsum("nchw,c->n", bright, luma).reshape(-1, 1, 1) / bright[0, 0].numel()
    contrasted = torch.addcmul(((1 - contrast) * grey)[..., None], contrast[..., None], bright).clamp_(0, 255)
    return (colours @ contrasted.flatten(2)).unflatten(2, images.shape[2:]).clamp_(0, 255)


def colour_changes(images: Tensor, how: ColourJitter, generator: torch.Generator) -> list[Tensor]:
    """Draws the factors of brightness, contrast and saturation, and the rotation of the hue in radians."""
    sides = 2 * torch.rand(4, len(images), generator=generator, device=images.device) - 1
    amounts = (how.brightness, how.contrast, how.saturation)
    factors = [1 + amount * side for amount, side in zip(amounts, sides, strict=False)]
    return [*factors, 2 * math.pi * how.hue * sides[3]]


@cache
def _colour_axes(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Returns `LUMA`, `TO_YIQ` and its inverse. Cached because copying them to the device synchronises with a GPU."""
    to_yiq = torch.tensor(TO_YIQ)
    return torch.tensor(LUMA).to(device), to_yiq.to(device), torch.linalg.inv(to_yiq).to(device)
