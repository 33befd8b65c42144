"""Mirrored, turned and recoloured images, against torchvision's and by hand."""

import itertools
import math

import pytest
import torch

from bbnet.tasks.face import task
from bbnet.tasks.face.augmentation import LUMA, augmented, recoloured, rotated
from bbnet.tasks.face.data.batches import Batch
from bbnet.tasks.face.settings import Augmentation, FaceTraining

STILL = {"rotation": 0, "brightness": 0, "contrast": 0, "saturation": 0, "hue": 0}
NO, YES = torch.tensor([False]), torch.tensor([True])
KINDS = ("brightness", "contrast", "saturation", "hue")


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (5, 3, 16, 16)).float()


def smooth(size: int = 48) -> torch.Tensor:
    """A bright spot up to the right in red, waves in green and blue, [1, 3, size, size]."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    spot = 200 * torch.exp(-8 * ((x - 0.4) ** 2 + (y + 0.3) ** 2))
    return torch.stack([spot, 120 + 100 * torch.sin(3 * x + y), 120 + 100 * torch.cos(2 * y - x)])[None]


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def recolour(images: torch.Tensor, **changed: float) -> torch.Tensor:
    """The same change of every image."""
    amounts = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0} | changed
    return recoloured(images, **{name: torch.full((len(images),), value) for name, value in amounts.items()})


# Geometry.


def test_no_angle_is_the_identity(images):
    torch.testing.assert_close(
        rotated(images, torch.zeros(5), torch.zeros(5, dtype=torch.bool)), images, atol=1e-2, rtol=0
    )


def test_mirrored_is_left_for_right(images):
    found = rotated(images, torch.zeros(5), torch.ones(5, dtype=torch.bool))
    torch.testing.assert_close(found, images.flip(3), atol=1e-2, rtol=0)


def test_quarter_turns_go_counter_clockwise():
    for quarters, size in itertools.product((-1, 1, 2, 3), (15, 16)):
        images = torch.randint(0, 256, (1, 3, size, size)).float()
        found = rotated(images, torch.tensor([quarters * math.pi / 2]), NO)
        expected = torch.rot90(images, quarters, (2, 3))
        torch.testing.assert_close(found[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1], atol=1e-2, rtol=0)
        torch.testing.assert_close(found, expected, atol=0.1, rtol=0)


def test_a_quarter_turn_worked_by_hand():
    image = torch.tensor([[1.0, 2, 3], [4, 5, 6], [7, 8, 9]]).expand(1, 3, 3, 3)
    found = rotated(image, torch.tensor([math.pi / 2]), NO)[0, 0]
    torch.testing.assert_close(found, torch.tensor([[3.0, 6, 9], [2, 5, 8], [1, 4, 7]]), atol=1e-3, rtol=0)


def test_angles_are_torchvisions_after_mirroring():
    for angle, mirrored in ((-25.0, False), (-7.0, True), (10.0, False), (45.0, True)):
        from torchvision.transforms.functional import InterpolationMode, rotate

        image = smooth()
        expected = rotate(image.flip(3) if mirrored else image, angle, InterpolationMode.BILINEAR)
        found = rotated(image, torch.tensor([math.radians(angle)]), YES if mirrored else NO)
        # torchvision blends the edge with black in another way.
        y, x = torch.meshgrid(torch.linspace(-1, 1, 48), torch.linspace(-1, 1, 48), indexing="ij")
        inside = (x**2 + y**2).sqrt() < 0.9
        torch.testing.assert_close(found[..., inside], expected[..., inside], atol=0.05, rtol=0)
        assert (found - expected).abs().mean() < 0.5
        assert (image - expected).abs().mean() > 3


def test_what_is_uncovered_is_black():
    found = rotated(torch.full((1, 3, 21, 21), 255.0), torch.tensor([math.pi / 4]), NO)
    assert (found[..., [0, 0, -1, -1], [0, -1, 0, -1]] == 0).all()
    assert found[..., 10, 10].allclose(torch.tensor(255.0))


def test_each_image_is_turned_by_its_own_angle(images):
    angles, mirrored = torch.tensor([0.1, -0.4, 0.0, 1.0, 2.0]), torch.tensor([True, False, True, True, False])
    found = rotated(images, angles, mirrored)
    for row in range(5):
        alone = rotated(images[row : row + 1], angles[row : row + 1], mirrored[row : row + 1])
        torch.testing.assert_close(found[row], alone[0], atol=1e-3, rtol=0)


# Colours.


def test_a_change_alone_is_torchvisions(images):
    for name, factor in itertools.product(("brightness", "contrast", "saturation"), (0.3, 1.0, 1.9)):
        from torchvision.transforms import functional

        expected = 255 * getattr(functional, f"adjust_{name}")(images / 255, factor)
        torch.testing.assert_close(recolour(images, **{name: factor}), expected, atol=0.1, rtol=0)


def test_changes_are_made_one_after_the_other_and_clamped_between(images):
    from torchvision.transforms import functional

    expected = functional.adjust_contrast(functional.adjust_brightness(images / 255, 1.6), 0.5)
    expected = 255 * functional.adjust_saturation(expected, 1.7)
    found = recolour(images, brightness=1.6, contrast=0.5, saturation=1.7)
    torch.testing.assert_close(found, expected, atol=0.2, rtol=0)


def test_nothing_asked_is_nothing_changed(images):
    torch.testing.assert_close(recolour(images), images, atol=1e-2, rtol=0)


def test_a_full_turn_of_hue_is_the_identity(images):
    for turns in (-1, 1, 2):
        torch.testing.assert_close(recolour(images, hue=2 * math.pi * turns), images, atol=1e-2, rtol=0)
        assert (recolour(images, hue=math.pi * turns / 3) - images).abs().mean() > 10


def test_the_hue_of_grey_stays():
    for hue in (-2.0, 0.3, math.pi):
        grey = torch.randint(0, 256, (2, 1, 8, 8)).float().expand(2, 3, 8, 8)
        torch.testing.assert_close(recolour(grey, hue=hue), grey, atol=1e-2, rtol=0)


def test_hue_and_saturation_keep_luma_where_nothing_is_clamped():
    for hue, saturation in itertools.product((-2.0, 0.3, math.pi), (0.4, 1.0, 1.3)):
        pale = 128 + 12 * torch.randn(3, 3, 8, 8).clamp(-2, 2)
        found = recolour(pale, hue=hue, saturation=saturation)
        luma = torch.tensor(LUMA)
        assert 0 < found.min() < found.max() < 255
        torch.testing.assert_close(
            torch.einsum("nchw,c->nhw", found, luma), torch.einsum("nchw,c->nhw", pale, luma), atol=1e-2, rtol=0
        )


def test_turns_of_hue_add_up():
    pale = 128 + 12 * torch.randn(3, 3, 8, 8).clamp(-2, 2)
    torch.testing.assert_close(recolour(recolour(pale, hue=0.5), hue=0.7), recolour(pale, hue=1.2), atol=1e-2, rtol=0)


def test_each_image_has_its_own_change_and_mean_grey(images):
    amounts = {"brightness": 0.5 + torch.rand(5), "contrast": 0.5 + torch.rand(5), "saturation": 0.5 + torch.rand(5)}
    amounts["hue"] = torch.randn(5)
    found = recoloured(images, **amounts)
    for row in range(5):
        alone = recoloured(images[row : row + 1], **{name: values[row : row + 1] for name, values in amounts.items()})
        torch.testing.assert_close(found[row], alone[0], atol=1e-2, rtol=0)


def test_pixels_stay_between_0_and_255(images):
    for change in ({"brightness": 1.9}, {"contrast": 1.9}, {"saturation": 1.9}, {"hue": 2.0}):
        found = recolour((images > 127) * 255.0, **change)
        assert found.min() >= 0
        assert found.max() <= 255


# Draws.


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
