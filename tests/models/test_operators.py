"""The operators of the hybrid detector against loops over places, in float64."""

import math

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck

from bbnet.models.operators.deformable_attention import (
    DISTANCES,
    DeformableAttention,
    MultiScaleDeformableAttention,
    multi_scale_samples,
)
from bbnet.models.operators.deformable_convolution import DeformableConvolution, deformable_convolution
from bbnet.models.operators.neighbourhood import DENSE_PLACES, NeighbourhoodAttention, neighbourhood_attention
from bbnet.models.operators.sampling import weighted_samples

MAPS = [(1, 1), (1, 6), (6, 1), (2, 3), (5, 5), (7, 4), (9, 8), (3, 17)]


def random(*shape: int, std: float = 1.0) -> torch.Tensor:
    return (std * torch.randn(*shape, dtype=torch.float64)).requires_grad_()


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


def interpolated(plane: torch.Tensor, x: float, y: float) -> torch.Tensor:
    """The value [channels] of a map [height, width, channels] at a place in pixels."""
    left, top = math.floor(x), math.floor(y)
    value = torch.zeros(plane.shape[2], dtype=plane.dtype)
    for row in (top, top + 1):
        for column in (left, left + 1):
            if 0 <= row < plane.shape[0] and 0 <= column < plane.shape[1]:
                value += (1 - abs(x - column)) * (1 - abs(y - row)) * plane[row, column]
    return value


# Sampling.


@pytest.mark.parametrize(("height", "width"), MAPS)
def test_samples_are_interpolated_and_zero_outside(height, width):
    maps = random(2, height, width, 3, 2)
    extent = torch.tensor([width + 3.0, height + 3.0], dtype=torch.float64)
    points = torch.rand(2, 5, 3, 4, 2, dtype=torch.float64) * extent - 2
    points[0, 0, 0, :, 0] = torch.tensor([0.0, width - 1.0, -1.0, width])
    points[0, 0, 0, :, 1] = torch.tensor([0.0, height - 1.0, 0.0, 0.0])
    weights = random(2, 5, 3, 4)
    found = weighted_samples(maps, points, weights)
    for image, query, group in torch.cartesian_prod(*map(torch.arange, (2, 5, 3))).tolist():
        expected = sum(
            weight * interpolated(maps[image, :, :, group], *point.tolist())
            for weight, point in zip(weights[image, query, group], points[image, query, group], strict=True)
        )
        close(found[image, query, group], expected)


def test_gradients_of_samples():
    points = (torch.rand(1, 3, 2, 2, 2, dtype=torch.float64) * 5 - 1).requires_grad_()
    assert gradcheck(weighted_samples, (random(1, 4, 3, 2, 2), points, random(1, 3, 2, 2)))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_places_are_exact_though_maps_are_in_half_precision(kind):
    maps = torch.arange(300.0).reshape(1, 1, 300, 1, 1) / 512
    points = torch.tensor([[299.0, 0], [257.0, 0], [128.5, 0]]).reshape(1, 3, 1, 1, 2)
    found = weighted_samples(maps.to(kind), points, torch.ones(1, 3, 1, 1, dtype=kind))
    assert found.dtype == kind
    torch.testing.assert_close(found.flatten().float() * 512, torch.tensor([299.0, 257.0, 128.5]), atol=1.0, rtol=0)


# Neighbourhood attention.


def by_loops(query, key, value, bias):
    batch, height, width, heads, depth = query.shape
    kernel = (bias.shape[-1] + 1) // 2
    found = torch.zeros_like(value)
    for image, y, x, head in torch.cartesian_prod(*map(torch.arange, (batch, height, width, heads))).tolist():
        windows = []
        for at, size in ((y, height), (x, width)):
            window = min(kernel, size)
            start = min(max(at - window // 2, 0), size - window)
            windows.append(range(start, start + window))
        places = [(row, column) for row in windows[0] for column in windows[1]]
        scores = torch.stack(
            [
                query[image, y, x, head] @ key[image, row, column, head] / math.sqrt(depth)
                + bias[head, row - y + kernel - 1, column - x + kernel - 1]
                for row, column in places
            ]
        ).softmax(0)
        found[image, y, x, head] = sum(
            score * value[image, row, column, head] for score, (row, column) in zip(scores, places, strict=True)
        )
    return found


@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize(("height", "width"), MAPS)
@pytest.mark.parametrize("dense", [True, False])
def test_neighbourhood_attention_is_that_of_shifted_windows(height, width, kernel, dense):
    query, key, value = (random(2, height, width, 2, 3) for _ in range(3))
    bias = random(2, 2 * kernel - 1, 2 * kernel - 1)
    close(neighbourhood_attention(query, key, value, bias, dense), by_loops(query, key, value, bias))


@pytest.mark.parametrize("dense", [True, False])
def test_gradients_of_neighbourhood_attention(dense):
    inputs = (*(random(1, 4, 5, 1, 2) for _ in range(3)), random(1, 5, 5))
    assert gradcheck(lambda *each: neighbourhood_attention(*each, dense), inputs)


def test_the_form_depends_on_the_size_alone_and_both_agree():
    side = math.isqrt(DENSE_PLACES)
    for size in (side, side + 1):
        inputs = (*(torch.randn(1, size, size, 1, 4) for _ in range(3)), torch.randn(1, 9, 9))
        forms = [neighbourhood_attention(*inputs, dense) for dense in (True, False)]
        assert torch.equal(neighbourhood_attention(*inputs), forms[0 if size == side else 1])
        torch.testing.assert_close(*forms)


# DCNv4.


def test_deformable_convolution_is_that_of_the_published_geometry():
    for (height, width), scale in zip(MAPS, (1.0, 0.1, 2.0, 1.0, 0.1, 0.5, 1.0, 0.1), strict=True):
        maps, masks = random(2, height, width, 2, 3), random(2, height, width, 2, 9)
        offsets = random(2, height, width, 2, 9, 2, std=3.0)
        found = deformable_convolution(maps, offsets, masks, scale)
        for image, y, x, group in torch.cartesian_prod(*map(torch.arange, (2, height, width, 2))).tolist():
            expected, tap = 0, 0
            for across in (-1, 0, 1):  # the outer loop is over x
                for down in (-1, 0, 1):
                    right, low = offsets[image, y, x, group, tap].tolist()
                    place = x + scale * (across + right), y + scale * (down + low)
                    sample = interpolated(maps[image, :, :, group], *place)
                    expected = expected + masks[image, y, x, group, tap] * sample
                    tap += 1
            close(found[image, y, x, group], expected)


def test_gradients_of_the_deformable_convolution():
    offsets = (0.3 * torch.rand(1, 3, 4, 1, 9, 2, dtype=torch.float64) + 0.2).requires_grad_()
    assert gradcheck(deformable_convolution, (random(1, 3, 4, 1, 2), offsets, random(1, 3, 4, 1, 9)))


def test_a_deformable_convolution_begins_near_the_mean_of_its_taps_and_the_scale_decides_how_far_they_lie():
    maps = torch.randn(1, 9, 9, 16)
    means = nn.functional.avg_pool2d(maps.permute(0, 3, 1, 2), 3, 1, 1).permute(0, 2, 3, 1)
    for scale, expected in ((1.0, means), (1e-3, maps)):
        layer = DeformableConvolution(16, scale)
        for pointwise in (layer.value, layer.output):
            nn.init.eye_(pointwise.weight)
            nn.init.zeros_(pointwise.bias)
        nn.init.zeros_(layer.offset_mask.weight)
        found = layer(maps)
        torch.testing.assert_close(found, expected, atol=0.01, rtol=0.01)


# Deformable attention of one level.


def deformable_attention_by_loops(layer: DeformableAttention, maps: torch.Tensor) -> torch.Tensor:
    """The equations of the layer with loops over queries, groups and samples, given its sampled places."""
    batch, height, width, channels = maps.shape
    depth, span = channels // layer.heads, channels // layer.groups
    query = layer.query(maps)
    places = layer.places(query)
    found = torch.zeros_like(maps)
    for image in range(batch):
        sampled = torch.stack(
            [
                torch.cat(
                    [
                        interpolated(maps[image, :, :, span * group : span * (group + 1)], *point.tolist())
                        for group, point in enumerate(points)
                    ]
                )
                for points in places[image]
            ]
        )
        key, value = layer.key_value(sampled).chunk(2, -1)
        for y in range(height):
            for x in range(width):
                for head in range(layer.heads):
                    at = slice(depth * head, depth * (head + 1))
                    points = places[image, :, head // (layer.heads // layer.groups)]
                    table = layer.bias[head][..., None]
                    middle = (DISTANCES - 1) / 2
                    bias = torch.cat(
                        [
                            interpolated(table, middle + middle * (px - x) / width, middle + middle * (py - y) / height)
                            for px, py in points.tolist()
                        ]
                    )
                    scores = (key[:, at] @ query[image, y, x, at] / math.sqrt(depth) + bias).softmax(0)
                    found[image, y, x, at] = scores @ value[:, at]
    return layer.output(found)


@pytest.mark.parametrize(("size", "stride"), [((5, 4), 1), ((1, 6), 1), ((5, 7), 2), ((1, 1), 1), ((6, 4), 2)])
@pytest.mark.parametrize("heads", [1, 2, 4])
@torch.no_grad()
def test_deformable_attention_is_that_of_its_equations(size, stride, heads):
    layer = DeformableAttention(8, 8 // heads, stride).double()
    nn.init.normal_(layer.offset.weight)
    nn.init.normal_(layer.bias)
    maps = torch.randn(2, *size, 8, dtype=torch.float64)
    close(layer(maps), deformable_attention_by_loops(layer, maps))


@torch.no_grad()
def test_sampled_places_are_a_grid_moved_by_offsets_and_kept_within_the_map():
    layer = DeformableAttention(8, 4, stride=2).double()
    nn.init.zeros_(layer.offset.weight)
    query = torch.randn(8, 4, 6, 8, dtype=torch.float64)
    expected = torch.tensor([[x, y] for y in (0.5, 2.5) for x in (0.5, 2.5, 4.5)], dtype=torch.float64)
    close(layer.places(query)[0, :, 0], expected)
    nn.init.normal_(layer.offset.weight, std=100)
    moved = layer.places(query)
    assert moved.amin() == 0 and moved[..., 0].amax() == 5 and moved[..., 1].amax() == 3


def test_gradients_of_deformable_attention():
    layer = DeformableAttention(4, 2).double()
    nn.init.normal_(layer.offset.weight)
    nn.init.normal_(layer.bias)
    names, weights = zip(*layer.named_parameters(), strict=True)

    def mixed(maps: torch.Tensor, *given: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, dict(zip(names, given, strict=True)), (maps,))

    assert gradcheck(mixed, (random(1, 3, 4, 4), *weights))


# Deformable attention of several levels.


def test_samples_of_several_levels_are_sums_over_levels():
    maps = [random(2, height, width, 2, 3) for height, width in ((6, 5), (3, 1), (1, 2))]
    places, weights = torch.rand(2, 4, 2, 6, 2, dtype=torch.float64) * 1.4 - 0.2, random(2, 4, 2, 6)
    found = multi_scale_samples(maps, places, weights)
    for image, query, head in torch.cartesian_prod(*map(torch.arange, (2, 4, 2))).tolist():
        expected = 0
        for point in range(6):
            level = maps[point // 2]
            x, y = places[image, query, head, point].tolist()
            pixel = x * level.shape[2] - 0.5, y * level.shape[1] - 0.5
            sample = interpolated(level[image, :, :, head], *pixel)
            expected = expected + weights[image, query, head, point] * sample
        close(found[image, query, head], expected)


def test_gradients_of_samples_of_several_levels():
    places = (0.8 * torch.rand(1, 2, 1, 4, 2, dtype=torch.float64) + 0.1).requires_grad_()
    weights, fine, coarse = random(1, 2, 1, 4), random(1, 4, 3, 1, 2), random(1, 2, 2, 1, 2)
    assert gradcheck(
        lambda one, other, at, by: multi_scale_samples([one, other], at, by), (fine, coarse, places, weights)
    )


@torch.no_grad()
def test_a_query_begins_to_read_around_its_box_and_moves_by_shares_of_it():
    layer = MultiScaleDeformableAttention(4, heads=2, levels=1, points=2).double()
    for linear in (layer.offset, layer.weight):
        nn.init.zeros_(linear.weight)
    for linear in (layer.value, layer.output):
        nn.init.eye_(linear.weight)
        nn.init.zeros_(linear.bias)
    columns = torch.arange(8, dtype=torch.float64).expand(1, 8, 8)[..., None]
    maps = columns.expand(-1, -1, -1, 4)
    boxes = torch.tensor([[[0.5, 0.5, 0.4, 0.2]]], dtype=torch.float64)
    # Head 0 looks right, by a quarter and a half of the width; head 1 looks left.
    expected = torch.tensor([0.5 + 0.15, 0.5 + 0.15, 0.5 - 0.15, 0.5 - 0.15], dtype=torch.float64) * 8 - 0.5
    close(layer(torch.randn(1, 1, 4, dtype=torch.float64), boxes, [maps])[0, 0], expected)


# All of them as layers.

LAYERS = {
    "neighbourhood": lambda: NeighbourhoodAttention(32, 16, 5),
    "deformable_convolution": lambda: DeformableConvolution(32),
    "deformable_attention": lambda: DeformableAttention(32, 8),
    "multi_scale": lambda: _OfMaps(MultiScaleDeformableAttention(32, 4, 1, 4)),
}


class _OfMaps(nn.Module):
    """Attention of several levels as a layer of maps."""

    def __init__(self, attention: MultiScaleDeformableAttention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        boxes = torch.tensor([0.5, 0.5, 0.3, 0.3]).expand(len(maps), maps.shape[1] * maps.shape[2], 4)
        return self.attention(maps.flatten(1, 2), boxes, [maps]).reshape(maps.shape)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 3), (17, 18)])
def test_layers_take_maps_of_any_size_and_every_parameter_has_a_gradient(name, size):
    layer = LAYERS[name]()
    maps = torch.randn(2, *size, 32, requires_grad=True)
    found = layer(maps)
    assert found.shape == maps.shape
    found.square().sum().backward()
    assert maps.grad.isfinite().all() and all(each.grad.isfinite().all() for each in layer.parameters())
    if size == (17, 18):
        # A softmax over keys ignores what it adds to all of them.
        assert {key for key, each in layer.named_parameters() if not each.grad.any()} == set()


@pytest.mark.parametrize("name", LAYERS)
def test_layers_compute_nearly_the_same_in_half_precision(name):
    layer, maps = LAYERS[name](), torch.randn(2, 11, 9, 32)
    expected = layer(maps)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(maps)
    found.float().sum().backward()
    torch.testing.assert_close(found.float(), expected, atol=0.05, rtol=0.05)
    assert all(each.grad.isfinite().all() for each in layer.parameters())


def test_tensors_that_are_kept_can_be_used_in_training_after_inference():
    layer, maps = LAYERS["neighbourhood"](), torch.randn(1, 13, 19, 32)
    with torch.inference_mode():
        layer(maps)
    layer(maps).sum().backward()
