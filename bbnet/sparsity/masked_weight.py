"""A slab's weight and its mask, which is applied to the weight, its gradient and its optimiser state."""

import math
import weakref
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.weak import WeakIdKeyDictionary

from bbnet.sparsity.ranks import mean_over_ranks
from bbnet.sparsity.slab import Side, Slab, connection_norms, over_weight, slab_shape

Rescale = Literal["none", "sqrt", "energy"]

_masked = WeakIdKeyDictionary()


class MaskedWeight:
    """A slab's weight, its current mask, and the dormant values of its pruned connections.

    Args:
        side: that of the slab, as the weight is stored; see `stored_side`.
        dormant: whether pruned connections keep their value and return to it when regrown, instead of starting at 0.
        watches_gradient: whether the dense gradient is gathered while `gathering` is set.
    Raises: ValueError if the weight is masked already.
    """

    def __init__(
        self, slab: Slab, weight: nn.Parameter, side: Side, rescale: Rescale, *, dormant: bool, watches_gradient: bool
    ) -> None:
        if weight in _masked:
            raise ValueError(
                f"slab {slab.name}: its weight is sparsified already; call remove() of that sparsifier, or use "
                "a copy.deepcopy of the model"
            )
        self.slab = slab
        self.weight = weight
        self.side = side
        self.rescale = "none" if slab.normalised else rescale
        self.keeps_dormant = dormant
        units, fan = slab_shape(weight, side)
        self.mask = torch.ones(units, fan, dtype=torch.bool, device=weight.device)
        self.dormant = torch.zeros_like(weight)
        self.scale = torch.ones(units, device=weight.device)
        # Each unit's degree at its last sqrt rescaling. A unit without connections keeps it until some are regrown.
        self.answered = torch.full((units,), fan, device=weight.device)
        self.grad_mask = torch.ones_like(weight)
        self.gathering = False
        self._dense_gradient: Tensor | None = None
        self._pending_gradient: Tensor | None = None
        self._masked_gradient: tuple[weakref.ref, int] | None = None
        self._hooks = [weight.register_post_accumulate_grad_hook(weakly(self._mask_gradient))]
        if watches_gradient:
            self._hooks.append(weight.register_hook(weakly(self._add_gradient)))
        _masked[weight] = True

    def remove(self) -> None:
        """Removes the hooks from the weight. Its values do not change."""
        for hook in self._hooks:
            hook.remove()
        del _masked[self.weight]

    def full(self) -> Tensor:
        """Returns the weight with each pruned connection restored to its dormant value."""
        return self.weight + self.dormant

    def scores(self) -> Tensor:
        return connection_norms(self.full(), self.side)

    def gradient(self) -> Tensor | None:
        """Returns the magnitude of the dense gradient per connection, [units, fan], averaged over ranks.

        None if it was not gathered, is not finite, or is 0 everywhere because the layer was not used.
        """
        if not self.gathering:
            return None
        dense = torch.zeros_like(self.weight) if self._dense_gradient is None else self._dense_gradient
        mean_over_ranks(dense)
        norms = connection_norms(dense, self.side)
        largest = float(norms.amax())
        return norms if math.isfinite(largest) and largest > 0 else None

    def put(self, mask: Tensor, optimizer: Optimizer) -> None:
        """Applies a new mask to weight, dormant values and gradient; zeroes the optimiser state where it changed."""
        full = self.full()
        factor = self._rescale_factor(full, mask)
        if factor is not None:
            full = full * self._over_weight(factor[:, None])
            self.scale = self.scale * factor
        changed = self._over_weight(mask != self.mask).expand_as(self.weight)
        live = self._over_weight(mask)
        self.mask = mask
        self.weight.copy_(torch.where(live, full, 0.0))
        if self.keeps_dormant:
            self.dormant = full - self.weight
        self.grad_mask.copy_(live)
        if self.weight.grad is not None:
            self.weight.grad.mul_(self.grad_mask)
        zero_state(optimizer, self.weight, changed)

    def gather(self, gathering: bool) -> None:
        """Sets whether the dense gradient is gathered, and discards what was gathered so far."""
        self.gathering = gathering
        self._dense_gradient = self._pending_gradient = None

    def mask_gradient(self) -> None:
        """Masks a gradient that was replaced or changed since it was accumulated, or that no backward pass made."""
        gradient = self.weight.grad
        if gradient is not None and not self._is_masked(gradient):
            gradient.mul_(self.grad_mask)

    def _is_masked(self, gradient: Tensor) -> bool:
        """Returns whether a gradient is the one that was masked last, and has not been changed since then."""
        if self._masked_gradient is None:
            return False
        masked, version = self._masked_gradient
        return masked() is gradient and gradient._version == version

    def check_pruned(self, model: nn.Module) -> None:
        """Raises ValueError if a pruned weight is not 0, any weight is not finite, or `model` has another weight."""
        name = self.slab.name
        try:
            weight = model.get_submodule(name).weight
        except AttributeError:
            weight = None
        if weight is not self.weight:
            raise ValueError(
                f"slab {name}: the model has another weight or layer there now, for example after load_state_dict with "
                "assign=True; load weights in place, or call remove() and bbnet.sparsify again"
            )
        furthest = float((self.weight * (1 - self.grad_mask)).abs().amax())
        if math.isnan(furthest):
            raise ValueError(f"slab {name}: weights hold NaN or infinite values")
        if furthest > 0:
            raise ValueError(
                f"slab {name}: a pruned weight is not 0. If the weights were overwritten, for example by a dense "
                "checkpoint, mask them with sparsifier.apply_to(model); otherwise the optimiser moves weights whose "
                "gradient and state are 0"
            )

    def state_dict(self) -> dict[str, Tensor]:
        return {name: getattr(self, name).clone() for name in ("dormant", "scale", "answered")}

    def load_state_dict(self, state: dict[str, Any], mask: Tensor) -> None:
        device = self.weight.device
        self.mask = mask.to(device)
        self.dormant, self.scale, self.answered = (
            state[name].to(device, copy=True) for name in ("dormant", "scale", "answered")
        )
        self.grad_mask.copy_(self._over_weight(self.mask))

    def _add_gradient(self, gradient: Tensor) -> None:
        """Adds the dense gradient of a micro-batch to the previous ones, unless gradients were zeroed since then."""
        if not self.gathering:
            return
        accumulated = self.weight.grad
        if self._dense_gradient is None or accumulated is None:
            self._pending_gradient = gradient.detach().clone()
        elif self._is_masked(accumulated):
            self._pending_gradient = self._dense_gradient + gradient
        else:
            zeroed = ~accumulated.any()
            self._pending_gradient = torch.where(zeroed, 0.0, self._dense_gradient) + gradient

    def _mask_gradient(self, weight: nn.Parameter) -> None:
        weight.grad.mul_(self.grad_mask)
        # This hook runs only if the gradient was accumulated, not if torch.autograd.grad asked for it.
        self._dense_gradient = self._pending_gradient
        self._masked_gradient = (weakref.ref(weight.grad), weight.grad._version)

    def _rescale_factor(self, full: Tensor, mask: Tensor) -> Tensor | None:
        if self.rescale == "none":
            return None
        degree = mask.sum(1)
        moved = (mask != self.mask).any(1) & (degree > 0)
        if self.rescale == "sqrt":
            factor = (self.answered / degree.clamp(min=1)).sqrt()
            self.answered = torch.where(moved, degree, self.answered)
        else:
            norms = connection_norms(full, self.side)
            old, new = (torch.linalg.vector_norm(norms * kept, dim=1) for kept in (self.mask, mask))
            moved = moved & (old > 0) & (new > 0)
            factor = old / new
        return torch.where(moved, factor, 1.0).to(full.dtype)

    def _over_weight(self, per_connection: Tensor) -> Tensor:
        return over_weight(per_connection, self.weight, self.side)


def weakly(method: Callable) -> Callable:
    """Returns a function that calls a bound method as long as its object lives.

    A hook on a tensor is invisible to Python's garbage collector. If it held an object that holds the tensor, neither
    would ever be freed.
    """
    reference = weakref.WeakMethod(method)

    def call(argument: Tensor) -> None:
        alive = reference()
        if alive is not None:
            alive(argument)

    return call


def weight_state(optimizer: Optimizer, weight: nn.Parameter) -> dict[str, Tensor]:
    """Returns the tensors of the optimiser's state of `weight` that have the shape of the weight, by key."""
    state = optimizer.state.get(weight, {})
    return {key: value for key, value in state.items() if torch.is_tensor(value) and value.shape == weight.shape}


def zero_state(optimizer: Optimizer, weight: nn.Parameter, where: Tensor) -> None:
    """Zeroes the tensors of `weight_state` where `where` is true."""
    for value in weight_state(optimizer, weight).values():
        value.masked_fill_(where, 0)
