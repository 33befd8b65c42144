"""Random augmentation of batches of images, on the device of the images."""

import math

import torch
from torch import Tensor

from bbnet.tasks.augmentation import recoloured, rotated
from bbnet.tasks.face.settings import Augmentation


def augmented(images: Tensor, how: Augmentation, generator: torch.Generator) -> Tensor:
    """Mirrors each image at random, rotates it, and changes its brightness, contrast, saturation and hue.

    Args:
        images: [batch, 3, height, width] with values from 0 to 255.
        generator: a generator on the device of the images.
    Returns: the images as float of the same shape.
    """
    draws = torch.rand(6, len(images), generator=generator, device=images.device)
    sides = 2 * draws[1:] - 1
    angles = math.radians(how.rotation) * sides[0]
    images = rotated(images.float(), angles, mirrored=draws[0] < 0.5)
    amounts = (how.brightness, how.contrast, how.saturation)
    factors = [1 + amount * side for amount, side in zip(amounts, sides[1:4], strict=True)]
    return recoloured(images, *factors, 2 * math.pi * how.hue * sides[4])
