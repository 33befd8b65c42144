"""Copies of a sparsified model, such as weight averages: a warning if they are used without the masks."""

import warnings
import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from bbnet.sparsity.hooks import WatchingHook

if TYPE_CHECKING:
    from bbnet.sparsity.sparsifier import Sparsifier


class OfSparsified(WatchingHook):
    """Marks a sparsified model. In a deepcopy, such as a weight average, it becomes an `OfCopy`."""

    def __init__(self, sparsifier: "Sparsifier") -> None:
        self.sparsifier = weakref.ref(sparsifier)

    def __call__(self, *args: Any) -> None:
        pass

    def __deepcopy__(self, memo: dict[int, Any]) -> "OfCopy":
        return OfCopy(self.sparsifier)


class OfCopy(WatchingHook):
    """Warns at the first forward pass of a copy if it has weights where the original has none now."""

    def __init__(self, sparsifier: weakref.ref) -> None:
        self.sparsifier = sparsifier
        self.is_checked = False

    def __call__(self, copied: nn.Module, *args: Any) -> None:
        if self.is_checked or torch.compiler.is_compiling():
            return
        self.is_checked = True
        sparsifier = self.sparsifier()
        for masked in [] if sparsifier is None else sparsifier.weights:
            if bool((copied.get_submodule(masked.slab.name).weight * masked.dead()).any()):
                warnings.warn(
                    f"this copy of a sparsified model has non-zero weights at {masked.slab.name} where connections are "
                    "pruned; if it is an average of weights, mask it with sparsifier.apply_to(copy)",
                    stacklevel=3,
                )
                return

    def __deepcopy__(self, memo: dict[int, Any]) -> "OfCopy":
        return OfCopy(self.sparsifier)
