"""Input norms: the root mean square of each channel that a layer reads, gathered like on-rates."""

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bbnet.sparsity.forward_averages import ForwardAverages
from bbnet.sparsity.hooks import WatchingHook
from bbnet.sparsity.slab import Slab


class InputNorms(ForwardAverages):
    """Averages of the square over the positions of layers' inputs."""

    figure: ClassVar[str] = "input norms"

    @classmethod
    def of_slabs(cls, model: nn.Module, slabs: Iterable[Slab], **options: Any) -> "InputNorms":
        """Watches the inputs of the slabs' own layers."""
        return cls({slab.name: model.get_submodule(slab.name) for slab in slabs}, **options)

    def of(self, name: str) -> Tensor:
        """Root mean squares, float64 [inputs], of what the layer reads; raises RuntimeError if it was never seen."""
        return self.average((name,)).sqrt()

    def _register(self, module: nn.Module, hook: WatchingHook) -> RemovableHandle:
        return module.register_forward_pre_hook(hook)

    def _total(self, positions: Tensor, valid: Tensor | None) -> Tensor:
        squares = positions.float().square()
        if valid is not None:
            squares *= valid[..., None]
        return squares.sum(tuple(range(squares.dim() - 1)), dtype=torch.float64)
