"""The sizes of causal decoders."""

from typing import Literal

FeedForwardKind = Literal["swiglu", "gelu", "relu"]
Which = Literal["wide", "all"]


def parameter_count(vocabulary: int, width: int, hidden: int, layers: int, kind: FeedForwardKind, tied: bool) -> int:
    """Returns the number of weights of a decoder, with its embedding, head and norms."""
    matrices = 3 if kind == "swiglu" else 2
    block = 4 * width**2 + matrices * width * hidden + 2 * width
    return (1 if tied else 2) * vocabulary * width + layers * block + width


def fans(width: int, hidden: int) -> set[int]:
    """Returns the fans that occur among the slabs of the network, on any side."""
    return {width, hidden}
