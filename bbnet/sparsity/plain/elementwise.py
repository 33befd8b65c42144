"""Activations in a traced data flow, recognised by what they compute, whatever their class or name.

An activation is a part of the data flow that reads one value and nothing else, that is read only through its last node,
and whose outputs are above 0 exactly where its inputs are. The last point is tested by computing it for some values.
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

# Modules of the functions that may be computed.
_LIBRARIES = (None, "_operator", "torch", "torch.functional", "torch.nn.functional", "torch._C._nn")
# Attributes and methods of tensors that do not depend on their values.
METADATA = ("size", "dim", "numel", "shape", "ndim", "device", "dtype")


@dataclass(frozen=True)
class _Result:
    """Stands for the result of a step of an `Activation`; 0 is its input."""

    index: int


@dataclass(frozen=True)
class Activation:
    """An elementwise function, as the calls that compute it one after the other.

    Args:
        steps: kind (that of an fx node), target (dotted name of a module, name of a tensor method, or a function) and
            arguments of each call, with a `_Result` for the result of an earlier step.
    """

    steps: tuple[tuple[str, Any, tuple, dict[str, Any]], ...]

    @classmethod
    def of(cls, value: fx.Node, nodes: Iterable[fx.Node], name_of: Callable[[fx.Node], str]) -> "Activation":
        """Returns the function of `value` that `nodes` compute; `name_of` returns the name of a node's module."""
        results, steps = {value: _Result(0)}, []
        for node in nodes:
            args, kwargs = _replaced(node, results)
            target = name_of(node) if node.op == "call_module" else node.target
            steps.append((node.op, target, args, kwargs))
            results[node] = _Result(len(steps))
        return cls(tuple(steps))

    @property
    def modules(self) -> list[str]:
        """The names of the modules that it calls."""
        return [target for kind, target, _, _ in self.steps if kind == "call_module"]

    def __call__(self, model: nn.Module, values: Tensor) -> Tensor:
        """Computes the function of `values`, with the modules of `model`."""
        results = [values]
        for kind, target, args, kwargs in self.steps:
            args, kwargs = map_aggregate(
                (args, kwargs), lambda each: results[each.index] if isinstance(each, _Result) else each
            )
            results.append(_call(kind, model.get_submodule(target) if kind == "call_module" else target, args, kwargs))
        return results[-1]


def find_activation(
    value: fx.Node, following: Iterable[fx.Node], module_of: Callable[[fx.Node], nn.Module | None]
) -> tuple[list[fx.Node], str]:
    """Returns the nodes of the activation of `value`, its output last; if there is none, no nodes and the reason.

    Args:
        following: the nodes after `value`, in order of data flow.
        module_of: returns the module that a node calls, if any.
    """
    computed = {value: [_VALUES.clone(), _SHUFFLED.clone()]}
    found: list[fx.Node] = []
    reason = ""
    for node in following:
        if computed.keys().isdisjoint(node.all_input_nodes) or reads_metadata(node):
            continue
        results = _elementwise(node, computed, module_of(node))
        is_identity = results is not None and torch.equal(results[0], computed[node.all_input_nodes[0]][0])
        if results is None or (found and is_identity):
            break
        computed[node] = results
        if any(reader not in computed for each in computed if each is not node for reader in readers(each)):
            continue
        verdict = _verdict(results[0])
        if verdict == "":
            found = list(computed)[1:]
        elif verdict and not reason:
            reason = f"its activation {_title(node, module_of(node))} {verdict}"
    return found, reason


def sign_of(module: nn.Module) -> str | None:
    """Returns "" if a module without weights is an activation, None if it is affine, otherwise what is wrong."""
    try:
        return _verdict(_evaluated(module)(_VALUES.clone()))
    except Exception:
        return "cannot be computed alone"


def readers(node: fx.Node) -> list[fx.Node]:
    """Returns the nodes that use the values of `node`, not only its shape, dtype or device."""
    return [user for user in node.users if not reads_metadata(user)]


def reads_metadata(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in METADATA
    return node.op == "call_function" and node.target is getattr and node.args[1] in METADATA


def _values() -> Tensor:
    """Returns values of both signs and many sizes. Every change of the order of their axes changes their shape."""
    positive = torch.logspace(-3, 1.3, 104, device="cpu", dtype=torch.float32)
    mixed = torch.cat([positive, -positive, torch.zeros(2, device="cpu", dtype=torch.float32)])
    return mixed[torch.arange(210, device="cpu") * 11 % 210].reshape(2, 3, 5, 7)


_VALUES = _values()
# The same values with other neighbours along every axis. A function that computes the same for them is elementwise.
_ORDER = torch.arange(210, device="cpu") * 37 % 211 % 210
_SHUFFLED = _VALUES.flatten()[_ORDER].reshape(3, 7, 2, 5)


def _elementwise(node: fx.Node, computed: dict[fx.Node, list[Tensor]], module: nn.Module | None) -> list[Tensor] | None:
    """Returns the results of a node for the values in both orders; None if it is not elementwise."""
    if not computed.keys() >= {*node.all_input_nodes} or not _may_be_computed(node, module):
        return None
    target = node.target if module is None else _evaluated(module)
    results = []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            for index in range(2):
                args, kwargs = _replaced(node, {each: values[index] for each, values in computed.items()})
                results.append(_call(node.op, target, args, kwargs))
        whole, shuffled = results
        same_shape = whole.shape == _VALUES.shape and shuffled.shape == _SHUFFLED.shape
        expected = whole.flatten()[_ORDER].double()
        is_same = torch.allclose(shuffled.flatten().double(), expected, rtol=1e-3, atol=1e-6, equal_nan=True)
    except Exception:  # a function may raise any exception for values of another shape or kind than it is made for
        return None
    return results if same_shape and is_same and not whole.is_complex() else None


def _may_be_computed(node: fx.Node, module: nn.Module | None) -> bool:
    """Returns whether a node calls code of torch without parameters or buffers."""
    if node.op == "call_module":
        return module is not None and not {**module._parameters, **module._buffers} and not list(module.children())
    if node.op == "call_function":
        return getattr(node.target, "__module__", "") in _LIBRARIES
    return node.op == "call_method"


def _evaluated(module: nn.Module) -> Callable[..., Any]:
    """Returns the forward pass of a module in evaluation mode, without hooks."""
    return copy.copy(module).eval().forward


def _call(kind: str, target: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    if kind == "call_method":
        target, args = getattr(args[0], target), args[1:]
    return target(*args, **kwargs)


def _replaced(node: fx.Node, results: dict[fx.Node, Any]) -> tuple[tuple, dict[str, Any]]:
    """Returns the arguments of a node with results instead of nodes."""
    return map_aggregate((node.args, node.kwargs), lambda each: results[each] if isinstance(each, fx.Node) else each)


def _verdict(outputs: Tensor) -> str | None:
    """Returns "" for outputs of an activation, None for those of an affine function, otherwise what is wrong."""
    outputs = outputs.float()
    shift = float(outputs[_VALUES == 0][0])
    slope = (float(outputs[_VALUES.max() == _VALUES][0]) - shift) / float(_VALUES.max())
    if torch.allclose(outputs, slope * _VALUES + shift, rtol=1e-2, atol=1e-4):
        return None
    on = outputs > 0
    if bool((on == (_VALUES > 0)).all()):
        return ""
    if bool(on.all()):
        return "is above 0 everywhere, so that it has no on-rate"
    return "is not above 0 exactly where its input is" if bool(on.any()) else "is never above 0"


def _title(node: fx.Node, module: nn.Module | None) -> str:
    if module is not None:
        return type(module).__name__
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
