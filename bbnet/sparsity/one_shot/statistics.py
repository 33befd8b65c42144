"""Statistics of layers over calibration inputs: Hessians, input norms and on-rates."""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from bbnet.sparsity.algorithms import Algorithm
from bbnet.sparsity.forward_averages import OfValidPositions, fitted_positions
from bbnet.sparsity.hooks import WatchingHook
from bbnet.sparsity.input_norm import InputNorms
from bbnet.sparsity.on_rate import OnRates
from bbnet.sparsity.one_shot.stages import Run
from bbnet.sparsity.slab import CONVOLUTIONS, Slab


class Statistics:
    """What an algorithm needs to know of some slabs, gathered from all positions of the calibration inputs.

    Args:
        inputs_as_units: names of those slabs of side `out` whose units are read at the input of the layer.
    """

    def __init__(
        self, model: nn.Module, slabs: Iterable[Slab], algorithm: Algorithm, inputs_as_units: Iterable[str] = ()
    ) -> None:
        slabs, as_units = list(slabs), set(inputs_as_units)
        exact = {"stride": 1, "in_training": False, "root": model}
        self.input_norms = self.on_rates = self.input_rates = self.hessians = None
        if getattr(algorithm, "uses_input_norms", False):
            self.input_norms = InputNorms({slab.name: model.get_submodule(slab.name) for slab in slabs}, **exact)
        if getattr(algorithm, "uses_on_rates", False):
            at_units = [slab for slab in slabs if slab.name not in as_units]
            options = {key: value for key, value in exact.items() if key != "root"}
            self.on_rates = OnRates.of_slabs(model, at_units, **options)
            self.input_rates = InputRates({name: model.get_submodule(name) for name in as_units}, **exact)
        if algorithm.prunes_once:
            self.hessians = Hessians({slab.name: model.get_submodule(slab.name) for slab in slabs})

    @property
    def parts(self) -> list[Any]:
        every = (self.input_norms, self.on_rates, self.input_rates, self.hessians)
        return [part for part in every if part is not None]

    def gather(self, runs: Iterable[tuple[Any, Run]]) -> None:
        """Runs layers on all batches and then removes the hooks. Does nothing for an algorithm without statistics."""
        try:
            for valid, run in runs if self.parts else ():
                with ExitStack() as stack:
                    for part in self.parts if valid is not None else ():
                        stack.enter_context(part.valid(valid))
                    run()
        finally:
            for part in self.parts:
                part.remove()
        for averages in (self.input_norms, self.on_rates, self.input_rates):
            if averages is not None:
                averages.fold()

    def figures(self, slab: Slab) -> dict[str, Tensor]:
        """Returns the figures of a `SlabView`."""
        figures = {}
        if self.on_rates is not None:
            at_input = self.input_rates is not None and slab.name in self.input_rates.sums
            found = self.input_rates.of((slab.name,)) if at_input else self.on_rates.of(slab.units)
            figures["on_rates"], figures["silent"] = found
        if self.input_norms is not None:
            norms = self.input_norms.of(slab.name).float()
            figures["input_norms"] = norms[None, :] if slab.side == "in" else norms[:, None]
        return figures


class InputRates(OnRates):
    """The share of positions at which the inputs of layers are above 0."""

    def _register(self, module: nn.Module, hook: WatchingHook) -> RemovableHandle:
        return module.register_forward_pre_hook(hook, with_kwargs=True)

    def _read(self, arguments: tuple, other: dict[str, Any]) -> Tensor:
        return (arguments or tuple(other.values()))[0]


class Hessians(OfValidPositions):
    """The sums of x x^T over the inputs x of layers, in float32, or in float64 for a layer with such weights.

    The input of a convolution at a position is the patch that its kernels read.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self._sums: dict[str, Tensor] = {}
        self._hooks = [
            layer.register_forward_pre_hook(partial(self._add, name), with_kwargs=True)
            for name, layer in layers.items()
        ]

    def remove(self) -> None:
        """Removes the hooks from the layers."""
        for hook in self._hooks:
            hook.remove()

    def take(self, name: str) -> Tensor:
        """Returns the sum of a layer, [inputs * taps, inputs * taps], and forgets it.

        Raises: ValueError if it is not finite.
        """
        found = self._sums.pop(name)
        if not bool(found.diagonal().isfinite().all()):
            raise ValueError(f"layer {name}: its calibration inputs are not finite")
        return found

    def _add(self, name: str, layer: nn.Module, arguments: tuple, options: dict[str, Any]) -> None:
        inputs = (arguments or tuple(options.values()))[0].detach()
        rows = patches(layer, inputs) if isinstance(layer, CONVOLUTIONS) else inputs
        valid = self.valid_of(name)
        if valid is not None:
            rows = rows[fitted_positions(valid, rows.shape[:-1], name)]
        rows = rows.reshape(-1, rows.shape[-1]).to(torch.promote_types(layer.weight.dtype, torch.float32))
        if name not in self._sums:
            self._sums[name] = rows.new_zeros(rows.shape[1], rows.shape[1])
        self._sums[name].addmm_(rows.T, rows)


def patches(layer: nn.Module, inputs: Tensor) -> Tensor:
    """Returns what the kernels of a convolution read at each position, [batch, *positions, inputs * taps]."""
    axes = len(layer.kernel_size)
    inputs = inputs if inputs.dim() == axes + 2 else inputs[None]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    read = functional.pad(inputs, layer._reversed_padding_repeated_twice, mode=mode)
    for axis in range(axes):
        dilation = layer.dilation[axis]
        width = dilation * (layer.kernel_size[axis] - 1) + 1
        read = read.unfold(axis + 2, width, layer.stride[axis])[..., ::dilation]
    return read.movedim(1, axes + 1).flatten(axes + 1)
