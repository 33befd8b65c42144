"""Mirrored, turned and recoloured images, against torchvision's and by hand."""

import itertools
import math

import pytest
import torch

from bbnet.tasks.augmentation import LUMA, recoloured, rotated
from tests.images import recolour, smooth

NO, YES = torch.tensor([False]), torch.tensor([True])


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (5, 3, 16, 16)).float()


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
