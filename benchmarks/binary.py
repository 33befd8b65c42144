"""The cost of binary weights: steps of a ResNet-20 and of the default study's tasks, relative to float weights."""

from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
from cases import default_case
from loops import Arm, seconds
from torch import Tensor, nn
from torch.nn import functional

from bbnet.binary.binarizer import binarize

KINDS = {"float": None, "binary": False, "stochastic": True}  # whether weights are drawn
TASKS = ("asr", "change", "face")
STEPS = 200


class Block(nn.Module):
    """Two convolutions and a shortcut without weights (option A of He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.stride, self.more = outputs // inputs, outputs - inputs
        self.conv1, self.norm1 = nn.Conv2d(inputs, outputs, 3, self.stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
        shortcut = functional.pad(x[..., :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))
        return (inner + shortcut).relu()


class ResNet20Arm:
    """A ResNet-20 for CIFAR-10, with 269,722 parameters, that trains on one batch of 32 images."""

    def __init__(self, device: torch.device) -> None:
        torch.manual_seed(0)
        self.device = device
        widths = [16, 16, 16, 16, 32, 32, 32, 64, 64, 64]
        blocks = [Block(*pair) for pair in zip(widths, widths[1:], strict=False)]
        stem = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
        self.model = nn.Sequential(*stem, *blocks, *head).to(device, memory_format=torch.channels_last)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3, fused=True)
        images = torch.randn(32, 3, 32, 32, device=device)
        self.images = images.to(memory_format=torch.channels_last)
        self.labels = torch.randint(10, (32,), device=device)

    def step(self) -> float:
        return seconds(self._step, self.device)

    def _step(self) -> None:
        self.optimizer.zero_grad()
        functional.cross_entropy(self.model(self.images), self.labels).backward()
        self.optimizer.step()


def measure_binary(device: torch.device, folder: Path, report: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """Returns, per model, `step_ms` of float weights, and the ratios of steps by `KINDS`, of which all layers are
    binary; that of `float` shows the noise."""
    found = {}
    for title, make in {"ResNet-20": lambda: ResNet20Arm(device)}.items():
        report(f"binary, {title}")
        found[title] = _ratios(make, lambda arm: (arm.model, arm.optimizer), STEPS)
    for name in TASKS:
        report(f"binary, {name}")
        case = default_case(name, device, folder / name)
        found[f"{name}, default"] = _ratios(
            lambda case=case: Arm(case, "dense"), lambda arm: (arm.model, arm.trainer.optimizer), STEPS
        )
    return found


def _ratios(make: Callable[[], Any], parts: Callable[[Any], tuple], steps: int) -> dict[str, Any]:
    reference, arms, binarizers = make(), {kind: make() for kind in KINDS}, []
    for kind, stochastic in KINDS.items():
        if stochastic is not None:
            binarizers.append(binarize(*parts(arms[kind]), stochastic=stochastic))
    times: Mapping[str, list[float]] = {name: [] for name in ("reference", *KINDS)}
    for _ in range(steps):
        # Each step is compared with the float step just before it, because a noisy machine can be slow for minutes.
        for kind, arm in arms.items():
            before = reference.step()
            times["reference"].append(before)
            times[kind].append(arm.step() / before)
    warm = steps // 10
    ratios = {kind: median(times[kind][warm:]) for kind in KINDS}
    return {"step_ms": 1e3 * median(times["reference"]), "ratios": ratios}
