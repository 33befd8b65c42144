"""Training of two Transformers of the usual sizes under each method and under other libraries: time and memory of a step.

The models are a GPT of 98 million parameters and a ViT-S, whose feed-forward layers are the slabs. Batches are small,
which makes the work on the weights large relative to that of the layers.
"""

import gc
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import prune

from bbnet.sparsity.plain.structure import find_slabs
from bbnet.sparsity.sparsifier import Sparsifier, sparsify

BUDGET = 0.5
EVERY = 10
ROUNDS = 3
METHODS = {"sp_in": "in", "sp_out": "out", "magnitude": "in", "rigl": "in"}


class Block(nn.Module):
    """A Transformer layer with its norms first."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mixed, self.joined = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.act, self.narrow = nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.mixed(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        x = x + self.joined(attended.transpose(1, 2).flatten(2))
        return x + self.narrow(self.act(self.wide(self.norm2(x))))


class GPT(nn.Module):
    """12 layers of width 768, 16,384 tokens, 98 million parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(16_384, 768), nn.Parameter(torch.zeros(64, 768))
        self.blocks = nn.Sequential(*(Block(768, 12, causal=True) for _ in range(12)))
        self.norm = nn.LayerNorm(768)

    def forward(self, tokens: Tensor) -> Tensor:
        return functional.linear(self.norm(self.blocks(self.embedding(tokens) + self.positions)), self.embedding.weight)

    @staticmethod
    def batch() -> tuple[Tensor, Tensor]:
        return torch.randint(16_384, (2, 64)), torch.randint(16_384, (2, 64))


class ViT(nn.Module):
    """ViT-S/16 for images of 224 pixels: 12 layers of width 384, 22 million parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.positions = nn.Conv2d(3, 384, 16, 16), nn.Parameter(torch.zeros(196, 384))
        self.blocks = nn.Sequential(*(Block(384, 6, causal=False) for _ in range(12)))
        self.norm, self.head = nn.LayerNorm(384), nn.Linear(384, 1000)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.patches(images).flatten(2).mT + self.positions)).mean(1))

    @staticmethod
    def batch() -> tuple[Tensor, Tensor]:
        return torch.randn(2, 3, 224, 224), torch.randint(1000, (2,))


MODELS = {"GPT, 98 M": GPT, "ViT-S": ViT}
