"""Structure: finds the hidden units of a plain PyTorch model by following its data flow.

torch.fx traces a copy of the model in evaluation mode, without weights and hooks. Layers of torch.nn are single nodes;
of torch's own transformer layers the feed-forward block is traced separately. If a module cannot be traced, because its
control flow depends on data, its children are traced instead, and patterns across their boundaries are not found.
"""

import copy
import inspect
import operator
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.parameter import is_lazy

from bbnet.sparsity.limits import SMALLEST_FAN
from bbnet.sparsity.slab import LAYERS, Side, Slab, slab_shape, unwrap

TRANSFORMER_LAYERS = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
IDENTITIES = (nn.Identity, *_DROPOUTS)
# Above 0 exactly where their input is, unless one of the SLOPES is negative.
ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish)
ACTIVATION_METHODS = ("relu", "relu_")
SLOPES = ("negative_slope", "alpha")
# Attributes and methods of tensors that do not depend on their values.
METADATA = ("size", "dim", "numel", "shape", "ndim", "device", "dtype")


def _functions(*names: str) -> set[Callable]:
    return {getattr(lib, name) for lib in (functional, torch, operator) for name in names if hasattr(lib, name)}


_ACTIVATION_NAMES = ("relu", "relu6", "leaky_relu", "elu", "celu", "selu", "gelu", "silu", "mish", "hardswish")
ACTIVATION_FUNCTIONS = _functions(*_ACTIVATION_NAMES, *(f"{name}_" for name in _ACTIVATION_NAMES))
DROPOUT_FUNCTIONS = _functions("dropout", "dropout1d", "dropout2d", "dropout3d")
_PRODUCT_NAMES = ("linear", "bilinear", "conv1d", "conv2d", "conv3d", "matmul", "mm", "bmm", "einsum")
PRODUCTS = {*_functions(*_PRODUCT_NAMES), *_PRODUCT_NAMES}

# Pools and norms over the channels of a layer, by the number of axes of its weight beyond [out, in].
POOLS: dict[int, tuple[type, ...]] = {0: ()}
POOL_FUNCTIONS: dict[int, set[Callable]] = {0: set()}
_POOLS = ("Max", "Avg", "AdaptiveMax", "AdaptiveAvg", "LP")
_POOLING = ("max", "avg", "adaptive_max", "adaptive_avg", "lp")
_NORMS_OF_ANY_RANK = (nn.SyncBatchNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
NORMS: dict[int, tuple[type, ...]] = {0: (nn.BatchNorm1d, *_NORMS_OF_ANY_RANK)}
for _axes in (1, 2, 3):
    POOLS[_axes] = tuple(getattr(nn, f"{kind}Pool{_axes}d") for kind in _POOLS)
    POOL_FUNCTIONS[_axes] = _functions(*(f"{kind}_pool{_axes}d" for kind in _POOLING))
    _norms = (getattr(nn, f"{kind}Norm{_axes}d") for kind in ("Batch", "Instance"))
    NORMS[_axes] = (*_norms, *_NORMS_OF_ANY_RANK)
ALL_NORMS = tuple({kind for kinds in NORMS.values() for kind in kinds})


class Kept(IntEnum):
    """Which values reach the layers that read an activation unchanged, in evaluation mode."""

    NOTHING = 0
    ZEROS = 1
    CONSTANTS = 2


@dataclass(frozen=True)
class FunctionalActivation:
    """An activation that is a function or a tensor method, with its other arguments."""

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
        consumers: dotted names of the layers of the producer's kind that read the units, as they are or through
            dropouts, pools and norms.
        kept: which values pass these unchanged.
        exclusive: only the consumers read the units, and they read nothing else; none of these modules is called
            twice, and none of their parameters is shared, computed or used elsewhere.
    """

    producer: str
    norm: str | None
    activation: str | FunctionalActivation
    consumers: tuple[str, ...]
    kept: Kept
    exclusive: bool

    @property
    def units(self) -> str:
        """The name of the module whose outputs have the sign of the units."""
        return self.norm or self.producer


def find_slabs(model: nn.Module, side: Literal["in", "out", "both"] = "in", *, verbose: bool = False) -> list[Slab]:
    """Returns the slabs of a plain PyTorch model, that is the weights that can be sparsified, in order of data flow.

    They are found in Linear-activation-Linear and Conv-[norm]-activation-Conv patterns, with dropouts and identities
    allowed before the activation, and norms, dropouts and pools after it. The activation must be above 0 exactly where
    its input is: ReLU, ReLU6, LeakyReLU, ELU, CELU, SELU, GELU, SiLU, Mish, Hardswish. Skipped are output layers (no
    other weight comes after them), attention projections, grouped convolutions, fans below 8, weights that are frozen,
    shared or computed, and layers whose calls differ in their surroundings.

    Args:
        model: may be wrapped by torch.compile or DistributedDataParallel; names are those of the inner model.
        side: `in` for the layers whose outputs are units; `out` for the layers that read such units; `both` for all of
            them, each once: in order of data flow, the layer of the units as `in` and then its readers as `out`.
        verbose: prints the slabs, their share of the model's parameters, and every other layer with the reason why it
            was skipped.
    Raises: ValueError for an unknown side, or if no slab is found; it names the layers that were skipped, and why.
    """
    if side not in ("in", "out", "both"):
        raise ValueError(f"unknown side {side!r}, allowed: in, out, both")
    structure = _Structure(unwrap(model))
    found: dict[str, Slab] = {}
    for chain in structure.chains:
        for layer, layer_side in ((chain.producer, "in"), *((consumer, "out") for consumer in chain.consumers)):
            if side in (layer_side, "both") and layer not in found:
                slab = structure.slab(layer, layer_side)
                if isinstance(slab, Slab):
                    found[layer] = slab
    slabs = [found[layer] for layer in structure.calls if layer in found]
    if verbose:
        print(_report(structure, slabs, side))
    if not slabs:
        raise ValueError(
            f"no Linear-activation-Linear or Conv-norm-activation-Conv pattern of side {side!r} was found in "
            f"{type(structure.model).__name__}{_seen(structure, side)}; slabs can be given by hand as bbnet.Slab"
        )
    return slabs


def find_chains(model: nn.Module) -> list[Chain]:
    """Returns the hidden units of `model` with the layers that read them, in order of data flow; see `find_slabs`."""
    return _Structure(unwrap(model)).chains


def without_history(model: nn.Module) -> dict[int, Tensor]:
    """Returns a memo for copy.deepcopy, which rejects non-leaf tensors, such as those of torch.nn.utils.prune."""
    values = (value for each in model.modules() for fields in (vars(each), each._buffers) for value in fields.values())
    return {id(value): value.detach().clone() for value in values if torch.is_tensor(value) and not value.is_leaf}


@dataclass(frozen=True)
class _Call:
    """A call of a Linear or convolution in the data flow.

    Args:
        chain: the chain that starts here; if there is none, `reason` says why.
        reads: name of the producer whose units are its input.
        is_output: whether no other weight comes after it.
        in_part: whether its module was traced without the modules around it.
    """

    chain: Chain | None
    reason: str
    reads: str | None
    is_output: bool
    in_part: bool


class _Structure:
    """The data flow of a whole model, as far as it could be traced.

    Attributes:
        names: the names of all modules.
        calls: the calls of every Linear and convolution, by name, in order of data flow.
        chains: the chains on which all calls of their producer agree, in the same order.
        outputs: the names of the output layers.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.names = {module: name for name, module in model.named_modules()}
        self.calls: dict[str, list[_Call]] = {}
        self._owners = Counter(id(parameter) for module in self.names for parameter in module._parameters.values())
        self._used_directly: set[int] = set()
        self._follow(model, in_part=False)
        agreed = [calls[0].chain for calls in self.calls.values() if all(one.chain == calls[0].chain for one in calls)]
        self.chains = [replace(chain, exclusive=self._is_exclusive(chain)) for chain in agreed if chain is not None]
        self.outputs = {name for name, calls in self.calls.items() if any(call.is_output for call in calls)}
        if all(call.in_part for calls in self.calls.values() for call in calls):
            self.outputs |= self._last_layer()

    def slab(self, layer: str, side: Side) -> Slab | str:
        """Returns the slab of a layer, or the reason why there is none."""
        module = self.model.get_submodule(layer)
        obstacle = self._obstacle(module)
        if obstacle:
            return obstacle
        if side == "in":
            chain = next((chain for chain in self.chains if chain.producer == layer), None)
            if chain is None:
                return self.calls[layer][0].reason or "its calls differ in how its outputs are used"
        else:
            chain = next((chain for chain in self.chains if self._reads_nothing_else(layer, chain)), None)
            if chain is None:
                return "does not read the units of one layer of its kind"
        _, fan = slab_shape(module.weight, side)
        if fan < SMALLEST_FAN:
            return f"fan {fan} is below {SMALLEST_FAN}"
        return Slab(layer, side, chain.units, normalised=side == "in" and self._normalises_units(chain))

    def _normalises_units(self, chain: Chain) -> bool:
        """Returns whether each unit is normalised separately, which cancels a factor on its weights."""
        norm = self.model.get_submodule(chain.norm) if chain.norm else None
        if isinstance(norm, nn.GroupNorm):
            return norm.num_groups == norm.num_channels
        if isinstance(norm, nn.LayerNorm | nn.RMSNorm):
            return len(norm.normalized_shape) <= _axes_of(self.model.get_submodule(chain.producer))
        return norm is not None

    def skipped(self, slabs: Iterable[Slab], side: str) -> dict[str, str]:
        """Returns the reasons why layers other than those of `slabs` cannot be sparsified, by name."""
        taken = {slab.name for slab in slabs}
        reasons = {}
        for module, name in self.names.items():
            if name in taken:
                continue
            if isinstance(module, LAYERS):
                sides = ("in", "out") if side == "both" else (side,)
                reasons[name] = "; ".join(dict.fromkeys(self.slab(name, each) for each in sides))
            elif _has_weights(module) and not list(module.children()):
                reasons[name] = f"{type(module).__name__} is neither Linear nor a convolution"
        return reasons

    def _follow(self, module: nn.Module, in_part: bool) -> None:
        """Collects the calls inside `module`; if it cannot be traced, those inside each of its children."""
        graph = _trace(module)
        if graph is None:
            for child in module.children():
                self._follow(child, in_part=True)
            return
        flow = _Flow(module, self.names, graph, in_part=in_part or isinstance(module, TRANSFORMER_LAYERS))
        self._used_directly |= flow.used_directly()
        calls = flow.calls()
        for node in graph.nodes:
            if node in calls:
                self.calls.setdefault(flow.name(node), []).append(calls[node])
            elif node.op == "call_module":
                self._follow(flow.module(node), in_part=True)

    def _obstacle(self, layer: nn.Module) -> str | None:
        """Returns why the weight of a layer cannot be sparsified on any side, or None."""
        weight, name = layer._parameters.get("weight"), self.names[layer]
        if isinstance(layer, NonDynamicallyQuantizableLinear):
            return "attention projection"
        if weight is None:
            return "its weight is computed (parametrised)"
        if is_lazy(weight):
            return "its weight is not initialised yet"
        if not weight.requires_grad:
            return "its weight is frozen"
        if getattr(layer, "groups", 1) != 1:
            return "grouped convolution"
        if self._is_used_elsewhere(weight):
            return "its weight is shared or used outside the layer"
        if name not in self.calls:
            return "not seen in the data flow"
        return "output layer" if name in self.outputs else None

    def _is_used_elsewhere(self, parameter: nn.Parameter) -> bool:
        return self._owners[id(parameter)] > 1 or id(parameter) in self._used_directly

    def _reads_nothing_else(self, layer: str, chain: Chain) -> bool:
        return all(call.reads == chain.producer for call in self.calls[layer])

    def _is_exclusive(self, chain: Chain) -> bool:
        layers = [self.model.get_submodule(name) for name in (chain.producer, *chain.consumers)]
        norms = [self.model.get_submodule(chain.norm)] if chain.norm else []
        parameters = [each for module in layers + norms for each in module._parameters.values() if each is not None]
        return (
            chain.exclusive
            and all(layer._parameters.get("weight") is not None for layer in layers)
            and not any(is_lazy(parameter) or self._is_used_elsewhere(parameter) for parameter in parameters)
            and all(len(self.calls[name]) == 1 for name in (chain.producer, *chain.consumers))
        )

    def _last_layer(self) -> set[str]:
        """Returns the last registered layer as the output of a model traced in parts, unless it is in a transformer."""
        layers = [name for module, name in self.names.items() if isinstance(module, LAYERS)]
        last = layers[-1:]
        parents = [".".join(name.split(".")[:depth]) for name in last for depth in range(name.count(".") + 1)]
        in_transformer = any(isinstance(self.model.get_submodule(name), TRANSFORMER_LAYERS) for name in parents)
        return set() if in_transformer else set(last)


@dataclass(frozen=True)
class _Found:
    """A chain and the nodes that read its units, or the reason why there is none."""

    chain: Chain | None = None
    reason: str = ""
    readers: Iterable[fx.Node] = ()


class _Flow:
    """The data flow through one traced module.

    Args:
        names: the names of all modules of the model.
        in_part: whether only this module was traced, so that other weights are assumed to come after its outputs.
    """

    def __init__(self, module: nn.Module, names: dict[nn.Module, str], graph: fx.Graph, in_part: bool) -> None:
        self._root = module
        self._names = names
        self._nodes = list(graph.nodes)
        self._in_part = in_part
        # Nodes that depend only on parameters and buffers.
        self._stored: set[fx.Node] = set()
        for node in self._nodes:
            if node.op == "get_attr" or (node.all_input_nodes and self._stored.issuperset(node.all_input_nodes)):
                self._stored.add(node)
        # Whether a weight comes after a node.
        self._is_hidden: dict[fx.Node, bool] = {}
        for node in reversed(self._nodes):
            self._is_hidden[node] = any(self._uses_weights(user) or self._is_hidden[user] for user in _readers(node))

    def module(self, node: fx.Node) -> nn.Module | None:
        """Returns the module that a node calls, if any."""
        return self._root.get_submodule(node.target) if node.op == "call_module" else None

    def name(self, node: fx.Node) -> str:
        return self._names[self.module(node)]

    def used_directly(self) -> set[int]:
        """Returns the ids of the parameters that are read without a call of their module."""
        nodes = [node for node in self._nodes if node.op == "get_attr" and _readers(node)]
        parameters = dict(self._root.named_parameters(remove_duplicate=False))
        return {id(parameters[node.target]) for node in nodes if node.target in parameters}

    def calls(self) -> dict[fx.Node, _Call]:
        """Returns the calls of Linear layers and convolutions by node."""
        layers = [node for node in self._nodes if isinstance(self.module(node), LAYERS)]
        found = {node: self._chain(node) for node in layers}
        reads = {reader: self.name(node) for node in layers for reader in found[node].readers}
        return {
            node: _Call(each.chain, each.reason, reads.get(node), not self._is_hidden[node], self._in_part)
            for node, each in found.items()
        }

    def _chain(self, node: fx.Node) -> _Found:
        """Finds the activation of a layer's outputs and the layers that read it."""
        if not self._is_hidden[node]:
            return _Found(reason="output layer")
        producer, norm = self.module(node), None
        if getattr(producer, "groups", 1) != 1:
            return _Found(reason="grouped convolution")
        path = self._unchanged(node)
        following = _readers(path[-1])
        if len(following) == 1 and self._is_norm(following[0], path[-1], producer):
            norm = self.name(following[0])
            if not self._acts_on_one_layer(following[0]):
                return _Found(reason="its norm is shared with another layer")
            path += self._unchanged(following[0])
            following = _readers(path[-1])
        if len(following) != 1:
            return _Found(reason="its outputs are also used without an activation")
        activation = self._activation(following[0], path[-1])
        if activation is None:
            return _Found(reason="no activation directly after it")
        readers, kept, exclusive = self._find_readers(following[0], producer)
        exclusive = exclusive and all(len(each.users) == 1 for each in path)
        consumers = tuple(dict.fromkeys(self.name(reader) for reader in readers))
        return _Found(Chain(self.name(node), norm, activation, consumers, kept, exclusive), readers=readers)

    def _unchanged(self, node: fx.Node) -> list[fx.Node]:
        """Returns a node, followed by the identities and dropouts that its values pass one after the other."""
        path = [node]
        while len(_readers(path[-1])) == 1:
            (following,) = _readers(path[-1])
            if following.all_input_nodes != [path[-1]] or not self._is_identity(following):
                break
            path.append(following)
        return path

    def _is_identity(self, node: fx.Node) -> bool:
        """Returns whether a node returns its input in evaluation mode."""
        if node.target in DROPOUT_FUNCTIONS:
            return node.kwargs.get("training") is False
        return isinstance(self.module(node), IDENTITIES)

    def _find_readers(self, activation: fx.Node, producer: nn.Module) -> tuple[list[fx.Node], Kept, bool]:
        """Returns the layers that read an activation, what all of them receive, and whether nothing else reads it."""
        readers, kept, exclusive = set(), Kept.CONSTANTS, True
        pending = [activation]
        while pending:
            value = pending.pop()
            exclusive = exclusive and len(value.users) == len(_readers(value))
            for node in _readers(value):
                passed = self._passes(node, value, producer)
                if self._reads_units(node, value, producer):
                    readers.add(node)
                elif passed is not None:
                    kept = min(kept, passed)
                    pending.append(node)
                else:
                    exclusive = False
        return [node for node in self._nodes if node in readers], kept, exclusive

    def _activation(self, node: fx.Node, value: fx.Node) -> str | FunctionalActivation | None:
        if node.all_input_nodes != [value]:
            return None
        module = self.module(node)
        if module is not None:
            flips_sign = any(getattr(module, slope, 0) < 0 for slope in SLOPES)
            return self.name(node) if isinstance(module, ACTIVATIONS) and not flips_sign else None
        known = ACTIVATION_METHODS if node.op == "call_method" else ACTIVATION_FUNCTIONS
        others = (*node.args[1:], *node.kwargs.values())
        if node.target not in known or any(isinstance(each, int | float) and each < 0 for each in others):
            return None
        kwargs = tuple((name, each) for name, each in node.kwargs.items() if each is not value)
        return FunctionalActivation(node.target, tuple(node.args[1:]), kwargs)

    def _is_norm(self, node: fx.Node, value: fx.Node, producer: nn.Module) -> bool:
        """Returns whether a node is a norm over `value`, whose channels are the producer's outputs."""
        norm, (channels, _) = self.module(node), _widths(producer)
        if not isinstance(norm, NORMS[_axes_of(producer)]) or node.args != (value,):
            return False
        return getattr(norm, "num_features", getattr(norm, "num_channels", channels)) == channels

    def _acts_on_one_layer(self, norm: fx.Node) -> bool:
        calls = [node for node in self._nodes if node.op == "call_module" and node.target == norm.target]
        sources = {self._origin(source).target for call in calls for source in call.all_input_nodes}
        return sources == {self._origin(norm.args[0]).target}

    def _origin(self, node: fx.Node) -> fx.Node:
        """Returns the node whose values reach `node` through identities and dropouts alone."""
        while self._is_identity(node):
            (node,) = node.all_input_nodes
        return node

    def _reads_units(self, node: fx.Node, value: fx.Node, producer: nn.Module) -> bool:
        layer = self.module(node)
        return (
            isinstance(layer, LAYERS)
            and node.args == (value,)
            and _axes_of(layer) == _axes_of(producer)
            and getattr(layer, "groups", 1) == 1
            and _widths(layer)[1] == _widths(producer)[0]
        )

    def _passes(self, node: fx.Node, value: fx.Node, producer: nn.Module) -> Kept | None:
        """Returns what of `value` passes a node unchanged; None if the node does not keep its channels separate."""
        module, axes = self.module(node), _axes_of(producer)
        if self._is_identity(node):
            return Kept.CONSTANTS
        if self._is_norm(node, value, producer) or node.target in DROPOUT_FUNCTIONS:
            return Kept.NOTHING
        if isinstance(module, POOLS[axes]) or node.target in POOL_FUNCTIONS[axes]:
            return Kept.ZEROS
        return None

    def _uses_weights(self, node: fx.Node) -> bool:
        """Returns whether a node is a product with weights, or an output that is read by one outside."""
        if node.op == "output":
            return self._in_part
        if node.op != "call_module":
            return node.target in PRODUCTS and not self._stored.isdisjoint(node.all_input_nodes)
        return _has_weights(self.module(node))


def _readers(node: fx.Node) -> list[fx.Node]:
    """Returns the nodes that use the values of `node`, not only its shape, dtype or device."""
    return [user for user in node.users if not _reads_metadata(user)]


def _reads_metadata(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in METADATA
    return node.op == "call_function" and node.target is getattr and node.args[1] in METADATA


def _axes_of(layer: nn.Module) -> int:
    """Returns the number of axes of a layer's weight beyond [out, in]."""
    return next(axes for axes, kind in enumerate(LAYERS) if isinstance(layer, kind))


def _widths(layer: nn.Module) -> tuple[int, int]:
    """Returns (outputs, inputs) of a Linear or convolution."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    return layer.out_channels, layer.in_channels


class _Tracer(fx.Tracer):
    def __init__(self, entry: str) -> None:
        super().__init__(param_shapes_constant=True)
        self.traced_func_name = entry

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return _is_leaf(m)


def _is_leaf(module: nn.Module) -> bool:
    """Returns whether `module` runs code of torch.nn, which is traced as a single node."""
    forward = vars(module).get("forward", getattr(type(module), "forward", None))
    namespace = str(getattr(forward, "__module__", None))
    return namespace.startswith(("torch.nn.", "torch.ao.nn.")) and not isinstance(module, nn.Sequential)


def _trace(module: nn.Module) -> fx.Graph | None:
    """Returns the data flow through `module`, or None if it is a single node or cannot be traced."""
    if _is_leaf(module) and not isinstance(module, TRANSFORMER_LAYERS):
        return None
    tracer = _Tracer("_ff_block" if _is_leaf(module) else "forward")
    for constants in _constant_arguments(module):
        # A forward pass may raise any exception when it is called without data.
        try:
            with torch.random.fork_rng(devices=[]):
                return tracer.trace(_meta_copy(module), constants)
        except Exception:
            continue
    return None


def _constant_arguments(module: nn.Module) -> list[dict[str, Any]]:
    """Returns the sets of arguments to hold constant: those with defaults, which most calls use, then none."""
    parameters = inspect.signature(type(module).forward).parameters.values()
    plain = bool | int | float | str | None
    defaults = {each.name: each.default for each in parameters if isinstance(each.default, plain)}
    return [defaults, {}] if defaults else [{}]


def _meta_copy(module: nn.Module) -> nn.Module:
    """Returns a copy in evaluation mode with parameters on the meta device and without hooks."""
    memo: dict[int, Any] = without_history(module)
    for each in module.modules():
        memo[id(each._forward_hooks)] = OrderedDict()
        memo[id(each._forward_pre_hooks)] = OrderedDict()
        for parameter in each._parameters.values():
            if parameter is not None and not is_lazy(parameter):
                shape = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
                memo[id(parameter)] = nn.Parameter(shape, requires_grad=parameter.requires_grad)
    return copy.deepcopy(module, memo).eval()


def _has_weights(module: nn.Module) -> bool:
    """Returns whether a module, other than a norm, has parameters of two or more axes."""
    if isinstance(module, ALL_NORMS):
        return False
    return any(is_lazy(parameter) or parameter.dim() > 1 for parameter in module.parameters())


def _report(structure: _Structure, slabs: list[Slab], side: str) -> str:
    """Returns two tables, the slabs and the layers that were skipped, with the share that the slabs cover."""
    shown = [("layer", "side", "units", "shape [units x fan]")]
    weights = {slab: structure.model.get_submodule(slab.name).weight for slab in slabs}
    for slab, weight in weights.items():
        units, fan = slab_shape(weight, slab.side)
        shown.append((slab.name, slab.side, ", ".join(slab.units), f"{units} x {fan}"))
    covered = sum(weight.numel() for weight in weights.values())
    total = sum(each.numel() for each in structure.model.parameters() if not is_lazy(each))
    share = f"The slabs hold {covered:,} of {total:,} parameters ({100 * covered / total:.1f} %)." if total else ""
    skipped = [("skipped", "reason"), *structure.skipped(slabs, side).items()]
    return "\n".join((*_columns(shown), share, "", *_columns(skipped)))


def _seen(structure: _Structure, side: str) -> str:
    """Returns the layers that were skipped, by reason; of each, the first three names."""
    names: dict[str, list[str]] = {}
    for name, reason in structure.skipped((), side).items():
        names.setdefault(reason, []).append(name or "the model itself")
    parts = []
    for reason, layers in names.items():
        more = f" and {len(layers) - 3} more" if len(layers) > 3 else ""
        parts.append(f"{', '.join(layers[:3])}{more}: {reason}")
    return f"; skipped were {'; '.join(parts)}" if parts else ", which has no layer with weights"


def _columns(rows: list[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
