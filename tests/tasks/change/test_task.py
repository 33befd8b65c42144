"""Augmentation, loss and scoring of change detection, against loops and hand computation."""

import numpy as np
import pytest
import torch
from torch import nn

from bbnet.tasks.change import data, task
from bbnet.tasks.change.data import Batch

CPU = torch.device("cpu")


class Difference(nn.Module):
    """Logits: by how much the summed absolute difference of the dates exceeds a threshold."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (images[:, 0] - images[:, 1]).abs().sum(1) - self.threshold


class Constant(nn.Module):
    """The given logits, as a parameter."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert images.dtype == torch.float32
        return self.logits


def changed_batch(samples: int, size: int = 8) -> Batch:
    """Dates that differ exactly where the label says so."""
    before = torch.randint(0, 200, (samples, 3, size, size), dtype=torch.uint8)
    labels = (torch.rand(samples, size, size) < 0.3).to(torch.uint8)
    return Batch(torch.stack([before, before + 50 * labels[:, None]], dim=1), labels)


def numbered_batch(samples: int, size: int = 4) -> Batch:
    """Every pixel of both dates has its own value, so that an orientation can be told."""
    pair = torch.arange(2 * 3 * size * size, dtype=torch.uint8).reshape(2, 3, size, size)
    labels = torch.arange(size * size, dtype=torch.uint8).reshape(size, size)
    return Batch(pair.repeat(samples, 1, 1, 1, 1), labels.repeat(samples, 1, 1))


def augmented(batch: Batch, seed: int = 0) -> Batch:
    return task.augment(batch, None, torch.Generator().manual_seed(seed))


# Augmentation.


def test_labels_stay_aligned_with_images():
    batch = augmented(changed_batch(64))
    differs = (batch.images[:, 0] != batch.images[:, 1]).any(1)
    assert torch.equal(differs, batch.labels.bool())


def test_all_eight_orientations_and_both_orders_of_dates_occur_about_equally():
    batch = numbered_batch(1024)
    turned = augmented(batch)
    pair, label = batch.images[0].numpy(), batch.labels[0].numpy()
    found = dict.fromkeys(
        [(quarters, mirrored, swapped) for quarters in range(4) for mirrored in (0, 1) for swapped in (0, 1)], 0
    )
    for images, labels in zip(turned.images.numpy(), turned.labels.numpy(), strict=True):
        for quarters, mirrored, swapped in found:
            expected = np.rot90(pair[::-1] if swapped else pair, quarters, axes=(-2, -1))
            expected = expected[..., ::-1] if mirrored else expected
            if (images == expected).all():
                found[quarters, mirrored, swapped] += 1
                whole = np.rot90(label, quarters)
                assert (labels == (whole[:, ::-1] if mirrored else whole)).all()
    assert sum(found.values()) == 1024
    # 64 expected of each, sd 7.7
    assert 30 < min(found.values()) <= max(found.values()) < 100


def test_augmentation_depends_on_the_generator_alone_and_leaves_the_batch():
    batch = changed_batch(16)
    before = batch.images.clone(), batch.labels.clone()
    first, again, other = augmented(batch, 1), augmented(batch, 1), augmented(batch, 2)
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.images, other.images)
    assert torch.equal(batch.images, before[0])
    assert torch.equal(batch.labels, before[1])


def test_augmented_tiles_stay_bytes():
    batch = augmented(changed_batch(4))
    assert batch.images.dtype == batch.labels.dtype == torch.uint8
    assert batch.images.shape == (4, 2, 3, 8, 8)


# Loss.


def loss_by_hand(logits: np.ndarray, labels: np.ndarray) -> float:
    shares = 1 / (1 + np.exp(-logits))
    entropy = -np.mean(np.where(labels == 1, np.log(shares), np.log(1 - shares)))
    return entropy + 1 - (2 * np.sum(shares * labels) + 1) / (np.sum(shares) + np.sum(labels) + 1)


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_the_loss_is_cross_entropy_plus_dice(share):
    logits = torch.randn(3, 8, 8)
    labels = (torch.rand(3, 8, 8) < share).to(torch.uint8)
    batch = Batch(torch.zeros(3, 2, 3, 8, 8, dtype=torch.uint8), labels)
    found = task.loss(Constant(logits), batch)
    assert found.item() == pytest.approx(loss_by_hand(logits.double().numpy(), labels.numpy()), rel=1e-5)


def test_the_loss_falls_along_its_gradient_and_is_finite_for_large_logits():
    batch = changed_batch(2)
    model = Constant(torch.full((2, 8, 8), 60.0))
    first = task.loss(model, batch)
    first.backward()
    assert first.isfinite()
    assert model.logits.grad.isfinite().all()
    with torch.no_grad():
        model.logits -= 100 * model.logits.grad
    assert task.loss(model, batch) < first


# Scoring.


@pytest.fixture
def scored(tiles):
    """Seven tiles of images of 2, 1 and 4 tiles, with pixels exactly at the threshold among them."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 4, (7, 2, 3, 32, 32), dtype=np.uint8)
    labels = generator.integers(0, 2, (7, 32, 32), dtype=np.uint8)
    return images, labels, tiles(images, labels, [2, 1, 4])


def counted(images: np.ndarray, labels: np.ndarray, threshold: float) -> list[list[int]]:
    """tp, fp, fn, tn of each tile, pixel by pixel."""
    rows = []
    for pair, label in zip(images.astype(int).tolist(), labels.tolist(), strict=True):
        row = [0, 0, 0, 0]
        for y in range(len(label)):
            for x in range(len(label)):
                predicted = (
                    sum(abs(pair[0][channel][y][x] - pair[1][channel][y][x]) for channel in range(3)) >= threshold
                )
                row[(0 if label[y][x] else 1) if predicted else (2 if label[y][x] else 3)] += 1
        rows.append(row)
    return rows


def test_counts_are_those_of_a_loop_over_pixels_summed_per_image(scored):
    images, labels, split = scored
    items, _ = task.evaluate(Difference(4.0), split, CPU)
    by_tile = np.array(counted(images, labels, 4.0))
    by_image = np.stack([by_tile[:2].sum(0), by_tile[2:3].sum(0), by_tile[3:].sum(0)])
    assert items["image"].tolist() == ["image_0", "image_1", "image_2"]
    assert np.stack([items[name] for name in ("tp", "fp", "fn", "tn")], axis=1).tolist() == by_image.tolist()
    assert by_image.min() > 0


def test_packed_predictions_unpack_to_the_predictions(scored):
    images, _, split = scored
    _, predictions = task.evaluate(Difference(4.0), split, CPU)
    unpacked = np.unpackbits(predictions["changed"], axis=1, count=32 * 32).reshape(7, 32, 32)
    expected = np.abs(images[:, 0].astype(int) - images[:, 1]).sum(1) >= 4
    assert predictions["changed"].dtype == np.uint8
    assert (unpacked == expected).all()


@pytest.mark.parametrize("tiles_at_once", [1, 3, 100])
def test_the_result_does_not_depend_on_how_many_tiles_go_at_once(scored, monkeypatch, tiles_at_once):
    _, _, split = scored
    expected = task.evaluate(Difference(4.0), split, CPU)
    monkeypatch.setattr(data, "EVALUATION_PIXELS", tiles_at_once * 32 * 32)
    found = task.evaluate(Difference(4.0), split, CPU)
    for one, other in zip(expected, found, strict=True):
        assert {name: value.tolist() for name, value in one.items()} == {
            name: value.tolist() for name, value in other.items()
        }


def test_tiles_whose_pixels_fill_no_whole_byte_are_packed(tiles):
    images = np.random.default_rng(0).integers(0, 4, (2, 2, 3, 3, 3), dtype=np.uint8)
    _, predictions = task.evaluate(Difference(4.0), tiles(images, np.zeros((2, 3, 3), np.uint8), [1, 1]), CPU)
    unpacked = np.unpackbits(predictions["changed"], axis=1, count=9).reshape(2, 3, 3)
    assert (unpacked == (np.abs(images[:, 0].astype(int) - images[:, 1]).sum(1) >= 4)).all()


def test_scoring_leaves_no_gradient(scored):
    _, _, split = scored
    model = Constant(torch.zeros(7, 32, 32))
    items, _ = task.evaluate(model, split, CPU)
    assert items["fp"].sum() + items["tp"].sum() == 7 * 32 * 32
    assert model.logits.grad is None
