"""The data flow through a traced module: hidden units, the layers that compute them and those that read them."""

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum

import torch
from torch import fx, nn
from torch.nn import functional
from torch.nn.parameter import is_lazy

from bbnet.sparsity.plain.elementwise import Activation, find_activation, readers, sign_of
from bbnet.sparsity.plain.trace import NORMS, acts_as_layer
from bbnet.sparsity.slab import LAYERS, layer_shape

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
IDENTITIES = (nn.Identity, *_DROPOUTS)


def _functions(*names: str) -> set[Callable]:
    return {getattr(lib, name) for lib in (functional, torch, operator) for name in names if hasattr(lib, name)}


DROPOUT_FUNCTIONS = _functions("dropout", "dropout1d", "dropout2d", "dropout3d")
_PRODUCT_NAMES = ("linear", "bilinear", "conv1d", "conv2d", "conv3d", "matmul", "mm", "bmm", "einsum")
PRODUCTS = {*_functions(*_PRODUCT_NAMES), *_PRODUCT_NAMES}
MULTIPLICATIONS = {*_functions("mul", "imul", "multiply"), "mul", "mul_", "multiply", "multiply_"}
_SPLIT_NAMES = ("chunk", "split", "tensor_split", "unbind", "getitem", "glu")
SPLITS = {*_functions(*_SPLIT_NAMES), *_SPLIT_NAMES}

# Pools and norms over the channels of a layer, by the number of axes of its weight beyond [out, in].
POOLS: dict[int, tuple[type, ...]] = {0: ()}
POOL_FUNCTIONS: dict[int, set[Callable]] = {0: set()}
_POOLS = ("Max", "Avg", "AdaptiveMax", "AdaptiveAvg", "LP")
_POOLING = ("max", "avg", "adaptive_max", "adaptive_avg", "lp")
_NORMS_OF_ANY_RANK = (nn.SyncBatchNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
NORMS_OF_RANK: dict[int, tuple[type, ...]] = {0: (nn.BatchNorm1d, *_NORMS_OF_ANY_RANK)}
for _axes in (1, 2, 3):
    POOLS[_axes] = tuple(getattr(nn, f"{kind}Pool{_axes}d") for kind in _POOLS)
    POOL_FUNCTIONS[_axes] = _functions(*(f"{kind}_pool{_axes}d" for kind in _POOLING))
    _norms = (getattr(nn, f"{kind}Norm{_axes}d") for kind in ("Batch", "Instance"))
    NORMS_OF_RANK[_axes] = (*_norms, *_NORMS_OF_ANY_RANK)


class Kept(IntEnum):
    """Which values reach the layers that read an activation unchanged, in evaluation mode."""

    NOTHING = 0
    ZEROS = 1
    CONSTANTS = 2


@dataclass(frozen=True)
class Chain:
    """Hidden units: the outputs of `producer`, through `norm` if there is one, at `activation`; `consumers` read them.

    Args:
        producer: dotted name of a Linear or convolution.
        norm: dotted name of the norm between it and the activation.
        activation: the activation, or None if the norm applies it, as BatchNormAct2d of timm does.
        units: dotted name of the module whose outputs are above 0 exactly where the units are.
        factors: dotted names of the layers whose outputs are multiplied by the units, as in SwiGLU; the products are
            what the consumers read.
        consumers: dotted names of the layers of the producer's kind that read the units, as they are or through
            dropouts, pools, norms and products.
        kept: which values pass these unchanged.
        exclusive: only the consumers read the units, and they read nothing else; none of these modules is called
            twice, and none of their parameters is shared, computed or used elsewhere.
    """

    producer: str
    norm: str | None
    activation: Activation | None
    units: str
    factors: tuple[str, ...]
    consumers: tuple[str, ...]
    kept: Kept
    exclusive: bool

    @property
    def activation_modules(self) -> list[str]:
        """The names of the modules that the activation calls, other than the norm."""
        return [] if self.activation is None else self.activation.modules


@dataclass(frozen=True)
class Call:
    """A call of a Linear or convolution in the data flow.

    Args:
        chain: the chain that starts here; if there is none, `reason` says why.
        reads: name of the producer whose units are its input.
        factor_of: name of the producer whose units are multiplied by its outputs.
        is_output: whether no other weight comes after it.
        in_part: whether its module was traced without the modules around it.
    """

    chain: Chain | None
    reason: str
    reads: str | None
    factor_of: str | None
    is_output: bool
    in_part: bool


@dataclass
class _Readers:
    """What reads some units: layers, through which values, and the layers that are multiplied with the units."""

    layers: set[fx.Node] = field(default_factory=set)
    factors: set[fx.Node] = field(default_factory=set)
    kept: Kept = Kept.CONSTANTS
    exclusive: bool = True


@dataclass(frozen=True)
class _Found:
    """A chain and the nodes that read its units, or the reason why there is none."""

    chain: Chain | None = None
    reason: str = ""
    readers: _Readers = field(default_factory=_Readers)


class Flow:
    """The data flow through one traced module.

    Args:
        names: the names of all modules of the model.
        in_part: whether only this module was traced, so that other weights are assumed to come after its outputs.
    """

    def __init__(self, module: nn.Module, names: dict[nn.Module, str], graph: fx.Graph, in_part: bool) -> None:
        self._root = module
        self._names = names
        self._nodes = list(graph.nodes)
        self._places = {node: place for place, node in enumerate(self._nodes)}
        self._in_part = in_part
        # Nodes that depend only on parameters and buffers.
        self._stored: set[fx.Node] = set()
        for node in self._nodes:
            if node.op == "get_attr" or (node.all_input_nodes and self._stored.issuperset(node.all_input_nodes)):
                self._stored.add(node)
        # Whether a weight comes after a node.
        self._is_hidden: dict[fx.Node, bool] = {}
        for node in reversed(self._nodes):
            self._is_hidden[node] = any(self._uses_weights(user) or self._is_hidden[user] for user in readers(node))

    def module(self, node: fx.Node) -> nn.Module | None:
        """Returns the module that a node calls, if any."""
        return self._root.get_submodule(node.target) if node.op == "call_module" else None

    def name(self, node: fx.Node) -> str:
        return self._names[self.module(node)]

    def used_directly(self) -> set[int]:
        """Returns the ids of the parameters that are read without a call of their module."""
        nodes = [node for node in self._nodes if node.op == "get_attr" and readers(node)]
        parameters = dict(self._root.named_parameters(remove_duplicate=False))
        return {id(parameters[node.target]) for node in nodes if node.target in parameters}

    def calls(self) -> dict[fx.Node, Call]:
        """Returns the calls of Linear layers and convolutions by node."""
        layers = [node for node in self._nodes if node.op == "call_module" and acts_as_layer(self.module(node))]
        found = {node: self._chain(node) for node in layers}
        reads = {reader: self.name(node) for node in layers for reader in found[node].readers.layers}
        factor_of = {factor: self.name(node) for node in layers for factor in found[node].readers.factors}
        return {
            node: Call(
                each.chain, each.reason, reads.get(node), factor_of.get(node), not self._is_hidden[node], self._in_part
            )
            for node, each in found.items()
        }

    def _chain(self, node: fx.Node) -> _Found:
        """Finds the activation of a layer's outputs and the layers that read it."""
        if not self._is_hidden[node]:
            return _Found(reason="output layer")
        producer, norm = self.module(node), None
        path = self._unchanged(node)
        following = readers(path[-1])
        if len(following) == 1 and self._is_norm(following[0], path[-1], producer):
            (norm,) = following
            if not self._acts_on_one_layer(norm):
                return _Found(reason="its norm is shared with another layer")
            path += self._unchanged(norm)
        units = self.name(norm or node)
        nodes, reason = ([], "") if norm is None else self._applied_by(norm)
        if nodes:
            activation, path = None, path[: path.index(norm) + 1]
        elif reason:
            return _Found(reason=reason)
        else:
            nodes, reason = find_activation(path[-1], self._nodes[self._places[path[-1]] + 1 :], self.module)
            following = readers(path[-1])
            if not nodes and len(following) == 1 and isinstance(self.module(following[0]), nn.PReLU):
                nodes, units = following, self.name(following[0])  # a slope may become negative
            if not nodes:
                return _Found(reason=reason or _without_activation(following))
            activation = Activation.of(path[-1], nodes, self.name)
        read = self._read(nodes[-1], producer)
        inside = {*path, *nodes}
        exclusive = read.exclusive and all(inside.issuperset(each.users) for each in inside - {nodes[-1]})
        factors, consumers = (
            tuple(dict.fromkeys(self.name(each) for each in sorted(nodes, key=self._places.get)))
            for nodes in (read.factors, read.layers)
        )
        norm_name = None if norm is None else self.name(norm)
        chain = Chain(self.name(node), norm_name, activation, units, factors, consumers, read.kept, exclusive)
        return _Found(chain, readers=read)

    def _unchanged(self, node: fx.Node) -> list[fx.Node]:
        """Returns a node, followed by the identities and dropouts that its values pass one after the other."""
        path = [node]
        while len(readers(path[-1])) == 1:
            (following,) = readers(path[-1])
            if following.all_input_nodes != [path[-1]] or not self._is_identity(following):
                break
            path.append(following)
        return path

    def _is_identity(self, node: fx.Node) -> bool:
        """Returns whether a node returns its input in evaluation mode."""
        if node.target in DROPOUT_FUNCTIONS:
            return node.kwargs.get("training") is False
        return isinstance(self.module(node), IDENTITIES)

    def _applied_by(self, norm: fx.Node) -> tuple[list[fx.Node], str]:
        """Returns the norm if it applies an activation itself, or the reason why what it applies is none."""
        for inner in self.module(norm).children():
            verdict = "has weights" if list(inner.parameters()) else sign_of(inner)
            if verdict == "":
                return [norm], ""
            if verdict:
                return [], f"the {type(inner).__name__} that its norm applies {verdict}"
        return [], ""

    def _read(self, activation: fx.Node, producer: nn.Module) -> _Readers:
        """Returns what reads an activation."""
        found = _Readers()
        pending = [activation]
        while pending:
            value = pending.pop()
            found.exclusive = found.exclusive and len(value.users) == len(readers(value))
            for node in readers(value):
                passed = self._passes(node, value, producer)
                if self._reads_units(node, value, producer):
                    found.layers.add(node)
                elif passed is not None:
                    found.kept = min(found.kept, passed)
                    pending.append(node)
                else:
                    found.exclusive = False
                    if node.target in MULTIPLICATIONS and len(node.all_input_nodes) == 2:
                        pending.append(node)
                        found.factors |= self._factors(node, value, producer)
                    if _writes_to(node, value):
                        break  # later readers see other values
        return found

    def _factors(self, product: fx.Node, value: fx.Node, producer: nn.Module) -> set[fx.Node]:
        """Returns the layer whose outputs are multiplied by units and are used nowhere else, if there is one."""
        (other,) = (each for each in product.all_input_nodes if each is not value)
        factor = self._origin(other)
        layer = self.module(factor)
        alone = self._unchanged(factor)[-1] is other and len(readers(other)) == 1
        same = layer is not None and acts_as_layer(layer) and axes_of(layer) == axes_of(producer)
        return {factor} if alone and same and _widths(layer)[0] == _widths(producer)[0] else set()

    def _is_norm(self, node: fx.Node, value: fx.Node, producer: nn.Module) -> bool:
        """Returns whether a node is a norm over `value`, whose channels are the producer's outputs."""
        norm, (channels, _) = self.module(node), _widths(producer)
        if not isinstance(norm, NORMS_OF_RANK[axes_of(producer)]) or node.args != (value,):
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
            layer is not None
            and acts_as_layer(layer)
            and node.args == (value,)
            and axes_of(layer) == axes_of(producer)
            and getattr(layer, "groups", 1) == 1
            and _widths(layer)[1] == _widths(producer)[0]
        )

    def _passes(self, node: fx.Node, value: fx.Node, producer: nn.Module) -> Kept | None:
        """Returns what of `value` passes a node unchanged; None if the node does not keep its channels separate."""
        module, axes = self.module(node), axes_of(producer)
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


def _writes_to(node: fx.Node, value: fx.Node) -> bool:
    """Returns whether a node changes a value in place, as `add_` does."""
    if node.op == "call_module" or not node.args or node.args[0] is not value:
        return False
    name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
    is_operator = name.startswith("i") and hasattr(operator, f"__{name}__")
    return is_operator or (name.endswith("_") and not name.endswith("__"))


def _without_activation(following: list[fx.Node]) -> str:
    """Returns why the nodes that read a layer's outputs are no activation."""
    if len(following) == 1 and following[0].target in SPLITS:
        return "its outputs are split, so that a unit has rows in two places"
    if len(following) == 1:
        return "no activation directly after it"
    return "its outputs are also used without an activation"


def axes_of(layer: nn.Module) -> int:
    """Returns the number of axes of a layer's weight beyond [out, in]."""
    return next((axes for axes, kind in enumerate(LAYERS) if isinstance(layer, kind)), 0)


def _widths(layer: nn.Module) -> tuple[int, int]:
    """Returns (outputs, inputs) of a layer; the inputs of a grouped convolution are those of all groups."""
    if isinstance(layer, LAYERS[1:]):
        return layer.out_channels, layer.in_channels
    return (layer.out_features, layer.in_features) if isinstance(layer, nn.Linear) else layer_shape(layer, "in")


def has_more_axes(parameter: nn.Parameter | None) -> bool:
    """Returns whether a parameter has two or more axes, or may have them once it is initialised."""
    return parameter is not None and (is_lazy(parameter) or parameter.dim() > 1)


def _has_weights(module: nn.Module) -> bool:
    """Returns whether a module, other than a norm, has parameters of two or more axes."""
    parts = module.children() if isinstance(module, NORMS) else [module]
    return any(has_more_axes(parameter) for part in parts for parameter in part.parameters())
