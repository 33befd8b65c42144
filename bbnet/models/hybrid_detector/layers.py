"""Layers that several parts of the detector use. Channels are on the last axis."""

import math
import zlib

import torch
from torch import Tensor, nn
from torch.nn import functional


class FeedForward(nn.Module):
    """Two linear layers with GELU between them, or SwiGLU (Shazeer 2020). The hidden units are those of `expand`."""

    def __init__(self, inputs: int, hidden: int, outputs: int, gated: bool = False) -> None:
        super().__init__()
        self.expand = nn.Linear(inputs, hidden)
        self.factor = nn.Linear(inputs, hidden) if gated else None
        self.contract = nn.Linear(hidden, outputs)

    def forward(self, states: Tensor) -> Tensor:
        inner = self.expand(states)
        if self.factor is None:
            return self.contract(functional.gelu(inner))
        return self.contract(functional.silu(inner) * self.factor(states))


class LayerScale(nn.Module):
    """A learned factor per channel (Touvron et al. 2021), which begins at .3."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.full((width,), 0.3))

    def forward(self, states: Tensor) -> Tensor:
        return states * self.factor


class Convolution(nn.Module):
    """A convolution of maps [batch, height, width, channels], padded so that only its stride shrinks them."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.planes = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups)

    def forward(self, maps: Tensor) -> Tensor:
        return self.planes(maps.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class MapNorm(nn.Module):
    """Group norm (Wu and He 2018) of maps [batch, height, width, channels], in groups of about 16 channels.

    Statistics are those of an image, so neither other images nor the mode of the network matter.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.planes = nn.GroupNorm(math.gcd(width, max(1, width // 16)), width)

    def forward(self, maps: Tensor) -> Tensor:
        return self.planes(maps.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class SelfAttention(nn.Module):
    """Multi-head attention among states, whose positions are added to queries and keys."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key = nn.Linear(width, 2 * width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, states: Tensor, positions: Tensor, allowed: Tensor | None = None) -> Tensor:
        """Returns [batch, length, width]. `allowed`, bool [batch, 1, length, length], says who sees whom."""
        query, key = self.query_key(states + positions).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        value = self.value(states).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
        return self.output(mixed.transpose(1, 2).flatten(2))


def resized(maps: Tensor, like: Tensor) -> Tensor:
    """Returns maps at the height and width of others, [batch, height, width, channels].

    They are shrunk by means over pixels, and enlarged bilinearly.
    """
    size = like.shape[1:3]
    if maps.shape[1:3] == size:
        return maps
    planes = maps.permute(0, 3, 1, 2)
    if size[0] * size[1] < maps.shape[1] * maps.shape[2]:
        planes = functional.adaptive_avg_pool2d(planes, size)
    else:
        planes = functional.interpolate(planes, size=size, mode="bilinear", align_corners=False)
    return planes.permute(0, 2, 3, 1)


def new_seed() -> int:
    """Draws a seed from torch's global generator of the CPU, for `draw_by_name`; call it before modules are made."""
    return int(torch.randint(2**62, ()))


def draw_by_name(network: nn.Module, seed: int) -> None:
    """Draws the initial weights of every module from a generator of its own, which depends on `seed` and its name.

    So networks that differ in some modules have the same initial weights in all others. Convolutions are drawn from
    normal distributions of He et al. (2015), by fan-out, linear layers as by Glorot and Bengio (2010), and biases are
    0; a module whose parts begin otherwise sets them in its `reset_parameters`.
    """
    # A module may set what its children have drawn, so children, which come later, are first.
    modules = [(name, module) for name, module in network.named_modules() if hasattr(module, "reset_parameters")]
    with torch.random.fork_rng(devices=[]):
        for name, module in reversed(modules):
            torch.manual_seed(seed ^ zlib.crc32(name.encode()))
            module.reset_parameters()
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
