"""Traces: the data flow through a module, as torch.fx sees it.

torch.fx traces a copy of the module in evaluation mode, without weights and hooks. Layers of torch.nn, and norms and
layers that are derived from them in other libraries, are single nodes. Modules whose control flow depends on data are
single nodes, too, and their insides are not seen.
"""

import copy
import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy

from bbnet.sparsity.slab import is_layer, is_transposed

TRANSFORMER_LAYERS = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
NORMS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm),
)


def trace(module: nn.Module, opaque: set[type]) -> fx.Graph | None:
    """Returns the data flow through `module`, or None if it is a single node or cannot be traced.

    Args:
        opaque: classes of modules that are known to be untraceable. Those that are found here are added.
    """
    if acts_as_linear(module) or (_is_leaf(module) and not isinstance(module, TRANSFORMER_LAYERS)):
        return None
    copied = _meta_copy(module)
    linear = {name for name, each in module.named_modules() if acts_as_linear(each)}
    # Arguments with defaults are left at them, as in most calls; if this fails, they are inputs as well.
    for all_arguments in (False, True):
        while True:
            tracer = _Tracer(module, linear, opaque - {type(module)}, all_arguments)
            # A forward pass may raise any exception when it is called without data.
            try:
                with torch.random.fork_rng(devices=[]):
                    return tracer.trace(copied)
            except Exception:
                kinds = (type(each) for each in reversed(tracer.entered) if type(each) is not type(module))
                kind = next(kinds, None)
            if kind is None or kind in opaque:
                break
            opaque.add(kind)
    return None


def without_history(model: nn.Module) -> dict[int, Tensor]:
    """Returns a memo for copy.deepcopy, which rejects non-leaf tensors, such as those of torch.nn.utils.prune."""
    values = (value for each in model.modules() for fields in (vars(each), each._buffers) for value in fields.values())
    return {id(value): value.detach().clone() for value in values if torch.is_tensor(value) and not value.is_leaf}


_OF_EVERY_MODULE = vars(nn.Module()).keys()


class _Proxy(fx.Proxy):
    """A value in the data flow. Its dtype is that of the weights, since forward passes may depend on it."""

    @property
    def dtype(self) -> torch.dtype:
        return self.tracer.dtype


class _Tracer(fx.Tracer):
    """Traces the forward pass of `module`, or the feed-forward block of a transformer layer of torch.

    Args:
        linear: names of the modules inside that act as Linear.

    Attributes:
        entered: the modules whose forward pass began and has not ended, the innermost last.
    """

    def __init__(self, module: nn.Module, linear: set[str], opaque: set[type], all_arguments: bool) -> None:
        super().__init__(param_shapes_constant=True)
        self.traced_func_name = "_ff_block" if _is_leaf(module) else "forward"
        self.opaque = opaque
        self.linear = linear
        self.all_arguments = all_arguments
        floating = (each.dtype for each in module.parameters() if each.is_floating_point())
        self.dtype = next(floating, torch.get_default_dtype())
        self.entered: list[nn.Module] = []

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list]:
        """Returns the forward pass with its inputs. It may be decorated, and *args and **kwargs are empty."""
        given, named = [], {}
        for each in list(inspect.signature(root_fn).parameters.values())[1:]:
            if each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD):
                continue
            if each.default is each.empty or self.all_arguments:
                value = self.create_proxy("placeholder", each.name, (), {})
                if each.kind == each.KEYWORD_ONLY:
                    named[each.name] = value
                else:
                    given.append(value)

        def forward() -> Any:
            return root_fn(self.root, *given, **named)

        return forward, []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return _is_leaf(m) or type(m) in self.opaque or module_qualified_name in self.linear

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        self.entered.append(m)
        # Activations may be kept outside the tree of modules, for example in a table by name.
        output = super().call_module(m, forward, args, kwargs) if self._is_inside(m) else forward(*args, **kwargs)
        self.entered.pop()
        return output

    def _is_inside(self, module: nn.Module) -> bool:
        try:
            self.path_of_module(module)
        except NameError:
            return False
        return True

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def keys(self, obj: fx.Proxy) -> Iterator[str]:
        """Returns no names, so that **kwargs of a forward pass are empty where they are passed on."""
        return iter(())


def _is_leaf(module: nn.Module) -> bool:
    """Returns whether `module` is traced as a single node: code of torch.nn, a norm, or a known layer."""
    if isinstance(module, NORMS) or is_transposed(module):
        return True
    forward = vars(module).get("forward", getattr(type(module), "forward", None))
    namespace = str(getattr(forward, "__module__", None))
    return namespace.startswith(("torch.nn.", "torch.ao.nn.")) and not isinstance(module, nn.Sequential)


def acts_as_layer(module: nn.Module) -> bool:
    """Returns whether a module is a layer that uses its weight as it is, not by a forward pass of its own."""
    return is_layer(module) and (_is_leaf(module) or acts_as_linear(module))


def acts_as_linear(module: nn.Module) -> bool:
    """Returns whether a class derived from Linear has a forward pass of its own that computes the same."""
    if not isinstance(module, nn.Linear) or list(module.children()):
        return False
    is_derived = type(module).forward is not nn.Linear.forward or "forward" in vars(module)
    weight = module._parameters.get("weight")
    if not is_derived or weight is None or is_lazy(weight) or weight.is_meta:
        return False
    if not module._parameters.keys() <= {"weight", "bias"}:
        return False
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        inputs = torch.randn(1, module.in_features).to(weight)
        try:
            return torch.allclose(copy.copy(module).eval().forward(inputs), nn.Linear.forward(module, inputs))
        except Exception:
            return False


def _meta_copy(module: nn.Module) -> nn.Module:
    """Returns a copy in evaluation mode with parameters on the meta device and without hooks.

    If it has attributes that cannot be copied, such as locks, all its own attributes are those of the module.
    """
    memo: dict[int, Any] = without_history(module)
    own: dict[int, Any] = {}
    for each in module.modules():
        own |= {id(value): value for name, value in vars(each).items() if name not in _OF_EVERY_MODULE}
        memo[id(each._forward_hooks)] = OrderedDict()
        memo[id(each._forward_pre_hooks)] = OrderedDict()
        for parameter in each._parameters.values():
            if parameter is not None and not is_lazy(parameter):
                shape = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
                memo[id(parameter)] = nn.Parameter(shape, requires_grad=parameter.requires_grad)
    try:
        return copy.deepcopy(module, dict(memo)).eval()
    except Exception:
        return copy.deepcopy(module, own | memo).eval()
