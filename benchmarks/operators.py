"""The operators of the hybrid detector in several forms: forward and backward, on one machine.

Of the forms of neighbourhood attention the library has both, and chooses by the size of the map. Of sampling it has
`grid`; `matrix`, which is here alone, multiplies maps with the weights of all their pixels.
"""

from collections.abc import Callable
from typing import Any

import torch
from loops import fastest_quartile, seconds
from torch import Tensor

from bbnet.models.hybrid_detector.detector import HybridDetector
from bbnet.models.hybrid_detector.outputs import Targets
from bbnet.models.operators.neighbourhood import neighbourhood_attention
from bbnet.models.operators.sampling import weighted_samples
from bbnet.models.settings.hybrid_detector import HybridDetector as Settings
from bbnet.tasks.detection.losses import detection_loss

TIMES = 15
# Batch, side of the map, heads, channels of a head, kernel.
NEIGHBOURHOODS = [(8, 6, 4, 24, 5), (8, 12, 4, 16, 5), (8, 16, 4, 16, 7), (4, 24, 4, 16, 7), (1, 30, 10, 64, 7)]
# Batch, side of the map, groups, channels of a group, queries, places per query: DCNv4, then the decoder.
SAMPLES = [(8, 6, 6, 16, 36, 9), (8, 12, 4, 16, 144, 9), (8, 12, 4, 16, 52, 4), (1, 60, 10, 32, 300, 4)]


def measure_operators(device: torch.device) -> dict[str, Any]:
    """Returns the milliseconds of a forward and backward pass of each form, and of a training step of the detector."""
    neighbourhoods = {}
    for batch, side, heads, depth, kernel in NEIGHBOURHOODS:
        made = [torch.randn(batch, side, side, heads, depth, device=device, requires_grad=True) for _ in range(3)]
        bias = torch.randn(heads, 2 * kernel - 1, 2 * kernel - 1, device=device, requires_grad=True)
        neighbourhoods[f"{batch} x {side} x {side} x {heads * depth}, kernel {kernel}"] = {
            name: _milliseconds(lambda dense=dense, each=(*made, bias): neighbourhood_attention(*each, dense), device)
            for name, dense in (("all pairs", True), ("rows", False))
        }
    samples = {}
    for batch, side, groups, channels, queries, taps in SAMPLES:
        maps = torch.randn(batch, side, side, groups, channels, device=device, requires_grad=True)
        points = (torch.rand(batch, queries, groups, taps, 2, device=device) * side - 0.5).requires_grad_()
        weights = torch.randn(batch, queries, groups, taps, device=device, requires_grad=True)
        samples[f"{queries} x {taps} of {batch} x {side} x {side} x {groups * channels}"] = {
            name: _milliseconds(lambda form=form, each=(maps, points, weights): form(*each), device)
            for name, form in (("grid", weighted_samples), ("matrix", _by_matrix))
        }
    return {"neighbourhood": neighbourhoods, "sampling": samples, "step_ms": _step(device)}


def _by_matrix(maps: Tensor, points: Tensor, weights: Tensor) -> Tensor:
    """As `weighted_samples`: the weight of each pixel is a product of a hat function along either axis."""
    height, width = maps.shape[1:3]
    x, y = points.transpose(1, 2).unbind(-1)
    rows = _hats(y, height) * weights.transpose(1, 2)[..., None]
    of_pixels = (rows.transpose(-1, -2) @ _hats(x, width)).flatten(-2)
    return (of_pixels @ maps.flatten(1, 2).transpose(1, 2)).transpose(1, 2)


def _hats(places: Tensor, size: int) -> Tensor:
    return (1 - (torch.arange(size, device=places.device) - places[..., None]).abs()).relu()


def _step(device: torch.device) -> float:
    """Returns the milliseconds of forward, loss and backward of the small detector, 8 images of 96 pixels."""
    torch.manual_seed(0)
    network = HybridDetector(Settings(), 7).to(device)
    images = torch.randn(8, 3, 96, 96, device=device)
    boxes = torch.rand(8, 4, 4, device=device) * 0.3 + 0.2
    targets = Targets(boxes, torch.randint(7, (8, 4), device=device))
    return _milliseconds(lambda: detection_loss(network(images, targets), targets)["total"], device)


def _milliseconds(forward: Callable[[], Tensor], device: torch.device) -> float:
    def both() -> None:
        forward().sum().backward()

    for _ in range(3):
        both()
    return 1e3 * fastest_quartile([seconds(both, device) for _ in range(TIMES)])
