"""Input norms: the root mean square of each input channel of a layer, gathered like on-rates."""

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bbnet.sparsity.forward_averages import ForwardAverages
from bbnet.sparsity.hooks import WatchingHook
from bbnet.sparsity.slab import Slab


class InputNorms(ForwardAverages):
    """Moving averages of the squared inputs of layers over positions."""

    figure: ClassVar[str] = "input norms"

    @classmethod
    def of_slabs(cls, model: nn.Module, slabs: Iterable[Slab], **options: Any) -> "InputNorms":
        """Creates the input norms of the layers of slabs."""
        return cls({slab.name: model.get_submodule(slab.name) for slab in slabs}, root=model, **options)

    def of(self, name: str) -> Tensor:
        """Returns the root mean squares of a layer's inputs, float64 [inputs]; raises RuntimeError if it has none."""
        return self.average((name,)).sqrt()

    def _register(self, module: nn.Module, hook: WatchingHook) -> RemovableHandle:
        return module.register_forward_pre_hook(hook, with_kwargs=True)

    def _read(self, arguments: tuple, other: dict[str, Any]) -> Tensor:
        return (arguments or tuple(other.values()))[0]

    def _total(self, positions: Tensor, valid: Tensor | None) -> Tensor:
        squares = positions.float().square()
        if valid is not None:
            squares *= valid[..., None]
        return squares.sum(tuple(range(squares.dim() - 1)), dtype=torch.float64)
