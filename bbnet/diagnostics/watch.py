"""Watches the gradient flow of a model in any training loop, through the hooks of its optimiser's steps."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from bbnet.binary.binarizer import Binarizer
from bbnet.diagnostics.record import Record, Watchable
from bbnet.diagnostics.reductions import Copies
from bbnet.sparsity.slab import TRANSPOSED_CONVOLUTIONS, is_layer, is_transposed, unwrap
from bbnet.sparsity.sparsifier import Sparsifier, check_supported, inner_optimizer

UNSUPPORTED_MODULES = dict.fromkeys(("FullyShardedDataParallel", "FSDPModule"), "no rank holds whole gradients")
GRADIENT = ("norm", "largest", "sum", "non_zero")
FIGURES = (
    *GRADIENT,
    "dead",
    "weight_norm",
    "update_norm",
    "update_largest",
    "change_norm",
    "change_largest",
    "grad_scale",
    "found_inf",
)
UNIT_FIGURES = ("flows", "pruned")


def watch(model: nn.Module, optimizer: Optimizer, every: int = 10) -> "Watched":
    """Watches gradients, updates and weights of `model` while `optimizer` trains it, inside a `with`.

    The first step and then every `every`-th one are observed: the gradient with which the optimiser steps (accumulated,
    unscaled, clipped and masked), and the weight before and after the step. Training is the same to the bit with and
    without it. The model is not changed or wrapped, and has no hooks.

    Of a weight that `bbnet.sparsify` masks, only live entries count, and what a refresh of the masks changes is no
    update. Of a layer that `bbnet.binarize` keeps binary, the latent weight is the weight. Steps that a GradScaler
    skips are not observed.

    Args:
        model: the model, or the model wrapped by torch.compile or DistributedDataParallel.
        optimizer: the optimiser, or a wrapper around it. Parameters that it does not hold are named in the report.
        every: number of steps per observed step.
    Returns: what is watched, whose `report`, `rows`, `to_frame`, `to_json`, `to_csv` can be called at any time.
    Raises: ValueError for `every` below 1, a model without parameters or with parameters that have no shape yet, and
        fully sharded models.
    """
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ValueError(f"every must be a whole number of steps from 1 on, not {every!r}")
    optimizer = inner_optimizer(optimizer)
    check_supported("watch", model, optimizer, UNSUPPORTED_MODULES, {})
    return Watched(unwrap(model), optimizer, every)


class Watched(Record):
    """The record of a training that is being watched. Created by `watch`; use it in a `with`, or `start` and `stop` it.

    Beside the record it holds, from `start` to `stop`, two copies of the weights: of the start, and of before a step.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, every: int) -> None:
        named = dict(model.named_parameters())
        if not named:
            raise ValueError("the model has no parameters to watch")
        lazy = [name for name, parameter in named.items() if is_lazy(parameter)]
        if lazy:
            raise ValueError(f"parameter {lazy[0]} has no shape yet: run a forward pass before bbnet.watch")
        axes = _unit_axes(model)
        super().__init__(
            [
                Watchable(
                    name, each.numel() * (2 if each.is_complex() else 1), each.shape[axes[name]] if name in axes else 0
                )
                for name, each in named.items()
            ],
            every,
        )
        self._axes = {number: axes[self.parameters[number].name] for number in self._units}
        self._model = model
        self._optimizer = optimizer
        self._weights: list[nn.Parameter] = list(named.values())
        self._numbers = {id(weight): number for number, weight in enumerate(self._weights)}
        self._handles: list[Any] = []
        self._start: dict[int, Tensor] = {}  # by number of the parameter
        self._copies = Copies({}, {})
        self._look: _Look | None = None
        self._was_started = self._is_due = self._is_stepping = False

    def __deepcopy__(self, memo: dict[int, Any]) -> "Watched":
        raise TypeError("what bbnet.watch returns cannot be copied or pickled; use its state_dict()")

    def __reduce__(self) -> tuple:
        self.__deepcopy__({})

    def __enter__(self) -> "Watched":
        self.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.stop()

    @torch.no_grad()
    def start(self) -> None:
        """Begins to watch. The change since the start is measured from here.

        Raises: RuntimeError if it was started before.
        """
        if self._was_started:
            raise RuntimeError("this watch was started before; call bbnet.watch again")
        self._was_started = True
        self._start = {number: weight.clone() for number, weight in self._real_weights(self._trained()).items()}
        self._copies = Copies(self._start, self._axes)
        self._handles = [
            self._optimizer.register_step_pre_hook(self._before_step),
            self._optimizer.register_step_post_hook(self._after_step),
        ]

    def stop(self) -> None:
        """Removes the hooks from the optimizer and frees the copies of the weights. What was recorded stays."""
        try:
            self._measure_change()
        finally:
            for handle in self._handles:
                handle.remove()
            self._handles, self._start, self._look = [], {}, None
            self._copies = Copies({}, {})

    @torch.no_grad()
    def _measure_change(self) -> None:
        """Reads how far the live weights are from those of the start."""
        if not self._start or not self.observations:
            return
        look, change = _Look(len(self._weights), self._units), Copies(self._start, self._axes)
        change.set(self._real_weights(self._start))
        change.subtract(self._start)
        for number, dead in self._dead().items():
            if number in self._start:
                change[number].mul_(1 - dead)
        look.measure("change_", ("norm", "largest"), change)
        self.note_change(look.read())

    def rows(self) -> list[dict[str, Any]]:
        self._measure_change()
        return super().rows()

    def state_dict(self) -> dict[str, Any]:
        self._measure_change()
        return super().state_dict()

    # --- Hooks ------------------------------------------------------------------------------------------------------

    def _acting(self, kind: type) -> list[Any]:
        """Returns the sparsifiers or binarizers that act in the steps of the optimizer."""
        owners = [getattr(hook, "__self__", None) for hook in self._optimizer._optimizer_step_pre_hooks.values()]
        return [owner for owner in owners if isinstance(owner, kind)]

    def _of_binarizers(self, of: Callable[[Binarizer], Mapping[str, Any]]) -> dict[int, Any]:
        """Returns, by number of the parameter, what `of` returns of the layers of binarizers."""
        return {
            self._numbers[id(binarizer.layers[name].weight)]: value
            for binarizer in self._acting(Binarizer)
            for name, value in of(binarizer).items()
            if id(binarizer.layers[name].weight) in self._numbers
        }

    def _real_weights(self, numbers: Iterable[int]) -> dict[int, Tensor]:
        """Returns the weights of some parameters between two steps, of binary layers the latent ones."""
        latent = self._of_binarizers(Binarizer.latent_weights)
        return {number: latent.get(number, self._weights[number].detach()) for number in numbers}

    def _dead(self) -> dict[int, Tensor]:
        """Returns 1 where masked weights are pruned and 0 elsewhere, [out, in, *ones], by number of the parameter."""
        return {
            self._numbers[id(masked.weight)]: masked.dead()
            for sparsifier in self._acting(Sparsifier)
            for masked in sparsifier.weights
            if id(masked.weight) in self._numbers
        }

    def _is_held(self) -> np.ndarray:
        """Returns which parameters the optimizer holds, bool."""
        held = {id(each) for group in self._optimizer.param_groups for each in group["params"]}
        return np.array([number in held for number in self._numbers])

    def _trained(self) -> list[int]:
        """Returns the numbers of the parameters that the optimizer trains; empty ones are left out."""
        return [
            number
            for number in np.flatnonzero(self._is_held()).tolist()
            if self._weights[number].requires_grad and self._weights[number].numel()
        ]

    def _comes_last(self) -> bool:
        """Returns whether all hooks ahead of the step but those of other watches run before this one.

        Gradients are then masked already, and latent weights are in their parameters.
        """
        hooks = self._optimizer._optimizer_step_pre_hooks
        later = list(hooks)[list(hooks).index(self._handles[0].id) + 1 :]
        return all(isinstance(getattr(hooks[each], "__self__", None), Watched) for each in later)

    @torch.compiler.disable  # where the step is compiled too
    @torch.no_grad()
    def _before_step(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        self._is_stepping = True
        self._look = None
        self._is_due = self._is_due or self.steps % self.every == 0
        # Weights are read after the step before a hook clips them, makes them binary or masks them anew. The hooks that
        # follow a step may be reordered while those ahead of it run, and the other way round.
        optimizer._optimizer_step_post_hooks.move_to_end(self._handles[1].id, last=False)
        if not self._is_due or not self._comes_last():
            return None
        if not any(callable(each) for each in (*args, *kwargs.values())):
            self._look_before()
            return None
        # The only callable argument is a closure, which computes the gradients.
        args = tuple(self._looking(each) if callable(each) else each for each in args)
        return args, {name: self._looking(each) if callable(each) else each for name, each in kwargs.items()}

    def _looking(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """Returns a closure that computes the gradients and then looks at those of its first call."""

        def looking_closure() -> Any:
            loss = closure()
            if self._look is None and self._handles:
                with torch.no_grad():
                    self._look_before()
            return loss

        return looking_closure

    @torch.compiler.disable  # where the step is compiled too
    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        # An optimiser whose step() calls the step() of its base class runs this hook twice.
        if not self._is_stepping:
            return
        self._is_stepping = False
        optimizer._optimizer_step_pre_hooks.move_to_end(self._handles[0].id)
        if self._look is not None:
            self._look_after(self._look)
            self._look = None
        self.steps += 1

    # --- What is looked at ------------------------------------------------------------------------------------------

    def _look_before(self) -> None:
        """Takes the figures of the gradients, and copies the weights."""
        weights = {number: self._weights[number] for number in self._trained()}
        self._make_room(weights)
        self._look = look = _Look(len(self._weights), self._units)
        gradients = {number: weight.grad for number, weight in weights.items() if weight.grad is not None}
        self._copies.set(gradients)
        look.measure("", ("norm", "largest", "sum"), self._copies)
        look.count(self._copies)
        look.missing = [number for number in range(len(self._weights)) if number not in gradients]
        for number, dead in self._dead().items():
            look.add("dead", [number], (dead.sum() * (self._weights[number].numel() // dead.numel())).reshape(1))
            if number in self._axes:
                look.add("pruned", self._units[number], dead.all(1 - self._axes[number]).flatten())
        for name in ("grad_scale", "found_inf"):  # of a GradScaler, for fused optimisers
            value = getattr(self._optimizer, name, None)
            if value is not None:
                look.add(name, [0], torch.as_tensor(value).reshape(1))
        self._copies.set(weights)
        look.measure("weight_", ("norm",), self._copies)

    def _make_room(self, weights: Mapping[int, Tensor]) -> None:
        """Makes room for copies of the weights that are trained now, which others may have been before."""
        for number in weights.keys() - self._start.keys():
            self._start[number] = weights[number].detach().clone()
        for number, weight in weights.items():
            start = self._start[number]
            if weight.shape != start.shape or weight.device != start.device:
                raise ValueError(
                    f"parameter {self.parameters[number].name} has another shape or device than at the start of "
                    "bbnet.watch; start it after the model was moved"
                )
        if weights.keys() != set(self._copies):
            self._copies = Copies(weights, self._axes)

    def _look_after(self, look: "_Look") -> None:
        """Takes the figures of the update, reads all figures back at once, and records them."""
        bounds = self._of_binarizers(lambda binarizer: binarizer.half_ranges)
        self._copies.subtract(
            {
                number: self._weights[number].clamp(-bounds[number], bounds[number])
                if number in bounds
                else self._weights[number]
                for number in self._copies
            }
        )
        look.measure("update_", ("norm", "largest"), self._copies)
        values = look.read()
        if values["found_inf"][0] > 0:
            return
        scale = values["grad_scale"][0]
        if not np.isnan(scale):
            for name in ("norm", "largest", "sum"):
                values[name] = values[name] / scale
        entries = np.array([each.entries for each in self.parameters], dtype=float)
        values["live"] = live = entries - np.nan_to_num(values["dead"])
        safe = np.maximum(live, 1)
        values["mean"] = values.pop("sum") / safe
        values["zero_share"] = np.maximum(live - values.pop("non_zero"), 0) / safe
        trained = np.array([number in self._copies for number in range(len(live))]) & (live > 0)
        self.observe(self.steps + 1, values, self._is_held(), trained)
        self._is_due = False


class _Look:
    """The figures of parameters and units in one step, on their devices until `read`; NaN where there is none.

    Args:
        parameters: number of parameters.
        units: the places of each layer's units among all units, by number of its weight.
    Attributes:
        missing: numbers of the parameters without a gradient.
    """

    def __init__(self, parameters: int, units: Mapping[int, slice]) -> None:
        self.missing: list[int] = []
        self._parameters = parameters
        self._units = units
        self._read: list[tuple[str, Sequence[int] | slice, np.ndarray]] = []
        self._unread: dict[torch.device, list[tuple[str, Sequence[int] | slice, Tensor]]] = {}

    def measure(self, prefix: str, names: Sequence[str], copies: Copies) -> None:
        """Adds figures of all copies, under their names with a prefix."""
        for name in names:
            for numbers, values in copies.measure(name):
                self.add(prefix + name, numbers, values)

    def count(self, copies: Copies) -> None:
        """Adds the number of non-zero entries, and which units have some."""
        for numbers, values, flows in copies.count():
            self.add("non_zero", numbers, values)
            for number, units in flows.items():
                self.add("flows", self._units[number], units)

    def add(self, name: str, places: Sequence[int] | slice, values: Tensor | np.ndarray) -> None:
        """Adds a figure of some parameters or units, [places]."""
        if isinstance(values, np.ndarray):
            self._read.append((name, places, values))
        else:
            self._unread.setdefault(values.device, []).append((name, places, values))

    def read(self) -> dict[str, np.ndarray]:
        """Returns the figures by name, [parameters] or [units]; one transfer from each device."""
        for device, figures in self._unread.items():
            precise = torch.float32 if device.type == "mps" else torch.float64
            values = torch.cat([each.to(precise) for _, _, each in figures]).cpu().numpy()
            ends = np.cumsum([len(each) for _, _, each in figures])
            for (name, places, _), own in zip(figures, np.split(values, ends[:-1]), strict=True):
                self._read.append((name, places, own))
        units = sum(places.stop - places.start for places in self._units.values())
        found = {name: np.full(self._parameters, np.nan) for name in FIGURES}
        found |= {name: np.full(units, np.nan) for name in UNIT_FIGURES}
        for name, places, values in self._read:
            found[name][places] = values
        for name in GRADIENT:
            found[name][self.missing] = np.nan
        for number in self._units.keys() & self.missing:
            found["flows"][self._units[number]] = np.nan
        return found


def _unit_axes(model: nn.Module) -> dict[str, int]:
    """Returns the axis of the outputs of each weight of a linear layer or convolution, by name of the weight."""
    axes = {}
    for name, module in model.named_modules():
        if isinstance(getattr(module, "weight", None), nn.Parameter):
            full = f"{name}.weight" if name else "weight"
            if is_layer(module):
                axes[full] = 1 if is_transposed(module) else 0
            elif isinstance(module, TRANSPOSED_CONVOLUTIONS) and module.groups == 1:
                axes[full] = 1
    return axes
