"""A slab's weight and its mask, which is applied to the weight, its gradient and its optimiser state."""

import math
import weakref
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.weak import WeakIdKeyDictionary

from bbnet.sparsity.ranks import mean_over_ranks
from bbnet.sparsity.slab import Side, Slab, connection_norms, over_weight, slab_shape

Rescale = Literal["none", "sqrt", "energy"]

# Keys of the state of torch's Adam and RMSprop, and of optimisers like them; see `MaskedWeight.hold_squares`.
SQUARES = ("exp_avg_sq", "max_exp_avg_sq", "square_avg")
SQUARE_OF_PRUNED = 1e-20

_masked = WeakIdKeyDictionary()


def rescale_of(weight: Tensor) -> Rescale:
    """Returns how the rows of a weight are rescaled when it is masked; `none` if no sparsifier masks it."""
    return _masked.get(weight, "none")


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
        units, fan = slab_shape(weight, side)
        self._set_mask(torch.ones(units, fan, dtype=torch.bool, device=weight.device))
        self.dormant = torch.zeros_like(weight) if dormant else None
        self.scale = torch.ones(units, device=weight.device)
        # Each unit's degree at its last sqrt rescaling. A unit without connections keeps it until some are regrown.
        self.answered = torch.full((units,), fan, device=weight.device)
        self.gathering = False
        self._dense_gradient: Tensor | None = None
        self._pending_gradient: Tensor | None = None
        self._masked_gradient: tuple[weakref.ref, int] | None = None
        self._hooks = [weight.register_post_accumulate_grad_hook(weakly(self._mask_gradient))]
        if watches_gradient:
            self._hooks.append(weight.register_hook(weakly(self._add_gradient)))
        _masked[weight] = self.rescale

    def remove(self) -> None:
        """Removes the hooks from the weight. Its values do not change."""
        for hook in self._hooks:
            hook.remove()
        del _masked[self.weight]

    @property
    def mask(self) -> Tensor:
        """The mask, bool [units, fan]."""
        return self._live if self.side == "in" else self._live.T

    def _set_mask(self, mask: Tensor) -> None:
        # Stored in the order of the weight's entries, since another order makes products several times slower.
        self._live = (mask if self.side == "in" else mask.T).contiguous()
        self.degrees = mask.sum(1)

    def apply(self, values: Tensor) -> Tensor:
        """Sets the entries of pruned connections in a tensor of the weight's shape to 0, in place, and returns it."""
        return values.mul_(self._factor(self._live).to(values.device))

    def _apply_to_gradient(self, gradient: Tensor) -> None:
        if gradient.device.type == "cpu" and gradient.dtype in (torch.float32, torch.float64):
            # numpy takes 60 % of the time of torch, which converts the whole mask to floating point first.
            values = gradient.detach().numpy()
            with np.errstate(invalid="ignore"):  # a gradient that is not finite stays so, and its step is skipped
                np.multiply(values, self._factor(self._live).numpy(), out=values)
        else:
            self.apply(gradient)

    def dead(self) -> Tensor:
        """Returns 1 for the weights of pruned connections and 0 for others, uint8, broadcastable to the weight."""
        return self._factor(~self._live)

    def _factor(self, live: Tensor) -> Tensor:
        """Returns a mask as a factor of the weight; on a CPU uint8 is multiplied twice as fast as bool."""
        return live.view(torch.uint8).reshape(*live.shape, *(1 for _ in self.weight.shape[2:]))

    def full(self) -> Tensor:
        """Returns the weight with each pruned connection restored to its dormant value."""
        return self.weight if self.dormant is None else self.weight + self.dormant

    def scores(self) -> Tensor:
        return connection_norms(self.full(), self.side)

    def join_ranks(self) -> None:
        """Averages the dense gradient over ranks, if it is gathered; without one it is 0."""
        if self.gathering:
            if self._dense_gradient is None:
                self._dense_gradient = torch.zeros_like(self.weight)
            mean_over_ranks(self._dense_gradient)

    def gradient(self) -> Tensor | None:
        """Returns the magnitude of the dense gradient per connection, [units, fan].

        None if it was not gathered, is not finite, or is 0 everywhere because the layer was not used.
        """
        if self._dense_gradient is None:
            return None
        norms = connection_norms(self._dense_gradient, self.side)
        largest = float(norms.amax())
        return norms if math.isfinite(largest) and largest > 0 else None

    def put(self, mask: Tensor, optimizer: Optimizer) -> int:
        """Applies a new mask to weight, dormant values, gradient and optimiser state; returns how many entries differ.

        The optimiser state of connections that are pruned or regrown starts anew.
        """
        full = self.full()
        factor = self._rescale_factor(full, mask)
        if factor is not None:
            full = full * over_weight(factor[:, None], self.weight, self.side)
            self.scale = self.scale * factor
        before = self._live
        self._set_mask(mask)
        if self.dormant is None:
            self.weight.copy_(self.apply(full.clone() if full is self.weight else full).add_(0.0))  # turns -0 into 0
        else:
            self.dormant = full * self.dead()
            self.weight.copy_(full.sub_(self.dormant))
        if self.weight.grad is not None:
            self.apply(self.weight.grad)
        changed = (before ^ self._live).nonzero(as_tuple=True)
        for value in weight_state(optimizer, self.weight).values():
            value.index_put_(changed, value.new_zeros(()))
        self.hold_squares(optimizer)
        return len(changed[0])

    def hold_squares(self, optimizer: Optimizer) -> None:
        """Sets moving averages of squared gradients of pruned weights to 1e-20 on a CPU.

        They have no effect, since gradient and momentum of these weights are 0. The square root that Adam computes of
        them takes 30 times as long for 0 (24 instead of 0.7 ms for 3072 x 768 entries, half of them 0).
        """
        for value in squares(optimizer, self.weight):
            self.apply(value).add_(self.dead(), alpha=SQUARE_OF_PRUNED)

    def use_loaded_state(self, optimizer: Optimizer) -> None:
        """Clears what a loaded optimiser state holds of pruned weights, except what `hold_squares` has left there."""
        held = {id(value) for value in squares(optimizer, self.weight)}
        for value in weight_state(optimizer, self.weight).values():
            pruned = value * self.dead()
            self.apply(value)
            if id(value) in held:
                value += pruned.clamp_(max=SQUARE_OF_PRUNED)

    def gather(self, gathering: bool) -> None:
        """Sets whether the dense gradient is gathered, and discards what was gathered so far."""
        self.gathering = gathering
        self._dense_gradient = self._pending_gradient = None

    def mask_gradient(self) -> None:
        """Masks a gradient that was replaced or changed since it was accumulated, or that no backward pass made."""
        gradient = self.weight.grad
        if gradient is None or self._is_masked(gradient):
            return
        if self.gathering:
            taken = self._dense_gradient if self._pending_gradient is None else self._pending_gradient
            self._dense_gradient = gradient.clone() if taken is None else taken
        self._apply_to_gradient(gradient)

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
        furthest = float(torch.stack((self.weight.detach() * self.dead()).aminmax()).abs().amax())
        if math.isnan(furthest):
            raise ValueError(f"slab {name}: weights hold NaN or infinite values")
        if furthest > 0:
            raise ValueError(
                f"slab {name}: a pruned weight is not 0. If the weights were overwritten, for example by a dense "
                "checkpoint, mask them with sparsifier.apply_to(model); otherwise the optimiser moves weights whose "
                "gradient and state are 0, or a hook of its step changes gradients after those of bbnet"
            )

    def state_dict(self) -> dict[str, Tensor | None]:
        names = ("dormant", "scale", "answered")
        return {name: None if getattr(self, name) is None else getattr(self, name).clone() for name in names}

    def load_state_dict(self, state: dict[str, Any], mask: Tensor) -> None:
        device = self.weight.device
        self._set_mask(mask.to(device))
        if self.dormant is not None:
            self.dormant = state["dormant"].to(device, copy=True)
        self.scale, self.answered = (state[name].to(device, copy=True) for name in ("scale", "answered"))

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
        if weight.grad is None:  # a hook registered before this one has made the step already
            return
        self._apply_to_gradient(weight.grad)
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


def squares(optimizer: Optimizer, weight: nn.Parameter) -> list[Tensor]:
    """Returns the moving averages of squared gradients in the optimiser's state of a `weight` on a CPU."""
    return [
        value
        for key, value in weight_state(optimizer, weight).items()
        if key in SQUARES and value.device.type == "cpu" and value.dtype in (torch.float32, torch.float64)
    ]
