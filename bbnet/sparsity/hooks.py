"""Hooks that bbnet registers on the modules of a model, and how they behave when the model is copied."""

import sys
from typing import Any

import torch
from torch import nn


class ModuleHook:
    """Base of all hooks that bbnet registers on the forward passes of modules."""

    def __getattr__(self, name: str) -> Any:
        if name == "__name__":  # torch.jit.script asks every hook for it first
            raise AttributeError(
                "torch.jit.script cannot compile a model with hooks of bbnet; script bbnet.export(model) instead"
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


class WatchingHook(ModuleHook):
    """A hook that only reads. In a deepcopy or a saved file of the model it is replaced by `ignore`."""

    def __reduce__(self) -> tuple:
        return (_ignore, ())


def ignore(*args: Any) -> None:
    """Does nothing. Takes the place of a watching hook in a copy of its model."""


def _ignore() -> Any:
    return ignore


def forget_compiled() -> None:
    """Discards compiled forward passes, since compiled code notices neither new hooks nor a new share of the gates."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


def remove_hooks(model: nn.Module) -> None:
    """Removes every hook of bbnet from the modules of `model`, and every `ignore` that replaced one in a copy."""
    for module in model.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key, hook in list(hooks.items()):
                if hook is ignore or isinstance(hook, ModuleHook):
                    del hooks[key]
