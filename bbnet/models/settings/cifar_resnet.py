"""The sizes of the ResNets for CIFAR (He et al. 2016, section 4.2)."""

STAGES = 3


def blocks_per_stage(depth: int) -> int:
    """Returns n for a network of 6n + 2 layers; raises ValueError for another depth."""
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"depth {depth} is not 6n + 2; allowed are 8, 14, 20, 26, 32, 38, 44, 50, 56, ..., 110, ...")
    return (depth - 2) // 6


def widths(width: int) -> list[int]:
    """Returns the channels of the three stages."""
    return [width * 2**stage for stage in range(STAGES)]


def fans(width: int) -> set[int]:
    """Returns the fans that occur among the slabs of the network, on any side."""
    return set(widths(width))
