"""A causal decoder for text: RMSNorm, rotary positions, and a feed-forward layer of SwiGLU, GELU or ReLU; its slabs."""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from bbnet.models.settings.decoder import FeedForwardKind
from bbnet.sparsity.slab import Side, Slab

ROTARY_BASE = 10_000.0
EPSILON = 1e-5  # of the norms
INITIAL_SD = 0.02


def rotary_angles(length: int, head_width: int, device: torch.device) -> Tensor:
    """Returns the angle by which each pair of features is rotated at each position, float32 [length, head width / 2].

    Pair i turns by ROTARY_BASE ** (-2 i / head width) per position (Su et al. 2021, arXiv 2104.09864, equation 15).
    """
    rates = ROTARY_BASE ** (-torch.arange(0, head_width, 2, device=device, dtype=torch.float32) / head_width)
    return torch.arange(length, device=device, dtype=torch.float32)[:, None] * rates


def rotated(features: Tensor, angles: Tensor) -> Tensor:
    """Rotates features [..., length, head width], of which feature i and i + head width / 2 are a pair."""
    first, second = features.float().chunk(2, dim=-1)
    cosine, sine = angles.cos(), angles.sin()
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1).to(features.dtype)


class CausalAttention(nn.Module):
    """Multi-head attention to the present and earlier positions (Vaswani et al. 2017), with rotary positions.

    Attributes:
        mixed: passes on what `output` reads, so that its units can be observed.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.mixed = nn.Identity()
        self.output = nn.Linear(width, width, bias=False)

    def forward(self, states: Tensor, angles: Tensor) -> Tensor:
        query, key, value = (
            layer(states).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(
            rotated(query, angles), rotated(key, angles), value, is_causal=True
        )
        return self.output(self.mixed(mixed.transpose(1, 2).flatten(2)))


class FeedForward(nn.Module):
    """A feed-forward layer. Its units are those of `gate`, whose pre-activation decides whether a unit is on.

    With `gelu` and `relu` it is down(f(gate(x))); with `swiglu` (Shazeer 2020, arXiv 2002.05202) it is
    down(silu(gate(x)) * up(x)).
    """

    def __init__(self, width: int, hidden: int, kind: FeedForwardKind) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False) if kind == "swiglu" else None
        self.activation = {"swiglu": nn.SiLU, "gelu": nn.GELU, "relu": nn.ReLU}[kind]()
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        hidden = self.activation(self.gate(states))
        return self.down(hidden if self.up is None else hidden * self.up(states))


class Block(nn.Module):
    """Attention and a feed-forward layer, each behind a norm and beside a residual connection."""

    def __init__(self, width: int, hidden: int, heads: int, kind: FeedForwardKind, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(width, eps=EPSILON)
        self.attention = CausalAttention(width, heads)
        self.ffn_norm = nn.RMSNorm(width, eps=EPSILON)
        self.ffn = FeedForward(width, hidden, kind)
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor, angles: Tensor) -> Tensor:
        states = states + self.dropout(self.attention(self.attention_norm(states), angles))
        return states + self.dropout(self.ffn(self.ffn_norm(states)))


class CausalDecoder(nn.Module):
    """Predicts the next token at every position. No layer has a bias.

    Weights are drawn from a normal distribution of standard deviation 0.02; those that add to the residual stream
    from one that is narrower by sqrt(2 * layers), as in GPT-2 (Radford et al. 2019).

    Args:
        vocabulary: number of tokens.
        width: features of the residual stream, a multiple of twice `heads`.
        hidden: units of each feed-forward layer.
        kind: the feed-forward layer.
        tied: whether the head has the weights of the embedding.
        dropout: dropout of the embedding, and of what each layer adds to the residual stream.
    """

    def __init__(
        self,
        vocabulary: int,
        width: int,
        hidden: int,
        layers: int,
        heads: int,
        kind: FeedForwardKind = "swiglu",
        tied: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if width % (2 * heads):
            raise ValueError(f"width {width} is not a multiple of twice the {heads} heads")
        self.head_width = width // heads
        self.embedding = nn.Embedding(vocabulary, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, hidden, heads, kind, dropout) for _ in range(layers))
        self.norm = nn.RMSNorm(width, eps=EPSILON)
        self.head = nn.Linear(width, vocabulary, bias=False)
        for name, weight in self.named_parameters():
            if weight.dim() > 1:
                adds = name.endswith(("attention.output.weight", "ffn.down.weight"))
                nn.init.normal_(weight, std=INITIAL_SD / math.sqrt(2 * layers) if adds else INITIAL_SD)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps tokens [batch, length] to the logits of each next token, [batch, length, vocabulary]."""
        angles = rotary_angles(tokens.shape[1], self.head_width, tokens.device)
        states = self.dropout(self.embedding(tokens))
        for block in self.blocks:
            states = block(states, angles)
        return self.head(self.norm(states))


def slabs(
    network: nn.Module, which: Literal["wide", "all"], side: Literal["in", "out", "both"], prefix: str = ""
) -> list[Slab]:
    """Returns the matrices that may be sparsified, which are the same on all sides.

    `wide` selects those of the feed-forward layers, `all` also the projections of the attention. A unit is on where
    its pre-activation is above 0; a hidden unit of SwiGLU where that of its gate is. On side `in` the units are a
    layer's outputs, on side `out` its inputs: those of the norm before it, of the hidden layer, or of the heads. On
    side `both` all matrices of a feed-forward layer belong to its hidden units, and those of an attention to its heads.

    Args:
        prefix: what stands before the names of the network's modules in those of the whole model, such as `backbone.`.
    """
    found = []
    for name, block in network.named_modules(prefix=prefix.removesuffix(".")):
        if not isinstance(block, Block):
            continue
        if which == "all":
            for layer in ("query", "key", "value"):
                found.append(_slab(f"{name}.attention.{layer}", f"{name}.attention_norm", side, "in"))
            found.append(_slab(f"{name}.attention.output", f"{name}.attention.mixed", side, "out"))
        gate = f"{name}.ffn.gate"
        for layer in ("gate", "up") if block.ffn.up is not None else ("gate",):
            found.append(_slab(f"{name}.ffn.{layer}", f"{name}.ffn_norm", side, "in", outputs=gate))
        found.append(_slab(f"{name}.ffn.down", gate, side, "out"))
    return found


def _slab(layer: str, inputs: str, side: Literal["in", "out", "both"], inner: Side, outputs: str | None = None) -> Slab:
    """Returns the slab of a layer; `inner` is its side towards the units of the block, which `both` chooses."""
    own = inner if side == "both" else side
    return Slab(layer, own, inputs if own == "out" else outputs or layer)
