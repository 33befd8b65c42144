"""Notices a training loop that does not step the optimizer whose steps are counted."""

import warnings
import weakref

from torch import Tensor, nn
from torch.optim import Optimizer

from bbnet.sparsity.masked_weight import weakly

# Gradients that were accumulated from zero without a step of the optimizer in between, from which a warning, and an
# error if there was no step at all, follow. A GradScaler may skip some steps in a row.
WARN_AFTER, END_AFTER = 20, 100


class StepWatch:
    """Counts the gradients of one weight that begin anew since the last step of the optimizer."""

    def __init__(self, weight: nn.Parameter, optimizer: Optimizer) -> None:
        self._optimizer = type(optimizer).__name__
        self._gradients = 0
        self._forwards = 0
        self._has_stepped = False
        self._is_new = False
        self._last_gradient: tuple[weakref.ref, int] | None = None
        self._weight = weakref.ref(weight)
        self._hooks = [
            weight.register_hook(weakly(self._before)),
            weight.register_post_accumulate_grad_hook(weakly(self._count)),
        ]

    def remove(self) -> None:
        """Removes the hooks from the weight."""
        for hook in self._hooks:
            hook.remove()

    def stepped(self) -> None:
        """Notes a step of the optimizer."""
        self._gradients = self._forwards = 0
        self._has_stepped = True

    def forward(self) -> None:
        """Notes a forward pass in training, to notice that no gradient arrives by a backward pass either."""
        self._forwards += 1
        if self._forwards == WARN_AFTER and not self._has_stepped and self._gradients == 0:
            warnings.warn(
                f"{self._forwards} forward passes came without a step of the {self._optimizer} that bbnet.sparsify was "
                "given, and without a gradient of its first slab; if another optimizer trains the model, call sparsify "
                "with it",
                stacklevel=2,
            )

    def _before(self, gradient: Tensor) -> None:
        """Notes whether the gradient of the last backward pass was removed, or changed as by zeroing it in place."""
        accumulated = getattr(self._weight(), "grad", None)
        last, version = self._last_gradient or (lambda: None, 0)
        self._is_new = accumulated is None or last() is not accumulated or accumulated._version != version

    def _count(self, weight: Tensor) -> None:
        if weight.grad is None:
            return
        self._last_gradient = (weakref.ref(weight.grad), weight.grad._version)
        if not self._is_new:
            return
        self._gradients += 1
        if self._gradients < WARN_AFTER:
            return
        what = f"{self._gradients} gradients came without a step of the {self._optimizer}"
        if self._gradients == WARN_AFTER:
            warnings.warn(
                f"{what} that bbnet.sparsify was given; if another optimizer trains the model, call sparsify with it",
                stacklevel=2,
            )
        if self._gradients == END_AFTER and not self._has_stepped:
            raise RuntimeError(f"{what} that bbnet.sparsify was given, so the masks are never updated")
