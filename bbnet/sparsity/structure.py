"""Structure: where the hidden units of a plain PyTorch model are, found by following its data flow.

The model is traced with torch.fx, layers of torch.nn being single steps; of torch's own transformer layers the
feed-forward block is traced by itself. A module that cannot be traced, its control flow depending on data, falls into
its children: patterns across their boundaries are then not seen. Tracing is done in evaluation mode on a copy without
weights.
"""

import copy
import inspect
import operator
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.parameter import is_lazy

from bbnet.sparsity.slab import LAYERS, SMALLEST_FAN, Slab, slab_shape

TRANSFORMER_LAYERS = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
IDENTITIES = (
    nn.Identity,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)
# Above 0 exactly where their input is; of the leaky ones, that holds unless their slope is negative.
ACTIVATIONS = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.ELU,
    nn.CELU,
    nn.SELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Hardswish,
)
ACTIVATION_METHODS = ("relu", "relu_")
SLOPES = ("negative_slope", "alpha")
METADATA = ("size", "dim", "numel", "shape", "ndim", "device", "dtype")


def _functions(*names: str) -> set[Callable]:
    return {getattr(home, name) for home in (functional, torch, operator) for name in names if hasattr(home, name)}


_ACTIVATION_NAMES = ("relu", "relu6", "leaky_relu", "elu", "celu", "selu", "gelu", "silu", "mish", "hardswish")
ACTIVATION_FUNCTIONS = _functions(*_ACTIVATION_NAMES, *(f"{name}_" for name in _ACTIVATION_NAMES))
DROPOUT_FUNCTIONS = _functions("dropout", "dropout1d", "dropout2d", "dropout3d")
PRODUCTS = _functions("linear", "bilinear", "conv1d", "conv2d", "conv3d", "matmul", "mm", "bmm", "einsum")

# Per number of axes that the weight of a layer has beyond [out, in]: a pool or norm that takes its outputs as channels.
POOLS = {0: ()} | {
    axes: tuple(
        getattr(nn, f"{kind}Pool{axes}d") for kind in ("Max", "Avg", "AdaptiveMax", "AdaptiveAvg", "LP")
    )
    for axes in (1, 2, 3)
}
POOL_FUNCTIONS = {0: set()} | {
    axes: _functions(*(f"{kind}_pool{axes}d" for kind in ("max", "avg", "adaptive_max", "adaptive_avg", "lp")))
    for axes in (1, 2, 3)
}
_NORMS_OF_ALL = (nn.SyncBatchNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
NORMS = {
    0: (nn.BatchNorm1d, *_NORMS_OF_ALL),
    1: (nn.BatchNorm1d, nn.InstanceNorm1d, *_NORMS_OF_ALL),
    2: (nn.BatchNorm2d, nn.InstanceNorm2d, *_NORMS_OF_ALL),
    3: (nn.BatchNorm3d, nn.InstanceNorm3d, *_NORMS_OF_ALL),
}
ALL_NORMS = tuple({kind for kinds in NORMS.values() for kind in kinds})


class Kept(IntEnum):
    """What comes unchanged through the steps between an activation and the layers that read it, in evaluation mode."""

    NOTHING = 0
    ZEROS = 1
    CONSTANTS = 2


@dataclass(frozen=True)
class FunctionalActivation:
    """An activation that is a function or a method of tensors, with its further arguments."""

    function: Callable[..., Tensor] | str
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]

    def __call__(self, values: Tensor) -> Tensor:
        function = getattr(Tensor, self.function) if isinstance(self.function, str) else self.function
        return function(values, *self.args, **dict(self.kwargs))


@dataclass(frozen=True)
class Chain:
    """Hidden units: the outputs of `producer`, through `norm` if there is one, at `activation`; `consumers` read them.

    Args:
        producer: dotted name of a Linear or convolution.
        norm: dotted name of the norm between it and the activation.
        activation: dotted name of a module, or a callable on tensors.
        consumers: dotted names of the layers that read the activation as it is, or through dropouts, pools and norms.
        kept: what comes unchanged through these.
        exclusive: nothing but these consumers sees the units, they see nothing else, and no parameter of producer,
            norm and consumers is shared, computed or used elsewhere, nor any of them called twice.
    """

    producer: str
    norm: str | None
    activation: str | FunctionalActivation
    consumers: tuple[str, ...]
    kept: Kept
    exclusive: bool

    @property
    def units(self) -> str:
        """Name of the module whose outputs have the sign of the units."""
        return self.norm or self.producer


def find_slabs(
    model: nn.Module, side: Literal["in", "out", "both"] = "in", *, verbose: bool = False
) -> list[Slab]:
    """The weights of a plain PyTorch model that may be sparsified, in the order of data flow.

    Looked for are Linear-activation-Linear and Conv-[norm]-activation-Conv patterns. Left out are output layers (no
    other weight comes after them), attention projections, grouped convolutions, fans below 8, and weights that are
    shared, parametrised or whose layer is called in differing places. The activation must be on exactly where its
    input is above 0: ReLU, ReLU6, LeakyReLU, ELU, CELU, SELU, GELU, SiLU, Mish, Hardswish.

    Args:
        model: also one wrapped by torch.compile or DistributedDataParallel; names are those of the inner model.
        side: `in`, layers whose outputs are units; `out`, layers that read such units; `both`, every layer once: in
            the order of data flow the layer of the units by `in`, then its readers by `out`, if still free.
        verbose: prints the slabs, and every other Linear or convolution with the reason why it is none.
    Raises: ValueError for an unknown side, or if there are no such weights.
    """
    if side not in ("in", "out", "both"):
        raise ValueError(f"side {side!r} is not 'in', 'out' or 'both'")
    structure = _Structure(_unwrap(model))
    found: dict[str, Slab] = {}
    for chain in structure.chains:
        offers = [(chain.producer, "in"), *((consumer, "out") for consumer in chain.consumers)]
        for layer, layer_side in offers:
            slab = structure.slab(layer, layer_side)
            if side in (layer_side, "both") and layer not in found and isinstance(slab, Slab):
                found[layer] = slab
    slabs = [found[layer] for layer in structure.calls if layer in found]
    if verbose:
        print("\n".join(_report(structure, slabs, side)))
    if not slabs:
        raise ValueError(
            f"{type(structure.model).__name__} shows no Linear-activation-Linear or Conv-norm-activation-Conv pattern "
            f"for side {side!r} (verbose=True says why); name the slabs by hand with bbnet.Slab"
        )
    return slabs


def find_chains(model: nn.Module) -> list[Chain]:
    """The hidden units of `model` and the layers that read them, in the order of data flow; see `find_slabs`."""
    return _Structure(_unwrap(model)).chains


def computed_tensors(model: nn.Module) -> dict[int, Tensor]:
    """A memo with which copy.deepcopy takes tensors that carry gradient history, which it refuses else, without it."""
    held = (value for module in model.modules() for home in (vars(module), module._buffers) for value in home.values())
    return {id(value): value.detach().clone() for value in held if torch.is_tensor(value) and not value.is_leaf}


def _unwrap(model: nn.Module) -> nn.Module:
    while True:
        if "_orig_mod" in model._modules:
            model = model._orig_mod
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            return model


@dataclass(frozen=True)
class _Call:
    """One step of the data flow in which a Linear or convolution is called.

    Args:
        chain: that begins here, or `reason` why none does.
        reads: the producer of the units that come in.
        is_output: no other weight comes after it.
        in_part: seen without what surrounds its module.
    """

    chain: Chain | None
    reason: str
    reads: str | None
    is_output: bool
    in_part: bool


class _Structure:
    """The data flow of a model, as far as it could be traced.

    Attributes:
        calls: those of every Linear and convolution, by name, in the order of data flow.
        chains: those on which all calls of their producer agree.
        outputs: names of the output layers.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.names = {module: name for name, module in model.named_modules()}
        self.calls: dict[str, list[_Call]] = {}
        self._used_directly: set[int] = set()
        self._follow(model, in_part=False)
        self._owners = Counter(
            id(parameter) for module in self.names for parameter in module._parameters.values() if parameter is not None
        )
        agreed = [calls[0].chain for calls in self.calls.values() if _agree(call.chain for call in calls)]
        self.chains = [replace(chain, exclusive=self._is_exclusive(chain)) for chain in agreed if chain is not None]
        self.outputs = {name for name, calls in self.calls.items() if any(call.is_output for call in calls)}
        if all(call.in_part for calls in self.calls.values() for call in calls):
            self.outputs |= self._last_layer()

    def slab(self, layer: str, side: Literal["in", "out"]) -> Slab | str:
        """The slab of a layer's weight, or why it is none."""
        module = self.model.get_submodule(layer)
        obstacle = self._obstacle(module) or self._obstacle_in_flow(layer)
        if obstacle:
            return obstacle
        calls = self.calls[layer]
        if side == "in":
            chain = next((chain for chain in self.chains if chain.producer == layer), None)
            if chain is None:
                return calls[0].reason or "its calls differ in what becomes of its outputs"
            slab = Slab(layer, "in", chain.units, normalised=chain.norm is not None)
        else:
            chain = next((chain for chain in self.chains if self._reads_only(layer, chain)), None)
            if chain is None:
                return "does not read the units of one layer"
            slab = Slab(layer, "out", chain.units)
        _, fan = slab_shape(module.weight, side)
        return f"fan {fan} is below {SMALLEST_FAN}" if fan < SMALLEST_FAN else slab

    def _follow(self, module: nn.Module, in_part: bool) -> None:
        """Takes up the calls inside a module; if it is no single flow, those of its children one by one."""
        graph = _trace(module)
        if graph is None:
            for child in module.children():
                self._follow(child, in_part=True)
            return
        flow = _Flow(module, self.names, graph, in_part or isinstance(module, TRANSFORMER_LAYERS))
        self._used_directly |= flow.used_directly()
        calls = flow.calls()
        for node in graph.nodes:
            if node in calls:
                self.calls.setdefault(flow.name(node), []).append(calls[node])
            elif flow.module(node) is not None:
                for child in [flow.module(node)] if _is_transformer_layer(flow.module(node)) else flow.module(node).children():
                    self._follow(child, in_part=True)
