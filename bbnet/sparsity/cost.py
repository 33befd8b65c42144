"""What a sparsified network costs: densities and FLOPs."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from bbnet.sparsity.gate import Gates
from bbnet.sparsity.slab import LAYERS

PRODUCTS = (*LAYERS, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


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
def flops_by_module(model: nn.Module, inputs: tuple[Any, ...]) -> dict[str, int]:
    """Returns the FLOPs of `model(*inputs)` by the name of the module, the dense model's own under the name "".

    A multiplication and an addition are two FLOPs, as in torch's counter.
    """
    from torch.utils.flop_counter import FlopCounterMode  # imported late, since only few jobs count

    with _in_evaluation(model), FlopCounterMode(display=False) as counter:
        model(*inputs)
    counts = {name: sum(by_operator.values()) for name, by_operator in counter.get_flop_counts().items()}
    root = type(model).__name__
    layers = (name for name, _ in model.named_modules() if name)
    return {"": counts["Global"]} | {name: counts.get(f"{root}.{name}", 0) for name in layers}


@torch.no_grad()
def flops(
    model: nn.Module,
    inputs: tuple[Any, ...],
    masks: Mapping[str, Tensor],
    gates: Gates | None = None,
    by_module: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Returns the FLOPs of `model(*inputs)`: `dense`, and `sparse`, which is lower by each layer's saved share.

    The layer of a slab saves 1 - density. A layer behind gates saves the share of its inputs that the gates zero.

    Args:
        by_module: what `flops_by_module` returned for a model of the same shape; counted here by default.
    """
    saved = {name: 1 - density({name: mask}) for name, mask in masks.items()}
    if gates is not None:
        with _in_evaluation(model):
            saved |= _closed_inputs(model, inputs, gates)
    by_module = by_module or flops_by_module(model, inputs)
    dense = by_module[""]
    return {"dense": dense, "sparse": round(dense - sum(by_module[name] * saved[name] for name in saved))}


@contextmanager
def _in_evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, without the fused kernels of torch's attention and transformer layers, which are not counted."""
    in_training = [module for module in model.modules() if module.training]
    fused = torch.backends.mha.get_fastpath_enabled()
    model.eval()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for module in in_training:
            module.training = True


def _closed_inputs(model: nn.Module, inputs: tuple[Any, ...], gates: Gates) -> dict[str, float]:
    """By layer, the share of its inputs that are 0 because of the gates and would not be without.

    Every layer with weights is made to send positive noise, so that a 0 in what another reads comes from a gate, and
    came through activations, pooling and joins as a 0.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, PRODUCTS)}
    senders = [module for module in model.modules() if list(module.parameters(recurse=False))]
    share, live = gates.share, {}
    try:
        for open_to in (Decimal(1), share):
            gates.let_pass(open_to)
            live[open_to] = _live_inputs(model, inputs, layers, senders)
    finally:
        gates.let_pass(share)
    return {name: 1 - live[share][name] / live[Decimal(1)][name] for name in live[share] if live[Decimal(1)][name]}


def _live_inputs(
    model: nn.Module, inputs: tuple[Any, ...], layers: Mapping[str, nn.Module], senders: Iterable[nn.Module]
) -> dict[str, int]:
    """By layer, how many of the inputs that it reads are not 0 when `senders` send positive noise."""
    generator = torch.Generator().manual_seed(0)
    live: dict[str, int] = dict.fromkeys(layers, 0)

    def read(name: str) -> Callable:
        def count(module: nn.Module, arguments: tuple) -> None:
            live[name] += int(arguments[0].count_nonzero())

        return count

    def send(module: nn.Module, arguments: tuple, output: Any) -> Any:
        if not torch.is_tensor(output):
            return output
        return torch.rand(output.shape, generator=generator).add_(0.1).to(output)

    handles = [layer.register_forward_pre_hook(read(name)) for name, layer in layers.items()]
    handles += [module.register_forward_hook(send, prepend=True) for module in senders]
    try:
        model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return live
