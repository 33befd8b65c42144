"""Copies of a sparsified model, such as weight averages: a warning if they are used without the masks."""

import warnings
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from bbnet.sparsity.hooks import WatchingHook

if TYPE_CHECKING:
    from bbnet.sparsity.sparsifier import Sparsifier


class OfSparsified(WatchingHook):
    """Marks a sparsified model and notes its forward passes. In a deepcopy, such as an average, it is an `OfCopy`."""

    def __init__(self, sparsifier: "Sparsifier") -> None:
        self.sparsifier = weakref.ref(sparsifier)

    def __call__(self, model: nn.Module, *args: Any) -> None:
        sparsifier = None if torch.compiler.is_compiling() else self.sparsifier()
        if sparsifier is not None and model.training and torch.is_grad_enabled():
            sparsifier.step_watch.forward()

    def __deepcopy__(self, memo: dict[int, Any]) -> "OfCopy":
        return OfCopy(self.sparsifier)


class OfCopy(WatchingHook):
    """Warns once, at the first forward pass after a refresh, if a copy has weights where the original has none."""

    def __init__(self, sparsifier: Callable[[], "Sparsifier | None"]) -> None:
        self.sparsifier = sparsifier
        self.checked_refreshes = 0

    def __call__(self, copied: nn.Module, *args: Any) -> None:
        sparsifier = None if torch.compiler.is_compiling() else self.sparsifier()
        if sparsifier is None or len(sparsifier.refreshes) == self.checked_refreshes:
            return
        self.checked_refreshes = len(sparsifier.refreshes)
        for masked in sparsifier.weights:
            if bool((copied.get_submodule(masked.slab.name).weight * masked.dead()).any()):
                warnings.warn(
                    f"this copy of a sparsified model has non-zero weights at {masked.slab.name} where connections are "
                    "pruned; if it is an average of weights, mask it with sparsifier.apply_to(copy)",
                    stacklevel=3,
                )
                self.sparsifier = lambda: None
                return

    def __deepcopy__(self, memo: dict[int, Any]) -> "OfCopy":
        return OfCopy(self.sparsifier)


def check_hooks(model: nn.Module) -> "list[Sparsifier]":
    """Checks a copy as its forward pass would, and returns the sparsifiers of a sparsified model."""
    hooks = [hook for module in model.modules() for hook in module._forward_pre_hooks.values()]
    for hook in hooks:
        if isinstance(hook, OfCopy):
            hook(model)
    found = (hook.sparsifier() for hook in hooks if isinstance(hook, OfSparsified))
    return [sparsifier for sparsifier in found if sparsifier is not None]
