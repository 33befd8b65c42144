"""Slabs: weights that may be sparsified, viewed as the connections of the units that own their rows or columns."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.optim.swa_utils import AveragedModel

from bbnet.sparsity.degrees import check_feasible
from bbnet.sparsity.limits import SMALLEST_FAN, smallest_degree

Side = Literal["in", "out"]
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED_CONVOLUTIONS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
LAYERS = (nn.Linear, *CONVOLUTIONS)
CHANNELS_FIRST = (*CONVOLUTIONS, *TRANSPOSED_CONVOLUTIONS, *BATCH_NORMS, *INSTANCE_NORMS, nn.GroupNorm)


def is_transposed(layer: nn.Module) -> bool:
    """Returns whether a layer is a linear one with a weight [in, out], as Conv1D of transformers (GPT-2) is."""
    return any(
        kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils" for kind in type(layer).__mro__
    )


def is_layer(module: nn.Module) -> bool:
    """Returns whether a module is of a kind whose weight can be masked."""
    return isinstance(module, LAYERS) or is_transposed(module)


@dataclass(frozen=True)
class Slab:
    """One weight and its units.

    Args:
        name: dotted name of the layer that has this `weight`.
        side: `in` if the units are the layer's outputs and own the weight's rows; `out` if they are its inputs and own
            the columns.
        units: dotted name(s) of the modules whose outputs are the units, with channels concatenated in this order. A
            unit is on where its output is above 0. This may be the linear or norm layer before the activation, since
            ReLU, GELU and SiLU keep its sign, but not the layer's own input if that has passed through dropout.
        normalised: whether a norm acts on the units' own pre-activations, so that rescaling rows has no effect.
    """

    name: str
    side: Side
    units: str | tuple[str, ...]
    normalised: bool = False

    def __post_init__(self) -> None:
        if self.side not in ("in", "out"):
            raise ValueError(f"slab {self.name}: side {self.side!r} is not 'in' or 'out'")
        units = (self.units,) if isinstance(self.units, str) else tuple(self.units)
        object.__setattr__(self, "units", units)


def stored_side(layer: nn.Module, side: Side) -> Side:
    """Returns the side that the functions below need: the other one for a weight that is stored as [in, out]."""
    return {"in": "out", "out": "in"}[side] if is_transposed(layer) else side


def connections(weight: Tensor, side: Side) -> Tensor:
    """Returns a view of a weight [out, in, *taps] as [units, fan, taps]."""
    view = weight.unsqueeze(2) if weight.dim() == 2 else weight.flatten(2)
    return view if side == "in" else view.transpose(0, 1)


def connection_norms(weight: Tensor, side: Side) -> Tensor:
    """Returns the magnitude of each connection, [units, fan]: the l2 norm over its taps, in float32 or better."""
    taps = tuple(range(2, weight.dim()))
    if weight.dtype in (torch.float16, torch.bfloat16):
        weight = weight.float()
    norms = weight.square().sum(taps).sqrt_() if taps else weight.abs()
    return norms if side == "in" else norms.T


def over_weight(per_connection: Tensor, weight: Tensor, side: Side) -> Tensor:
    """Reshapes [units, fan] or [units, 1] to the axes of the weight, broadcastable over its taps."""
    matrix = per_connection if side == "in" else per_connection.T
    return matrix.reshape(*matrix.shape, *(1 for _ in range(weight.dim() - 2)))


def unwrap(model: nn.Module) -> nn.Module:
    """Returns the model inside DistributedDataParallel, AveragedModel or torch.compile, whose modules slabs name."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel | AveragedModel):
            model = model.module
        elif hasattr(model, "_orig_mod"):
            model = model._orig_mod
        else:
            return model


def slab_weight(model: nn.Module, slab: Slab) -> nn.Parameter:
    """Returns the parameter that `slab` names; raises ValueError if it does not exist or cannot be masked."""
    try:
        layer = model.get_submodule(slab.name)
        for name in slab.units:
            model.get_submodule(name)
    except AttributeError as error:
        raise ValueError(f"slab {slab.name}: {error}") from None
    if not is_layer(layer):
        allowed = ", ".join(kind.__name__ for kind in LAYERS)
        raise ValueError(f"slab {slab.name}: cannot mask a {type(layer).__name__}, allowed: {allowed}")
    if isinstance(layer, NonDynamicallyQuantizableLinear):
        raise ValueError(
            f"slab {slab.name}: the projection of an attention, which is not called as a layer, is not supported"
        )
    if getattr(layer, "groups", 1) != 1:
        raise ValueError(f"slab {slab.name}: grouped convolutions are not supported")
    if "weight" not in layer._parameters:
        raise ValueError(
            f"slab {slab.name}: its weight is computed from other parameters (weight_norm, spectral_norm, prune), so a "
            "pruned weight would not stay 0; remove the parametrization first"
        )
    return layer.weight


def slab_shape(weight: Tensor, side: Side) -> tuple[int, int]:
    """Returns (units, fan) of a weight [out, in, *taps]."""
    outputs, inputs = weight.shape[:2]
    return (outputs, inputs) if side == "in" else (inputs, outputs)


def layer_shape(layer: nn.Module, side: Side) -> tuple[int, int]:
    """Returns (units, fan) of a layer."""
    return slab_shape(layer.weight, stored_side(layer, side))


def unit_modules(model: nn.Module, slabs: Iterable[Slab]) -> dict[str, nn.Module]:
    """Returns the modules at which the units of slabs are read, by name."""
    return {name: model.get_submodule(name) for slab in slabs for name in slab.units}


def channels_first(model: nn.Module, slabs: Iterable[Slab]) -> dict[str, int]:
    """Returns the names of the `unit_modules` with units on axis 1, as for slabs of convolutions, not on the last.

    The value is the number of axes of an output without a batch axis, whose units are on axis 0; 0 if there is none.
    """
    slabs = list(slabs)
    modules = unit_modules(model, slabs)
    found = {name: 0 for name, module in modules.items() if isinstance(module, CHANNELS_FIRST)}
    for slab in slabs:
        axes = model.get_submodule(slab.name).weight.dim() - 1
        found |= {name: axes for name in slab.units if axes > 1}
    return found


def choose_slabs(
    model: nn.Module, candidates: Iterable[Slab], smallest_budget: Decimal
) -> tuple[list[Slab], dict[str, str]]:
    """Returns the candidates that can meet the study's smallest budget, and why each of the others stays dense."""
    chosen, dense = [], {}
    for slab in candidates:
        slab_weight(model, slab)
        _, fan = layer_shape(model.get_submodule(slab.name), slab.side)
        if fan < SMALLEST_FAN:
            dense[slab.name] = f"fan {fan} is below {SMALLEST_FAN}"
        elif smallest_degree(fan) > smallest_budget * fan:
            dense[slab.name] = f"k_min {smallest_degree(fan)} of fan {fan} exceeds budget {smallest_budget}"
        else:
            chosen.append(slab)
    return chosen, dense


def check_slabs(
    model: nn.Module, slabs: Iterable[Slab], budget: Decimal, k_min: Callable[[int], int] = smallest_degree
) -> dict[Slab, nn.Parameter]:
    """Returns the weight of each slab; raises ValueError if two slabs share a weight or one cannot meet the budget.

    Args:
        k_min: returns the smallest degree of a unit, given its fan.
    """
    weights: dict[Slab, nn.Parameter] = {}
    owners: dict[int, Slab] = {}
    holders: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            holders.setdefault(id(parameter), []).append(name)
    for slab in slabs:
        if not isinstance(slab, Slab):
            raise ValueError(f"slabs must be bbnet.Slab objects, as bbnet.find_slabs returns them, got {slab!r}")
        weight = slab_weight(model, slab)
        if id(weight) in owners:
            other = owners[id(weight)]
            taken = f"slab {other.name} (side {other.side})"
            raise ValueError(f"slab {slab.name} (side {slab.side}): its weight already belongs to {taken}")
        _, fan = layer_shape(model.get_submodule(slab.name), slab.side)
        try:
            check_feasible(budget, fan, k_min(fan), fan)
        except ValueError as error:
            raise ValueError(f"slab {slab.name}: {error}") from None
        others = [
            name for name in holders[id(weight)] if model.get_submodule(name) is not model.get_submodule(slab.name)
        ]
        if others:
            raise ValueError(
                f"slab {slab.name}: its weight is also that of {', '.join(others)}, which would be pruned too"
            )
        owners[id(weight)] = slab
        weights[slab] = weight
    if not weights:
        raise ValueError("no slabs to sparsify")
    return weights
