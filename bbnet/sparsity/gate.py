"""Gates: at each position they keep a share of a layer's outputs and set the others to 0."""

from collections.abc import Iterable
from decimal import Decimal

import torch
from torch import Tensor, nn

from bbnet.sparsity.algorithms import ActivationGating
from bbnet.sparsity.hooks import ModuleHook, forget_compiled
from bbnet.sparsity.slab import Slab, channels_first, unit_modules


class Gate(ModuleHook):
    """Hook that gates the outputs of one module, in training and in evaluation. It is copied with the model."""

    def __init__(self, algorithm: ActivationGating, axis: int, unbatched: int) -> None:
        self.algorithm = algorithm
        self.axis = axis
        self.unbatched = unbatched  # number of axes of an output without a batch axis, whose units are on axis 0
        self.ratio = (1, 1)

    def __call__(self, module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        if output.is_nested:  # as inside nn.TransformerEncoder with padding
            return torch.nested.as_nested_tensor([self(module, inputs, each) for each in output.unbind()])
        axis = 0 if output.dim() == self.unbatched else self.axis
        units = output.shape[axis]
        count = kept_units(self.ratio, units)
        if count == units:
            return output
        with torch.no_grad():
            kept = self.algorithm.kept(output.movedim(axis, -1), count).movedim(-1, axis)
        return torch.where(kept, output, 0.0)


def kept_units(ratio: tuple[int, int], units: int) -> int:
    """Returns floor(b * U + 1/2), but at least 1, for U units and the share b given as a ratio of integers."""
    numerator, denominator = ratio
    return max(1, (2 * numerator * units + denominator) // (2 * denominator))


def is_gated(module: nn.Module) -> bool:
    return any(isinstance(hook, Gate) for hook in module._forward_hooks.values())


class Gates:
    """The gates on all modules at which the units of some slabs are read.

    The outputs of such a module have the sign of the ReLU, GELU or SiLU after it, and these map 0 to 0. A gate before
    the activation therefore switches the unit off. A compiled model is recompiled at each new share.

    Raises: ValueError if a module has a gate already.
    """

    def __init__(self, model: nn.Module, slabs: Iterable[Slab], algorithm: ActivationGating) -> None:
        slabs = list(slabs)
        first = channels_first(model, slabs)
        modules = unit_modules(model, slabs)
        for name, module in modules.items():
            if is_gated(module):
                raise ValueError(f"the units at {name} are gated already; call remove() of that sparsifier first")
        self.share = Decimal(1)
        self._gates = {name: Gate(algorithm, 1 if name in first else -1, first.get(name, 0)) for name in modules}
        self._handles = [module.register_forward_hook(self._gates[name]) for name, module in modules.items()]
        forget_compiled()

    def set_share(self, share: Decimal) -> None:
        """Sets the share of each layer's units that is kept at every position."""
        if share == self.share:
            return
        self.share = share
        for gate in self._gates.values():
            gate.ratio = share.as_integer_ratio()
        forget_compiled()

    def remove(self) -> None:
        """Removes the gates from the modules."""
        for handle in self._handles:
            handle.remove()
