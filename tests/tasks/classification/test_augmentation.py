"""Every change against a naive reference that treats one image after the other, and how the changes are drawn."""

import math

import pytest
import torch
from scipy import stats
from torchvision.transforms import functional as torchvision

from bbnet.tasks.augmentation import recoloured
from bbnet.tasks.classification import augmentation
from bbnet.tasks.classification.augmentation import Boxes, MixedImages, augmented, erased, mixed, moved, resized
from bbnet.tasks.classification.data.batches import Batch
from bbnet.tasks.classification.settings import Augmentation

NOTHING = {"flip": False, "crop": None}
EVERYTHING = {
    "flip": True,
    "crop": {"kind": "resized"},
    "colour": {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.1},
    "erasing": {"probability": 0.5},
    "mixup": 0.4,
}


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (7, 3, 12, 12)).float()


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def change(images: torch.Tensor, seed: int = 0, **how) -> Batch | MixedImages:
    labels = torch.arange(len(images))
    return augmented(Batch(images, labels), Augmentation.model_validate(NOTHING | how), draw(seed))


# Each change by given amounts.


def test_moved_images_are_those_moved_one_by_one(images):
    down, right = torch.tensor([0, 3, -2, 12, -12, 1, 5]), torch.tensor([0, -4, 1, 0, 3, -12, 11])
    found = moved(images, down, right)
    for number, image in enumerate(images):
        expected = torch.zeros_like(image)
        for row in range(12):
            for column in range(12):
                source = row - int(down[number]), column - int(right[number])
                if all(0 <= place < 12 for place in source):
                    expected[:, row, column] = image[:, source[0], source[1]]
        assert torch.equal(found[number], expected)


def test_resized_parts_are_torchvisions(images):
    boxes = Boxes(
        *torch.tensor([[0, 2, 5, 0, 11, 3, 0], [0, 1, 0, 7, 11, 3, 6], [12, 4, 7, 1, 1, 6, 12], [12, 9, 3, 5, 1, 6, 2]])
    )
    for size in (12, 9):
        found = resized(images, boxes, size)
        for number, image in enumerate(images):
            box = (int(each[number]) for each in (boxes.top, boxes.left, boxes.height, boxes.width))
            expected = torchvision.resized_crop(image, *box, [size, size], antialias=False)
            torch.testing.assert_close(found[number], expected, atol=2e-2, rtol=0)


def test_erased_boxes_have_the_pixels_of_the_filling_and_the_rest_is_kept(images):
    boxes = Boxes(
        *torch.tensor([[0, 2, 5, 0, 11, 3, 0], [0, 1, 0, 7, 11, 3, 6], [12, 4, 7, 1, 1, 0, 12], [12, 9, 3, 5, 1, 6, 2]])
    )
    fill = torch.rand(images.shape)
    found = erased(images, boxes, fill)
    for number, image in enumerate(images):
        top, left, height, width = (int(each[number]) for each in (boxes.top, boxes.left, boxes.height, boxes.width))
        expected = image.clone()
        place = (slice(None), slice(top, top + height), slice(left, left + width))
        expected[place] = fill[number][place]
        assert torch.equal(found[number], expected)


def test_mixed_images_are_those_mixed_one_by_one(images):
    labels, partners = torch.tensor([3, 1, 4, 1, 5, 9, 2]), torch.tensor([6, 0, 2, 1, 3, 4, 5])
    shares = torch.tensor([0.0, 1.0, 0.25, 0.5, 0.9, 0.1, 0.7])
    batch = mixed(images, labels, partners, shares)
    for number in range(7):
        partner, share = int(partners[number]), float(shares[number])
        torch.testing.assert_close(batch.images[number], share * images[number] + (1 - share) * images[partner])
        assert (batch.labels[number], batch.others[number]) == (labels[number], labels[partner])
    assert torch.equal(batch.shares, shares)


# How they are drawn.


def test_without_options_images_stay_as_they_are(images):
    batch = change(images.to(torch.uint8))
    assert batch.images.dtype == torch.float32
    assert torch.equal(batch.images, images)
    assert torch.equal(batch.labels, torch.arange(7))


def test_half_of_the_images_are_mirrored():
    images = torch.randint(0, 256, (400, 3, 6, 6)).float()
    found = change(images, flip=True).images
    same, mirrored = ((found == expected).all(dim=(1, 2, 3)) for expected in (images, images.flip(3)))
    assert (same ^ mirrored).all()
    assert 160 < mirrored.sum() < 240


def test_images_are_moved_by_every_number_of_pixels_up_to_the_largest():
    images = torch.zeros(2000, 3, 9, 9)
    images[:, :, 4, 4] = 1
    found = change(images, crop={"kind": "pad", "pixels": 3}).images[:, 0].nonzero()
    assert len(found) == 2000
    for axis in (1, 2):
        counts = torch.bincount(found[:, axis], minlength=9)
        assert counts[[0, 8]].sum() == 0
        assert stats.chisquare(counts[1:8].numpy()).pvalue > 1e-3
    assert len({(int(down), int(right)) for _, down, right in found}) == 49


def test_boxes_have_uniform_areas_and_aspects_and_lie_inside():
    images = torch.zeros(1, 1, 1, 1).expand(4000, 1, 256, 256)
    boxes = augmentation._boxes(images, (0.1, 0.5), (3 / 4, 4 / 3), draw())
    area = (boxes.height * boxes.width) / 256**2
    assert stats.kstest((area.numpy() - 0.1) / 0.4, "uniform").pvalue > 1e-3
    aspect = (boxes.width / boxes.height).log() / math.log(4 / 3)
    assert stats.kstest((aspect.numpy() + 1) / 2, "uniform").pvalue > 1e-3
    for start, length in ((boxes.top, boxes.height), (boxes.left, boxes.width)):
        assert start.min() >= 0
        assert (start + length).max() <= 256
        assert stats.kstest(((start + 0.5) / (257 - length)).numpy(), "uniform").pvalue > 1e-3
    assert (
        abs(torch.corrcoef(torch.stack([boxes.top / (257 - boxes.height), boxes.left / (257 - boxes.width)]))[0, 1])
        < 0.06
    )


@pytest.mark.parametrize("aspects", [augmentation.CROP_ASPECTS, augmentation.ERASED_ASPECTS])
def test_boxes_of_nearly_the_whole_image_keep_their_area(aspects):
    boxes = augmentation._boxes(torch.zeros(500, 1, 100, 100), (0.9, 1.0), aspects, draw())
    area = boxes.height * boxes.width / 100**2
    assert area.min() > 0.89
    assert area.mean().item() == pytest.approx(0.95, abs=0.01)
    assert max(boxes.height.max(), boxes.width.max()) <= 100


def test_parts_are_cut_where_the_boxes_are(images, monkeypatch):
    seen = []
    monkeypatch.setattr(
        augmentation, "resized", lambda images, boxes, size: seen.append(boxes) or resized(images, boxes, size)
    )
    found = change(images, crop={"kind": "resized", "smallest": 0.2, "largest": 0.6}).images
    (boxes,) = seen
    area = boxes.height * boxes.width / 144
    assert (area.min() > 0.15) & (area.max() < 0.67)
    for number, image in enumerate(images):
        box = (int(each[number]) for each in (boxes.top, boxes.left, boxes.height, boxes.width))
        torch.testing.assert_close(found[number], torchvision.resized_crop(image, *box, [12, 12]), atol=2e-2, rtol=0)


def test_colours_change_within_their_bounds_each_image_by_its_own_amounts(images, monkeypatch):
    seen = []
    monkeypatch.setattr(augmentation, "recoloured", lambda *given: seen.append(given[1:]) or recoloured(*given))
    many = images.repeat(300, 1, 1, 1)
    how = {"brightness": 0.4, "contrast": 0.3, "saturation": 0.2, "hue": 0.1}
    found = change(many, colour=how).images
    (amounts,) = seen
    middles, halves = (1, 1, 1, 0), (0.4, 0.3, 0.2, 0.1 * 2 * math.pi)
    for amount, middle, half in zip(amounts, middles, halves, strict=True):
        assert stats.kstest(((amount - middle) / half / 2 + 0.5).numpy(), "uniform").pvalue > 1e-3
    assert torch.corrcoef(torch.stack(amounts)).fill_diagonal_(0).abs().max() < 0.08
    for number in (0, 1, 2):
        one = [amount[number : number + 1] for amount in amounts]
        torch.testing.assert_close(found[number], recoloured(many[number : number + 1], *one)[0], atol=1e-2, rtol=0)


def test_a_share_of_the_images_loses_one_rectangle_to_random_pixels():
    images = torch.full((1000, 3, 20, 20), -1.0)
    found = change(images, erasing={"probability": 0.3, "smallest": 0.1, "largest": 0.3}).images
    gone = found >= 0
    assert torch.equal(gone[:, :1].expand_as(gone), gone)
    chosen = gone.any(dim=(1, 2, 3))
    assert 250 < chosen.sum() < 350
    for mask in gone[chosen][:, 0]:
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        height, width = int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1
        assert mask.sum() == height * width  # nothing but one rectangle
        assert 0.07 < height * width / 400 < 0.34
    values = found[gone]
    assert stats.kstest(values[:5000].numpy() / 255, "uniform").pvalue > 1e-3


def test_shares_of_mixup_are_drawn_from_beta_and_partners_are_a_permutation():
    batch = change(torch.zeros(3000, 1, 2, 2), mixup=0.4)
    assert stats.kstest(batch.shares.numpy(), stats.beta(0.4, 0.4).cdf).pvalue > 1e-3
    assert torch.equal(batch.labels, torch.arange(3000))
    assert torch.equal(batch.others.sort().values, torch.arange(3000))
    assert (batch.others == batch.labels).sum() < 10


def test_the_same_generator_gives_the_same_and_the_global_one_is_left_alone(images):
    state = torch.random.get_rng_state()
    first, again, other = (change(images, seed, **EVERYTHING) for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, tensor in first.tensors().items():
        assert torch.equal(tensor, getattr(again, name))
    assert not torch.allclose(first.images, other.images, atol=1)
    assert first.images.min() >= 0
    assert first.images.max() <= 255
