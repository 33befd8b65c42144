"""What a sparsified network costs: densities and FLOPs."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def density(masks: Mapping[str, Tensor]) -> float:
    """Kept share of the connections of all slabs."""
    return sum(int(mask.sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())


def net_density(model: nn.Module, masks: Mapping[str, Tensor]) -> float:
    """Kept share of all weights and biases of the network."""
    total = sum(parameter.numel() for parameter in model.parameters())
    pruned = 0
    for name, mask in masks.items():
        taps = model.get_submodule(name).weight.numel() // mask.numel()
        pruned += taps * int((~mask).sum())
    return (total - pruned) / total


@torch.no_grad()
def flops(model: nn.Module, inputs: tuple[Any, ...], masks: Mapping[str, Tensor]) -> dict[str, int]:
    """FLOPs of `model(*inputs)`: `dense`, and `sparse` = dense - sum over slabs of the slab's FLOPs * (1 - density).

    A multiply and an add are two FLOPs, as torch's counter has it.
    """
    in_training = [module for module in model.modules() if module.training]
    model.eval()
    with FlopCounterMode(display=False) as counter:
        model(*inputs)
    for module in in_training:
        module.training = True
    root = type(model).__name__
    by_module = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    dense = by_module["Global"]
    saved = sum(by_module[f"{root}.{name}"] * (1 - density({name: mask})) for name, mask in masks.items())
    return {"dense": dense, "sparse": round(dense - saved)}
