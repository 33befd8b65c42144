"""The backbone: a convolutional stem, and stages of residual blocks that mix places, each in one way."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from bbnet.models.hybrid_detector.gatefuse import GateFuse
from bbnet.models.hybrid_detector.injection import CrossScaleInjection, GradientInjection
from bbnet.models.hybrid_detector.layers import Convolution, FeedForward, LayerScale, MapNorm
from bbnet.models.operators.deformable_attention import DeformableAttention
from bbnet.models.operators.deformable_convolution import DeformableConvolution
from bbnet.models.operators.neighbourhood import NeighbourhoodAttention
from bbnet.models.settings import hybrid_detector as kinds

SQUEEZED = 8  # channels per hidden unit of squeeze and excitation


class SqueezeExcitation(nn.Module):
    """Factors per channel from the mean of all places (Hu et al. 2018), mixed with 1: 1 + mix (factor - 1)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, width // SQUEEZED)
        self.contract = nn.Linear(width // SQUEEZED, width)
        self.mix = nn.Parameter(torch.tensor([-2.0]))  # before a sigmoid

    def forward(self, maps: Tensor) -> Tensor:
        factors = self.contract(functional.relu(self.expand(maps.mean((1, 2), keepdim=True)))).sigmoid()
        return maps * (1 + self.mix.sigmoid() * (factors - 1))


class Mixer(nn.Module):
    """What mixes places: one operator or, with GateFuse, a deformable convolution and an attention, joined."""

    def __init__(self, kind: str, width: int, settings: kinds.HybridDetector, joined: bool) -> None:
        super().__init__()
        self.operator = _operator(kind, width, settings)
        self.beside, self.gate = None, None
        if joined:
            self.convolves = kind == "deformable_convolution"
            other = "neighbourhood" if self.convolves else "deformable_convolution"
            self.beside = _operator(other, width, settings)
            self.gate = GateFuse(width, width // kinds.SPAN)

    def forward(self, maps: Tensor) -> Tensor:
        mixed = self.operator(maps)
        if self.gate is None:
            return mixed
        beside = self.beside(maps)
        return self.gate(mixed, beside) if self.convolves else self.gate(beside, mixed)


def _operator(kind: str, width: int, settings: kinds.HybridDetector) -> nn.Module:
    sizes = settings.size
    if kind == "convolution":
        return Convolution(width, width, 3)
    if kind == "depthwise":
        return Convolution(width, width, sizes.kernel, groups=width)
    if kind == "deformable_convolution":
        return DeformableConvolution(width, settings.tap_scale)
    if kind == "deformable_attention":
        return DeformableAttention(width, sizes.head_width)
    return NeighbourhoodAttention(width, sizes.head_width, sizes.kernel)


class Block(nn.Module):
    """maps + scale * mixer(norm(maps)), then the same with a feed-forward layer, if `expansion` is not 0."""

    def __init__(self, width: int, mixer: Mixer, expansion: int, squeeze: bool) -> None:
        super().__init__()
        self.norm1 = MapNorm(width)
        self.mixer = mixer
        self.squeeze = SqueezeExcitation(width) if squeeze else nn.Identity()
        self.scale1 = LayerScale(width)
        self.ffn = FeedForward(width, expansion * width, width) if expansion else None
        if expansion:
            self.norm2 = MapNorm(width)
            self.scale2 = LayerScale(width)

    def forward(self, maps: Tensor) -> Tensor:
        maps = maps + self.scale1(self.squeeze(self.mixer(self.norm1(maps))))
        return maps if self.ffn is None else maps + self.scale2(self.ffn(self.norm2(maps)))


class SplitBlock(nn.Module):
    """A cross-stage partial block (Wang et al. 2020): half of the channels are mixed, the others pass a 1x1 layer."""

    def __init__(self, width: int, mixer: Mixer) -> None:
        super().__init__()
        self.left = nn.Linear(width // 2, width // 2)
        self.mixer = mixer
        self.merge = nn.Linear(width, width)
        self.norm = MapNorm(width)

    def forward(self, maps: Tensor) -> Tensor:
        left, right = maps.chunk(2, -1)
        merged = self.merge(torch.cat([self.left(left), self.mixer(right)], dim=-1))
        return maps + functional.silu(self.norm(merged))


class Stage(nn.Module):
    """A convolution with the stride, norm and GELU, what is injected from the maps before it, and the blocks.

    Args:
        inputs: channels of the maps before it.
        injected: whether the flags for injections apply.
    """

    def __init__(self, inputs: int, stage: kinds.Stage, settings: kinds.HybridDetector, injected: bool) -> None:
        super().__init__()
        width = stage.width
        self.down = nn.Sequential()
        if stage.separable:
            depthwise = Convolution(inputs, inputs, 3, stage.stride, groups=inputs)
            self.down = nn.Sequential(depthwise, nn.Linear(inputs, width), MapNorm(width), nn.GELU())
        elif stage.stride > 1 or inputs != width:
            self.down = nn.Sequential(Convolution(inputs, width, 3, stage.stride), MapNorm(width), nn.GELU())
        self.cross = CrossScaleInjection(inputs, width) if injected and settings.cross_scale_injection else None
        self.gradient = GradientInjection(inputs, width) if injected and settings.gradient_injection else None
        mixed = width // 2 if stage.split else width
        mixers = (
            Mixer(kind, mixed, settings, joined)
            for kind, joined in zip(_kinds(stage, settings.operator), _joins(stage, settings.gatefuse), strict=True)
        )
        self.blocks = nn.Sequential(
            *(
                SplitBlock(width, mixer) if stage.split else Block(width, mixer, stage.expansion, stage.squeeze)
                for mixer in mixers
            )
        )

    def forward(self, before: Tensor) -> Tensor:
        maps = self.down(before)
        if self.cross is not None:
            maps = self.cross(maps, before)
        if self.gradient is not None:
            maps = self.gradient(maps, before)
        return self.blocks(maps)


def _kinds(stage: kinds.Stage, operator: str) -> list[str]:
    """Returns the operator of each block. Every second slot, the last included, has true deformable attention."""
    found, deforms = [], True
    for kind in reversed(stage.blocks):
        if kind == "operator":
            kind = operator if operator != "deformable_attention" or deforms else "neighbourhood"
            deforms = not deforms
        found.append(kind)
    return found[::-1]


def _joins(stage: kinds.Stage, gatefuse: bool) -> list[bool]:
    return [gatefuse and stage.joined and kind in ("operator", "deformable_convolution") for kind in stage.blocks]


class Backbone(nn.Module):
    """The stem, of 3x3 convolutions with GELU, and the stages."""

    def __init__(self, settings: kinds.HybridDetector) -> None:
        super().__init__()
        sizes = settings.size
        self.levels = sizes.levels
        channels = [3, *(width for width, _ in sizes.stem)]
        self.stem = nn.ModuleList(
            Convolution(inputs, width, 3, stride) for inputs, (width, stride) in zip(channels, sizes.stem, strict=False)
        )
        self.norm = MapNorm(channels[-1])
        inputs = [channels[-1], *(stage.width for stage in sizes.stages)]
        self.stages = nn.ModuleList(
            Stage(before, stage, settings, injected=number > 0)
            for number, (before, stage) in enumerate(zip(inputs, sizes.stages, strict=False))
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps images [batch, 3, height, width] to the maps of the last stages, finest first, channels last."""
        return list(self._maps(images))[-self.levels :]

    def _maps(self, images: Tensor) -> Iterator[Tensor]:
        maps = images.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
        for number, convolution in enumerate(self.stem):
            maps = convolution(maps if number == 0 else functional.gelu(maps))
        maps = functional.gelu(self.norm(maps))
        for stage in self.stages:
            maps = stage(maps)
            yield maps
