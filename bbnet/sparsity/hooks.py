"""Hooks that bbnet puts on the modules of a model, and what becomes of them in a copy."""

import sys
from typing import Any

import torch
from torch import nn


class ModuleHook:
    """A hook on a module's forward pass; base of all that bbnet registers."""


class WatchingHook(ModuleHook):
    """A hook that looks on and changes nothing: a deepcopy or a saved file of the model has `ignore` in its place."""

    def __reduce__(self) -> tuple:
        return (_ignore, ())


def ignore(*args: Any) -> None:
    """What is left of a watching hook in a copy of its model."""


def _ignore() -> Any:
    return ignore


def forget_compiled() -> None:
    """Forward passes compiled before are compiled anew: they do not look for new hooks, nor at what gates let pass."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


def remove_hooks(model: nn.Module) -> None:
    """Takes every hook of bbnet, and what is left of one in a copy, off the modules of `model`."""
    for module in model.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key, hook in list(hooks.items()):
                if hook is ignore or isinstance(hook, ModuleHook):
                    del hooks[key]
