"""Hooks that bbnet puts on the modules of a model, and what becomes of them in a copy."""

from typing import Any

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


def remove_hooks(model: nn.Module) -> None:
    """Takes every hook of bbnet, and what is left of one in a copy, off the modules of `model`."""
    for module in model.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key, hook in list(hooks.items()):
                if hook is ignore or isinstance(hook, ModuleHook):
                    del hooks[key]
