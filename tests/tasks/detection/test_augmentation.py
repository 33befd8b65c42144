"""Boxes move with the pixels, and what has left the image is removed."""

import pytest
import torch

from bbnet.tasks.detection.augmentation import augmented, placed
from bbnet.tasks.detection.data.batches import Scenes
from bbnet.tasks.detection.settings import Augmentation


def scenes(size: int = 40, boxes=((10, 4, 20, 12), (22, 24, 30, 38))) -> Scenes:
    """Grey images, each with a white rectangle in one box."""
    images = torch.full((len(boxes), 3, size, size), 128, dtype=torch.uint8)
    rows = []
    for image, (left, top, right, bottom) in zip(images, boxes, strict=True):
        image[:, top:bottom, left:right] = 255
        rows.append([[(left + right) / 2, (top + bottom) / 2, right - left, bottom - top], [0, 0, 0, 0]])
    return Scenes(images, torch.tensor(rows) / size, torch.tensor([[3, -1]] * len(boxes)))


def extent_of_white(image: torch.Tensor) -> list[float]:
    """Left, top, right and bottom of the pixels nearer to white than to grey, as shares."""
    rows, columns = torch.nonzero(image[0] > 191, as_tuple=True)
    ends = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    return [float(end) / image.shape[-1] for end in ends]


def corners(box: torch.Tensor) -> list[float]:
    x, y, width, height = box.tolist()
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize(
    ("zoom", "move"), [(1.0, (0.0, 0.0)), (1.5, (0.0, 0.0)), (0.5, (0.25, -0.1)), (1.25, (-0.1, 0.05))]
)
def test_boxes_enclose_what_they_enclosed(mirrored, zoom, move):
    batch = scenes()
    count = len(batch.labels)
    found = placed(
        Scenes(batch.images.float(), batch.boxes, batch.labels),
        torch.full((count,), mirrored),
        torch.full((count,), zoom),
        torch.tensor([move] * count),
    )
    assert torch.equal(found.labels, batch.labels)
    for image, boxes in zip(found.images, found.boxes, strict=True):
        assert corners(boxes[0]) == pytest.approx(extent_of_white(image), abs=0.6 / 40)


def test_what_is_hardly_left_is_removed_and_the_rest_is_clipped():
    batch = scenes(boxes=((30, 10, 40, 20), (30, 10, 40, 20), (30, 10, 40, 20)))
    moves = torch.tensor([[0.15, 0.0], [0.2, 0.0], [0.5, 0.0]])
    found = placed(
        Scenes(batch.images.float(), batch.boxes, batch.labels), torch.zeros(3, dtype=torch.bool), torch.ones(3), moves
    )
    assert found.labels[:, 0].tolist() == [3, -1, -1]
    assert corners(found.boxes[0, 0]) == pytest.approx([0.9, 0.25, 1.0, 0.5], abs=1e-6)


def test_new_area_is_grey_and_no_change_is_none():
    batch = scenes()
    same = augmented(batch, Augmentation(flip=False, zoom=(1, 1), shift=0, colour=None), torch.Generator())
    torch.testing.assert_close(same.images, batch.images.float(), atol=1e-3, rtol=0)
    torch.testing.assert_close(same.boxes, batch.boxes)
    ones = torch.ones(2)
    found = placed(
        Scenes(batch.images.float(), batch.boxes, batch.labels), ones < 0, 0.5 * ones, torch.zeros(2, 2)
    ).images
    assert (found[..., :9, :] - 128).abs().max() < 1e-3


def test_it_depends_on_the_generator_alone_and_reaches_the_bounds():
    one, *others = (augmented(scenes(), Augmentation(), torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(one.images, others[0].images)
    assert torch.equal(one.boxes, others[0].boxes)
    assert not torch.equal(one.images, others[1].images)
    many = Scenes(
        *(each[:1].expand(400, *each.shape[1:]) for each in (scenes().images, scenes().boxes, scenes().labels))
    )
    boxes = augmented(
        many, Augmentation(zoom=(0.5, 0.8), shift=0.1, colour=None), torch.Generator().manual_seed(0)
    ).boxes
    factors = boxes[:, 0, 2] / many.boxes[:, 0, 2]
    assert 0.5 <= factors.min() < 0.51 < 0.79 < factors.max() <= 0.8001


def test_images_without_objects():
    empty = Scenes(
        torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.int64)
    )
    found = augmented(empty, Augmentation(), torch.Generator())
    assert found.boxes.shape == (2, 0, 4)
    assert found.labels.shape == (2, 0)
