"""On-rates: the share of positions at which each unit is on, as a slow moving average of exact counts."""

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
    """Moving averages of the share of positions at which the outputs of modules are above 0."""

    figure: ClassVar[str] = "on-rates"
    fewest_since: ClassVar[int] = SILENT_POSITIONS

    @classmethod
    def of_slabs(cls, model: nn.Module, slabs: Iterable[Slab], **options: Any) -> "OnRates":
        """Creates the on-rates of the units of slabs."""
        slabs = list(slabs)
        return cls(unit_modules(model, slabs), channels_first=channels_first(model, slabs), root=model, **options)

    def of(self, names: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """Returns the bias-corrected on-rates, float64, of the units of several modules, and which are silent, bool.

        A unit is silent if it was on at no position since the last refresh. If fewer than 1,000 positions were seen
        since then, those since an earlier refresh count too, up to which 1,000 were seen; without so many no unit is.

        Raises: RuntimeError if a module has not been sampled yet.
        """
        rates = self.average(names)
        on_since, seen_since = self.since(names)
        return rates, (on_since == 0) & (seen_since >= SILENT_POSITIONS)

    def _register(self, module: nn.Module, hook: WatchingHook) -> RemovableHandle:
        return module.register_forward_hook(hook)

    def _read(self, arguments: tuple, other: Tensor) -> Tensor:
        return other

    def _total(self, positions: Tensor, valid: Tensor | None) -> Tensor:
        # On a CPU sign, clamp and a floating-point sum take a third of the time of a sum of booleans.
        on = positions.sign().clamp_(min=0)
        if valid is not None:
            on *= valid[..., None]
        exact = torch.float32 if on[..., 0].numel() <= EXACT_IN_FLOAT32 else torch.float64
        return on.sum(tuple(range(on.dim() - 1)), dtype=exact)
