"""Which changes the task draws: their bounds, their spread, and that each image has its own."""

import pytest
import torch

from bbnet.tasks.face import task
from bbnet.tasks.face.augmentation import augmented
from bbnet.tasks.face.data.batches import Batch
from bbnet.tasks.face.settings import Augmentation, FaceTraining
from tests.images import recolour, smooth

STILL = {"rotation": 0, "brightness": 0, "contrast": 0, "saturation": 0, "hue": 0}
KINDS = ("brightness", "contrast", "saturation", "hue")


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (5, 3, 16, 16)).float()


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_bounds_of_0_leave_mirroring_alone():
    images = torch.randint(0, 256, (400, 3, 8, 8), dtype=torch.uint8)
    found = augmented(images, Augmentation(**STILL), draw())
    assert found.dtype == torch.float32
    same, mirrored = ((found - expected.float()).abs().amax((1, 2, 3)) < 0.02 for expected in (images, images.flip(3)))
    assert (same ^ mirrored).all()
    assert 150 < mirrored.sum() < 250


def test_the_same_generator_gives_the_same(images):
    how = Augmentation()
    first, again, other = (augmented(images, how, draw(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1)


def test_the_global_generator_is_left_alone(images):
    state = torch.random.get_rng_state()
    augmented(images, Augmentation(), draw())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_each_image_has_its_own_draw_of_each_kind():
    for name in ("rotation", *KINDS):
        image = smooth(16)
        found = augmented(
            image.repeat(6, 1, 1, 1), Augmentation(**STILL | {name: 20 if name == "rotation" else 0.3}), draw()
        )
        others = [*found, image[0], image[0].flip(2)]
        for row in range(6):
            assert min((found[row] - other).abs().max() for place, other in enumerate(others) if place != row) > 0.5


def test_factors_are_spread_evenly_between_their_bounds():
    """Of an image that mirroring does not change, dark enough that nothing is clamped."""
    for name in KINDS[:3]:
        image = torch.full((1, 3, 8, 8), 30.0)
        image[..., :4, :] = torch.tensor([100.0, 60.0, 60.0]).reshape(3, 1, 1)
        found = augmented(image.repeat(2000, 1, 1, 1), Augmentation(**STILL | {name: 0.4}), draw())
        low, high = (recolour(image, **{name: factor}) for factor in (0.6, 1.4))
        place = (high - low).abs().flatten().argmax()
        low, high = low.flatten()[place], high.flatten()[place]
        shares = (found.flatten(1)[:, place] - low) / (high - low)
        assert shares.min() >= -1e-3
        assert shares.max() <= 1 + 1e-3
        quarters = torch.histc(shares, 4, 0, 1) / 2000
        assert quarters.tolist() == pytest.approx([0.25] * 4, abs=0.05)


def test_angles_reach_their_bounds_on_either_side_and_not_beyond():
    image = torch.zeros(1, 3, 33, 33)
    image[..., 14:19, 26:31] = 255  # right of the middle
    found = augmented(image.repeat(600, 1, 1, 1), Augmentation(**STILL | {"rotation": 30}), draw())[:, 0]
    y, x = torch.meshgrid(torch.arange(33.0) - 16, torch.arange(33.0) - 16, indexing="ij")
    mass = found.sum((1, 2))
    middle_x, middle_y = (found * x).sum((1, 2)) / mass, (found * y).sum((1, 2)) / mass
    angles = torch.rad2deg(torch.atan2(middle_y, middle_x.abs()))
    assert angles.abs().max() < 30.5
    assert angles.min() < -28
    assert angles.max() > 28
    assert (middle_x > 0).float().mean().item() == pytest.approx(0.5, abs=0.1)
    assert (angles * middle_x.sign()).mean().abs() < 3


def test_the_task_changes_images_and_keeps_labels():
    images = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8)
    before, labels = images.clone(), torch.arange(6)
    training = {"epochs": 2, "warm_up_epochs": 1, "learning_rate": 0.1, "batch_size": 2}
    batch = task.augment(Batch(images, labels), FaceTraining(**training), draw(1))
    assert torch.equal(batch.labels, labels)
    assert torch.equal(images, before)
    assert torch.equal(batch.images, augmented(images, Augmentation(), draw(1)))
    assert batch.images.min() >= 0
    assert batch.images.max() <= 255
