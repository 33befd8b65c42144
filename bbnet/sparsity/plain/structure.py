"""Structure: finds the hidden units of a plain PyTorch model by following its data flow.

Where a module cannot be traced, because its control flow depends on data, its children are traced instead, and patterns
across their boundaries are not found. Of torch's own transformer layers the feed-forward block is traced separately.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.parameter import is_lazy

from bbnet.sparsity.limits import SMALLEST_FAN
from bbnet.sparsity.plain.flow import Call, Chain, Flow, axes_of, has_more_axes
from bbnet.sparsity.plain.report import report, seen
from bbnet.sparsity.plain.trace import NORMS, TRANSFORMER_LAYERS, acts_as_layer, trace
from bbnet.sparsity.slab import TRANSPOSED_CONVOLUTIONS, Side, Slab, is_layer, layer_shape, unwrap


def find_slabs(model: nn.Module, side: Literal["in", "out", "both"] = "in", *, verbose: bool = False) -> list[Slab]:
    """Returns the slabs of a plain PyTorch model, that is the weights that can be sparsified, in order of data flow.

    They are found in Linear-activation-Linear and Conv-[norm]-activation-Conv patterns, with dropouts and identities
    allowed before the activation, and norms, dropouts, pools and products after it. The activation may be any module,
    function or expression that is above 0 exactly where its input is, such as ReLU, GELU, SiLU or tanh, or a PReLU. If
    the units are multiplied by the outputs of another layer, as in SwiGLU, that layer belongs to the units as well.
    Conv1D of transformers counts as Linear. Skipped are output layers (no other weight comes after them), attention
    projections, grouped convolutions (their readers are not), fans below 8, weights that are frozen, shared or
    computed, and layers whose calls differ in their surroundings.

    Args:
        model: may be wrapped by torch.compile or DistributedDataParallel; names are those of the inner model.
        side: `in` for the layers whose outputs are units, or are multiplied by units; `out` for the layers that read
            such units; `both` for all of them, each once: in order of data flow, the layers of the units as `in` and
            then their readers as `out`.
        verbose: prints the slabs, their share of the model's parameters, and every other layer with the reason why it
            was skipped.
    Raises: ValueError for an unknown side, or if no slab is found; it names the layers that were skipped, and why.
    """
    if side not in ("in", "out", "both"):
        raise ValueError(f"unknown side {side!r}, allowed: in, out, both")
    structure = _Structure(unwrap(model))
    found: dict[str, Slab] = {}
    for chain in structure.chains:
        owners = ((name, "in") for name in (chain.producer, *chain.factors))
        for layer, layer_side in (*owners, *((name, "out") for name in chain.consumers)):
            if side in (layer_side, "both") and layer not in found:
                slab = structure.slab(layer, layer_side)
                if isinstance(slab, Slab):
                    found[layer] = slab
    slabs = [found[layer] for layer in structure.calls if layer in found]
    if verbose:
        print(report(model, slabs, structure.skipped(slabs, side)))
    if not slabs:
        skipped = seen(structure.skipped((), side))
        raise ValueError(
            f"no Linear-activation-Linear or Conv-norm-activation-Conv pattern of side {side!r} was found in "
            f"{type(structure.model).__name__}{skipped}; slabs can be given by hand as bbnet.Slab"
        )
    return slabs


def find_chains(model: nn.Module) -> list[Chain]:
    """Returns the hidden units of `model` with the layers that read them, in order of data flow; see `find_slabs`."""
    return _Structure(unwrap(model)).chains


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
        self.calls: dict[str, list[Call]] = {}
        self._owners = Counter(id(parameter) for module in self.names for parameter in module._parameters.values())
        self._used_directly: set[int] = set()
        self._opaque: set[type] = set()
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
            chain = next((chain for chain in self.chains if layer in (chain.producer, *self._factors(chain))), None)
            if chain is None:
                return self.calls[layer][0].reason or "its calls differ in how its outputs are used"
        else:
            chain = next((chain for chain in self.chains if self._reads_nothing_else(layer, chain)), None)
            if chain is None:
                return "does not read the units of one layer of its kind"
        _, fan = layer_shape(module, side)
        if fan < SMALLEST_FAN:
            return f"fan {fan} is below {SMALLEST_FAN}"
        normalised = side == "in" and layer == chain.producer and self._normalises_units(chain)
        return Slab(layer, side, chain.units, normalised)

    def _normalises_units(self, chain: Chain) -> bool:
        """Returns whether each unit is normalised separately, which cancels a factor on its weights."""
        norm = self.model.get_submodule(chain.norm) if chain.norm else None
        if isinstance(norm, nn.GroupNorm):
            return norm.num_groups == norm.num_channels
        if isinstance(norm, nn.LayerNorm | nn.RMSNorm):
            return len(norm.normalized_shape) <= axes_of(self.model.get_submodule(chain.producer))
        return norm is not None

    def skipped(self, slabs: Iterable[Slab], side: str) -> dict[str, str]:
        """Returns the reasons why layers other than those of `slabs` cannot be sparsified, by name."""
        taken = {slab.name for slab in slabs}
        reasons = {}
        for module, name in self.names.items():
            if name in taken:
                continue
            if is_layer(module):
                sides = ("in", "out") if side == "both" else (side,)
                reasons[name] = "; ".join(dict.fromkeys(self.slab(name, each) for each in sides))
            elif isinstance(module, TRANSPOSED_CONVOLUTIONS):
                reasons[name] = "transposed convolution"
            elif any(has_more_axes(each) for each in module._parameters.values()) and not isinstance(module, NORMS):
                reasons[name] = f"{type(module).__name__} is neither Linear nor a convolution"
        return reasons

    def _follow(self, module: nn.Module, in_part: bool) -> None:
        """Collects the calls inside `module`; if it cannot be traced, those inside each of its children."""
        graph = trace(module, self._opaque)
        if graph is None:
            for child in module.children():
                self._follow(child, in_part=True)
            return
        flow = Flow(module, self.names, graph, in_part=in_part or isinstance(module, TRANSFORMER_LAYERS))
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
        if not acts_as_layer(layer):
            return "its class has a forward pass of its own"
        if self._is_used_elsewhere(weight):
            return "its weight is shared or used outside the layer"
        if name not in self.calls:
            return "not seen in the data flow"
        return "output layer" if name in self.outputs else None

    def _is_used_elsewhere(self, parameter: nn.Parameter) -> bool:
        return self._owners[id(parameter)] > 1 or id(parameter) in self._used_directly

    def _factors(self, chain: Chain) -> list[str]:
        """Returns those factors of a chain that are its factors at every call."""
        return [name for name in chain.factors if all(call.factor_of == chain.producer for call in self.calls[name])]

    def _reads_nothing_else(self, layer: str, chain: Chain) -> bool:
        return all(call.reads == chain.producer for call in self.calls[layer])

    def _is_exclusive(self, chain: Chain) -> bool:
        layers = [self.model.get_submodule(name) for name in (chain.producer, *chain.consumers)]
        norms = [self.model.get_submodule(chain.norm)] if chain.norm else []
        parameters = [each for module in layers + norms for each in module._parameters.values() if each is not None]
        return (
            chain.exclusive
            and getattr(layers[0], "groups", 1) == 1
            and not any(list(self.model.get_submodule(name).parameters()) for name in chain.activation_modules)
            and all(layer._parameters.get("weight") is not None for layer in layers)
            and not any(is_lazy(parameter) or self._is_used_elsewhere(parameter) for parameter in parameters)
            and all(len(self.calls[name]) == 1 for name in (chain.producer, *chain.consumers))
        )

    def _last_layer(self) -> set[str]:
        """Returns the last registered layer as the output of a model traced in parts, unless it is in a transformer."""
        layers = [name for module, name in self.names.items() if is_layer(module)]
        last = layers[-1:]
        parents = [".".join(name.split(".")[:depth]) for name in last for depth in range(name.count(".") + 1)]
        in_transformer = any(isinstance(self.model.get_submodule(name), TRANSFORMER_LAYERS) for name in parents)
        return set() if in_transformer else set(last)
