"""The cost of a sparsified network: densities, bytes and FLOPs, of which a multiply-add (MAC) is two."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from bbnet.sparsity.gate import Gates
from bbnet.sparsity.slab import TRANSPOSED_CONVOLUTIONS, is_layer


def density(model: nn.Module, masks: Mapping[str, Tensor]) -> float:
    """Returns the kept share of the weights of all slabs."""
    total = sum(model.get_submodule(name).weight.numel() for name in masks)
    return (total - _pruned_weights(model, masks)) / total


def net_density(model: nn.Module, masks: Mapping[str, Tensor]) -> float:
    """Returns the kept share of all parameters of the network."""
    total = sum(parameter.numel() for parameter in model.parameters())
    return (total - _pruned_weights(model, masks)) / total


def _pruned_weights(model: nn.Module, masks: Mapping[str, Tensor]) -> int:
    kernels = {name: model.get_submodule(name).weight.numel() // mask.numel() for name, mask in masks.items()}
    return sum(kernels[name] * int((~mask).sum()) for name, mask in masks.items())


def stored_bytes(model: nn.Module, masks: Mapping[str, Tensor], binary: Collection[str] = ()) -> int:
    """Returns the bytes in which a file can hold the model's parameters and buffers, without names and header.

    A parameter or buffer takes the bytes of its dtype. Of a slab that is pruned, the live weights take these bytes, and
    the mask takes a bit per connection. The live weights of a layer in `binary` take a bit each, and their absolute
    value the bytes of the dtype. Bits are rounded up to bytes for each layer.
    """
    held = model.state_dict()
    total = sum(value.numel() * value.element_size() for value in held.values())
    for name in {*masks, *binary}:
        weight = model.get_submodule(name).weight
        mask, live = masks.get(name), weight.numel()
        total -= live * weight.element_size()
        if mask is not None and not bool(mask.all()):
            live = int(mask.sum()) * (live // mask.numel())
            total += -(-mask.numel() // 8)
        total += -(-live // 8) + weight.element_size() if name in binary else live * weight.element_size()
    return total


@torch.no_grad()
def flops_by_module(model: nn.Module, inputs: tuple[Any, ...]) -> dict[str, int]:
    """Returns the FLOPs of `model(*inputs)` by name of the module, for a dense model; the total is under the name "".

    A multiplication and an addition are two FLOPs, as in torch's counter.
    """
    from torch.utils.flop_counter import FlopCounterMode  # imported here because few jobs need it

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
    """Returns the FLOPs of `model(*inputs)`: `dense`, and `sparse`, which excludes the share that each layer saves.

    The layer of a slab saves 1 - density. A layer after gates saves the share of its inputs that the gates set to 0.

    Args:
        by_module: result of `flops_by_module` for a model of the same shape; computed by default.
    """
    saved = _saved_shares(model, inputs, masks, gates)
    by_module = by_module or flops_by_module(model, inputs)
    dense = by_module[""]
    return {"dense": dense, "sparse": round(dense - sum(by_module[name] * saved[name] for name in saved))}


@torch.no_grad()
def flops_of_slabs(
    model: nn.Module,
    inputs: tuple[Any, ...],
    masks: Mapping[str, Tensor],
    gates: Gates | None = None,
    by_module: Mapping[str, int] | None = None,
) -> dict[str, dict[str, int]]:
    """Returns the FLOPs of the layer of each slab in `model(*inputs)`, as `flops` does for the whole model."""
    saved = _saved_shares(model, inputs, masks, gates)
    by_module = by_module or flops_by_module(model, inputs)
    return {name: {"dense": by_module[name], "sparse": round(by_module[name] * (1 - saved[name]))} for name in masks}


def _saved_shares(
    model: nn.Module, inputs: tuple[Any, ...], masks: Mapping[str, Tensor], gates: Gates | None
) -> dict[str, float]:
    """Returns the share of its FLOPs that each layer saves, by masks or gates."""
    saved = {name: int((~mask).sum()) / mask.numel() for name, mask in masks.items()}
    if gates is not None:
        with _in_evaluation(model):
            saved |= _closed_inputs(model, inputs, gates)
    return saved


@contextmanager
def _in_evaluation(model: nn.Module) -> Iterator[None]:
    """Sets evaluation mode and disables fused attention and transformer kernels, which the counter does not count."""
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
    """Returns, by layer, the share of its inputs that are 0 only because of the gates.

    The outputs of all modules with parameters are replaced by positive noise, so that an additional 0 in a layer's
    input can only come from a gate, through activations, pooling and joins.
    """
    layers = {
        name: module
        for name, module in model.named_modules()
        if is_layer(module) or isinstance(module, TRANSPOSED_CONVOLUTIONS)
    }
    noisy = [module for module in model.modules() if list(module.parameters(recurse=False))]
    share, live = gates.share, {}
    try:
        for each in (Decimal(1), share):
            gates.set_share(each)
            live[each] = _live_inputs(model, inputs, layers, noisy)
    finally:
        gates.set_share(share)
    return {name: 1 - live[share][name] / live[Decimal(1)][name] for name in live[share] if live[Decimal(1)][name]}


def _live_inputs(
    model: nn.Module, inputs: tuple[Any, ...], layers: Mapping[str, nn.Module], noisy: Iterable[nn.Module]
) -> dict[str, int]:
    """Returns, by layer, the number of its non-zero inputs when the outputs of `noisy` are positive noise."""
    generator = torch.Generator().manual_seed(0)
    live: dict[str, int] = dict.fromkeys(layers, 0)

    def count(name: str, module: nn.Module, arguments: tuple) -> None:
        live[name] += int(arguments[0].count_nonzero())

    def replace_output(module: nn.Module, arguments: tuple, output: Any) -> Any:
        if not torch.is_tensor(output):
            return output
        return torch.rand(output.shape, generator=generator).add_(0.1).to(output)

    handles = [layer.register_forward_pre_hook(partial(count, name)) for name, layer in layers.items()]
    handles += [module.register_forward_hook(replace_output, prepend=True) for module in noisy]
    try:
        model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return live
