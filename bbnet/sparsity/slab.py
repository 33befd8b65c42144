"""Slabs: the weights that may be sparsified, seen as connections of the units that own their rows or columns."""

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from bbnet.sparsity.degrees import check_feasible
from bbnet.sparsity.limits import SMALLEST_FAN, smallest_degree

Side = Literal["in", "out"]
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
CHANNELS_FIRST = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.GroupNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
)


@dataclass(frozen=True)
class Slab:
    """One weight and its units.

    Args:
        name: dotted name of the layer whose `weight` it is.
        side: `in`, the units are the layer's outputs and own the weight's rows; `out`, they are its inputs and own
            the columns.
        units: dotted name(s) of the modules whose outputs, channels joined in this order, are the units: on means an
            output above 0. The linear or norm layer before the activation will do, its sign is that of ReLU, GELU
            and SiLU; the layer's own input will not, dropout has acted there.
        normalised: a norm acts on the units' own pre-activations, so that rescaling rows would do nothing.
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


def connections(weight: Tensor, side: Side) -> Tensor:
    """View of a weight [out, in, *taps] as [units, fan, taps]."""
    view = weight.unsqueeze(2) if weight.dim() == 2 else weight.flatten(2)
    return view if side == "in" else view.transpose(0, 1)


def connection_norms(weight: Tensor, side: Side) -> Tensor:
    """Magnitude of each connection [units, fan]: the l2 norm over its taps, in float32 or better."""
    taps = tuple(range(2, weight.dim()))
    if weight.dtype in (torch.float16, torch.bfloat16):
        weight = weight.float()
    norms = weight.square().sum(taps).sqrt_() if taps else weight.abs()
    return norms if side == "in" else norms.T


def over_weight(per_connection: Tensor, weight: Tensor, side: Side) -> Tensor:
    """[units, fan] or [units, 1] brought into the weight's axes, broadcastable over its taps."""
    matrix = per_connection if side == "in" else per_connection.T
    return matrix.reshape(*matrix.shape, *(1 for _ in range(weight.dim() - 2)))


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel, AveragedModel or torch.compile; slabs are named by its modules."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel | AveragedModel):
            model = model.module
        elif hasattr(model, "_orig_mod"):
            model = model._orig_mod
        else:
            return model


def slab_weight(model: nn.Module, slab: Slab) -> nn.Parameter:
    """The parameter that `slab` names; raises ValueError if there is none that can be masked."""
    try:
        layer = model.get_submodule(slab.name)
        for name in slab.units:
            model.get_submodule(name)
    except AttributeError as error:
        raise ValueError(f"slab {slab.name}: {error}") from None
    if not isinstance(layer, LAYERS):
        allowed = ", ".join(kind.__name__ for kind in LAYERS)
        raise ValueError(f"slab {slab.name}: cannot mask a {type(layer).__name__}, allowed: {allowed}")
    if getattr(layer, "groups", 1) != 1:
        raise ValueError(f"slab {slab.name}: grouped convolutions are not supported")
    if "weight" not in layer._parameters:
        raise ValueError(
            f"slab {slab.name}: its weight is computed from other parameters (weight_norm, spectral_norm, prune), so a "
            "pruned weight would not stay 0; remove the parametrization first"
        )
    return layer.weight


def slab_shape(weight: Tensor, side: Side) -> tuple[int, int]:
    """(units, fan) of a weight."""
    outputs, inputs = weight.shape[:2]
    return (outputs, inputs) if side == "in" else (inputs, outputs)


def unit_modules(model: nn.Module, slabs: Iterable[Slab]) -> dict[str, nn.Module]:
    """The modules at which the units of slabs are read, by name."""
    return {name: model.get_submodule(name) for slab in slabs for name in slab.units}


def channels_first(model: nn.Module, slabs: Iterable[Slab]) -> set[str]:
    """Those of `unit_modules` whose units are axis 1, not the last: units of a convolution's slab are channels."""
    slabs = list(slabs)
    by_slab = {name for slab in slabs for name in slab.units if model.get_submodule(slab.name).weight.dim() > 2}
    return by_slab | {name for name, module in unit_modules(model, slabs).items() if isinstance(module, CHANNELS_FIRST)}


def choose_slabs(
    model: nn.Module, candidates: Iterable[Slab], smallest_budget: Decimal
) -> tuple[list[Slab], dict[str, str]]:
    """The candidates that can be sparsified down to the study's smallest budget, and why each other one stays dense."""
    chosen, dense = [], {}
    for slab in candidates:
        _, fan = slab_shape(slab_weight(model, slab), slab.side)
        if fan < SMALLEST_FAN:
            dense[slab.name] = f"fan {fan} is below {SMALLEST_FAN}"
        elif smallest_degree(fan) > smallest_budget * fan:
            dense[slab.name] = f"k_min {smallest_degree(fan)} of fan {fan} exceeds budget {smallest_budget}"
        else:
            chosen.append(slab)
    return chosen, dense


def check_slabs(model: nn.Module, slabs: Iterable[Slab], budget: Decimal) -> dict[Slab, nn.Parameter]:
    """The weight of each slab; raises ValueError for a weight claimed twice or a budget that a slab cannot meet."""
    weights: dict[Slab, nn.Parameter] = {}
    owners: dict[int, Slab] = {}
    for slab in slabs:
        if not isinstance(slab, Slab):
            raise ValueError(f"slabs are bbnet.Slab, such as bbnet.find_slabs returns, got {slab!r}")
        weight = slab_weight(model, slab)
        if id(weight) in owners:
            other = owners[id(weight)]
            raise ValueError(
                f"slab {slab.name} (side {slab.side}): its weight already belongs to "
                f"slab {other.name} (side {other.side})"
            )
        _, fan = slab_shape(weight, slab.side)
        try:
            check_feasible(budget, fan, smallest_degree(fan), fan)
        except ValueError as error:
            raise ValueError(f"slab {slab.name}: {error}") from None
        owners[id(weight)] = slab
        weights[slab] = weight
    if not weights:
        raise ValueError("no slabs to sparsify")
    return weights
