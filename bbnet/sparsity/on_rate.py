"""On-rates: the share of positions at which each unit is on, counted exactly and folded into a slow average."""

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bbnet.sparsity.forward_averages import ForwardAverages
from bbnet.sparsity.hooks import WatchingHook
from bbnet.sparsity.slab import Slab, channels_first, unit_modules

SILENT_POSITIONS = 1000
EXACT_IN_FLOAT32 = 2**24


class OnRates(ForwardAverages):
    """Averages of "above 0" over the positions of modules' outputs; the counts behind them are exact."""

    figure: ClassVar[str] = "on-rates"

    @classmethod
    def of_slabs(cls, model: nn.Module, slabs: Iterable[Slab], **options: Any) -> "OnRates":
        """Counts the units of slabs."""
        slabs = list(slabs)
        return cls(unit_modules(model, slabs), channels_first=channels_first(model, slabs), **options)

    def of(self, names: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """Bias-corrected on-rates, float64, and silence, bool, of the units of several modules, in that order.

        A unit is silent that was on at none of at least 1,000 positions since the last refresh.

        Raises: RuntimeError if a module was never seen.
        """
        rates = self.average(names)
        on_since, seen_since = self.since(names)
        return rates, (on_since == 0) & (seen_since >= SILENT_POSITIONS)

    def _register(self, module: nn.Module, hook: WatchingHook) -> RemovableHandle:
        return module.register_forward_hook(hook)

    def _total(self, positions: Tensor, valid: Tensor | None) -> Tensor:
        # sign, clamp and a floating sum take a third of the time of a sum of booleans on a CPU.
        on = positions.sign().clamp_(min=0)
        if valid is not None:
            on *= valid[..., None]
        exact = torch.float32 if on[..., 0].numel() <= EXACT_IN_FLOAT32 else torch.float64
        return on.sum(tuple(range(on.dim() - 1)), dtype=exact)
