"""Random augmentation of batches of images, on the device of the images."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from bbnet.tasks.augmentation import colour_changes, recoloured
from bbnet.tasks.batches import Batch, LabelledImages
from bbnet.tasks.classification.data.batches import Batch as ImageBatch
from bbnet.tasks.classification.settings import Augmentation, Erasing, PadCrop, ResizedCrop

CROP_ASPECTS, ERASED_ASPECTS = (3 / 4, 4 / 3), (0.3, 3.3)  # width / height


@dataclass(frozen=True)
class MixedImages(Batch):
    """Images with two labels each: `labels` with the share `shares`, and `others` with the rest, all [batch]."""

    images: Tensor
    labels: Tensor
    others: Tensor
    shares: Tensor


@dataclass(frozen=True)
class Boxes:
    """One rectangle of whole pixels for each image of a batch: int64 [batch] each."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor


def augmented(batch: ImageBatch, how: Augmentation, generator: torch.Generator) -> LabelledImages | MixedImages:
    """Returns random variants of the images, as float.

    Args:
        batch: square images [batch, 3, size, size] with values from 0 to 255, and labels [batch]. Only a crop of kind
            `resized` can change their size to `input_size`.
        generator: a generator on the device of the images.
    """
    images = batch.images.float()
    if how.flip:
        images = torch.where(_uniform(images, generator)[:, None, None, None] < 0.5, images.flip(-1), images)
    if isinstance(how.crop, PadCrop):
        images = moved(images, *_shifts(images, how.crop.pixels, generator))
    elif how.crop is not None:
        images = resized(images, _crops(images, how.crop, generator), batch.input_size or images.shape[-1])
    if how.colour is not None:
        images = recoloured(images, *colour_changes(images, how.colour, generator))
    if how.erasing is not None:
        images = _erased_at_random(images, how.erasing, generator)
    if how.mixup is None:
        return LabelledImages(images, batch.labels)
    partners = torch.randperm(len(images), generator=generator, device=images.device)
    return mixed(images, batch.labels, partners, _beta(how.mixup, images, generator))


def moved(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Moves each image by whole pixels, int64 [batch], negative ones up and left; new area is 0."""
    count, channels, height, width = images.shape
    rows = torch.arange(height, device=images.device) - down[:, None]
    columns = torch.arange(width, device=images.device) - right[:, None]
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None]
    source = rows.clamp(0, height - 1)[:, :, None] * width + columns.clamp(0, width - 1)[:, None]
    source = source.reshape(count, 1, -1).expand(-1, channels, -1)
    return images.flatten(2).gather(2, source).unflatten(2, (height, width)) * inside[:, None]


def resized(images: Tensor, boxes: Boxes, size: int) -> Tensor:
    """Scales the part of each image in its box to size x size pixels, bilinearly, as if nothing were around it."""
    places = []
    middles = (torch.arange(size, device=images.device) + 0.5) / size
    for pixels, start, length in zip(
        images.shape[-2:], (boxes.top, boxes.left), (boxes.height, boxes.width), strict=True
    ):
        place = start[:, None] + (middles * length[:, None]).clamp(min=0.5).minimum(length[:, None] - 0.5)
        places.append(2 * place / pixels - 1)
    rows, columns = places
    grid = torch.stack(torch.broadcast_tensors(columns[:, None], rows[:, :, None]), dim=-1)
    return functional.grid_sample(images, grid, align_corners=False)


def erased(images: Tensor, boxes: Boxes, fill: Tensor) -> Tensor:
    """Replaces the pixels in each image's box by those of `fill`, of the shape of the images."""
    row, column = (torch.arange(pixels, device=images.device) for pixels in images.shape[-2:])
    rows = (row >= boxes.top[:, None]) & (row < (boxes.top + boxes.height)[:, None])
    columns = (column >= boxes.left[:, None]) & (column < (boxes.left + boxes.width)[:, None])
    return torch.where((rows[:, :, None] & columns[:, None])[:, None], fill, images)


def mixed(images: Tensor, labels: Tensor, partners: Tensor, shares: Tensor) -> MixedImages:
    """Mixes each image, with its share [batch], with its partner, int64 [batch], an image of the same batch."""
    own = shares[:, None, None, None]
    return MixedImages(own * images + (1 - own) * images[partners], labels, labels[partners], shares)


def _uniform(images: Tensor, generator: torch.Generator) -> Tensor:
    """Draws one number from 0 to 1 for each image."""
    return torch.rand(len(images), generator=generator, device=images.device)


def _shifts(images: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Draws shifts down and right, int64 [2, batch]."""
    return torch.randint(-most, most + 1, (2, len(images)), generator=generator, device=images.device)


def _crops(images: Tensor, how: ResizedCrop, generator: torch.Generator) -> Boxes:
    return _boxes(images, (how.smallest, how.largest), CROP_ASPECTS, generator)


def _boxes(
    images: Tensor, areas: tuple[float, float], aspects: tuple[float, float], generator: torch.Generator
) -> Boxes:
    """Draws a box for each image: its area, as a share of the image's, and its position are uniform.

    The logarithm of its aspect is uniform among those with which the box fits into the image.
    """
    height, width = images.shape[-2:]
    area, aspect, down, right = torch.rand(4, len(images), generator=generator, device=images.device)
    area = (areas[0] + (areas[1] - areas[0]) * area) * height * width
    narrowest = (area / height**2).clamp(min=aspects[0]).log()
    widest = (width**2 / area).clamp(max=aspects[1]).log()
    aspect = (narrowest + (widest - narrowest) * aspect).exp()
    rows = (area / aspect).sqrt().round().long().clamp(1, height)
    columns = (area * aspect).sqrt().round().long().clamp(1, width)
    top, left = (down * (height - rows + 1)).long(), (right * (width - columns + 1)).long()
    return Boxes(top.minimum(height - rows), left.minimum(width - columns), rows, columns)


def _erased_at_random(images: Tensor, how: Erasing, generator: torch.Generator) -> Tensor:
    chosen = _uniform(images, generator) < how.probability
    boxes = _boxes(images, (how.smallest, how.largest), ERASED_ASPECTS, generator)
    fill = 255 * torch.rand(images.shape, generator=generator, device=images.device)
    return erased(images, Boxes(boxes.top, boxes.left, boxes.height * chosen, boxes.width), fill)


def _beta(parameter: float, images: Tensor, generator: torch.Generator) -> Tensor:
    """Draws one number from Beta(parameter, parameter) for each image."""
    # torch.distributions cannot draw with a generator.
    parameters = torch.full((len(images), 2), parameter, device=images.device)
    return torch._sample_dirichlet(parameters, generator)[:, 0]
