"""The sparsifier: masks, refreshes and schedule ride on the optimiser's own hooks."""

import zlib
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from decimal import Decimal
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bbnet.sparsity import algorithms
from bbnet.sparsity.algorithms import Algorithm, SlabView
from bbnet.sparsity.degrees import as_budget, smallest_degree
from bbnet.sparsity.masks import pack_masks, unpack_masks
from bbnet.sparsity.on_rate import OnRates
from bbnet.sparsity.schedule import Schedule
from bbnet.sparsity.slab import Slab, check_slabs, connection_norms, over_weight, slab_shape

Rescale = Literal["none", "sqrt", "energy"]

# The labels of the default study.
METHODS: dict[str, dict[str, Any]] = {
    "dense": {"algorithm": "dense"},
    "sp_in": {"algorithm": "budgeted_broadcast", "side": "in"},
    "sp_out": {"algorithm": "budgeted_broadcast", "side": "out"},
    "magnitude": {"algorithm": "magnitude", "side": "in"},
}

# Of a refresh; methods that use on-rates have more.
REFRESH_COLUMNS = ("step", "slab", "budget", "connections", "pruned", "regrown", "density", "churn")


def sparsify(
    model: nn.Module,
    optimizer: Optimizer,
    slabs: Iterable[Slab],
    method: str | Mapping[str, Any] = "sp_in",
    budget: float | str | Decimal = 0.5,
    *,
    total_steps: int,
    ramp_end: float = 0.40,
    freeze: float = 0.75,
    every: int | None = None,
    rescale: Rescale = "none",
    seed: int = 0,
) -> "Sparsifier":
    """Sparsifies `model` to `budget` while `optimizer` trains it: from here on `optimizer.step()` does the rest.

    Args:
        slabs: the weights to sparsify, all of the method's side.
        method: a label of `METHODS`, or `{"algorithm": name, **parameters}`.
        budget: kept share of each slab's connections at the end of the ramp.
        total_steps: applied optimiser steps of the sparse phase.
        ramp_end, freeze, every: see `Schedule`.
        rescale: what happens to a unit's row when its support changes: nothing, times sqrt(old / new degree), or
            to the l2 norm that its kept weights had.
        seed: of the masks' own randomness.
    Raises: ValueError for an unknown method, infeasible budget, unfit slab, or a slab that `optimizer` does not train.
    """
    if isinstance(method, str):
        if method not in METHODS:
            raise ValueError(f"unknown method {method!r}, allowed: {', '.join(METHODS)}")
        method = METHODS[method]
    parameters = dict(method)
    if "algorithm" not in parameters:
        raise ValueError(f"method {parameters} names no algorithm, allowed: {', '.join(algorithms.names())}")
    algorithm = algorithms.make(parameters.pop("algorithm"), **parameters)
    exact = as_budget(budget)
    if rescale not in ("none", "sqrt", "energy"):
        raise ValueError(f"unknown rescale {rescale!r}, allowed: none, sqrt, energy")
    slabs = list(slabs)
    if not algorithm.masks_weights and exact != 1:
        raise ValueError(f"{type(algorithm).__name__} keeps every weight: its budget is 1, not {budget}")
    weights = check_slabs(model, slabs, exact)
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for slab, weight in weights.items():
        if id(weight) not in trained or not weight.requires_grad:
            raise ValueError(f"slab {slab.name}: its weight is not trained by the optimizer")
        if algorithm.masks_weights and algorithm.side not in (slab.side, "both"):
            raise ValueError(f"slab {slab.name} is of side {slab.side}, the method's side is {algorithm.side}")
    schedule = Schedule(total_steps, exact, ramp_end, freeze, every)
    return Sparsifier(model, optimizer, weights, algorithm, schedule, rescale, seed)


class MaskedWeight:
    """A slab's weight, the mask in force, and the dormant values of its pruned connections."""

    def __init__(self, slab: Slab, weight: nn.Parameter, rescale: Rescale) -> None:
        self.slab = slab
        self.weight = weight
        self.rescale = "none" if slab.normalised else rescale
        units, fan = slab_shape(weight, slab.side)
        self.mask = torch.ones(units, fan, dtype=torch.bool, device=weight.device)
        self.dormant = torch.zeros_like(weight)
        self.scale = torch.ones(units, device=weight.device)
        # The degree that sqrt rescaling last answered to: a unit that lost everything keeps it until it is back.
        self.answered = torch.full((units,), fan, device=weight.device)
        self.grad_mask = torch.ones_like(weight)
        weight.register_post_accumulate_grad_hook(self._mask_gradient)

    def _mask_gradient(self, weight: nn.Parameter) -> None:
        weight.grad.mul_(self.grad_mask)

    def full(self) -> Tensor:
        """The weight with every pruned connection, 0 there, at its dormant value, 0 elsewhere."""
        return self.weight + self.dormant

    def scores(self) -> Tensor:
        return connection_norms(self.full(), self.slab.side)

    def put(self, mask: Tensor, optimizer: Optimizer) -> None:
        """Puts `mask` in force: weight, dormant values, gradient and optimiser state follow."""
        full = self.full()
        factor = self._rescale_factor(full, mask)
        if factor is not None:
            full = full * self._over_weight(factor[:, None])
            self.scale = self.scale * factor
        changed = self._over_weight(mask != self.mask).expand_as(self.weight)
        live = self._over_weight(mask)
        self.mask = mask
        self.weight.copy_(torch.where(live, full, 0.0))
        self.dormant = full - self.weight
        self.grad_mask.copy_(live)
        if self.weight.grad is not None:
            self.weight.grad.mul_(self.grad_mask)
        zero_state(optimizer, self.weight, changed)

    def _rescale_factor(self, full: Tensor, mask: Tensor) -> Tensor | None:
        if self.rescale == "none":
            return None
        degree = mask.sum(1)
        moved = (mask != self.mask).any(1) & (degree > 0)
        if self.rescale == "sqrt":
            factor = (self.answered / degree.clamp(min=1)).sqrt()
            self.answered = torch.where(moved, degree, self.answered)
        else:
            norms = connection_norms(full, self.slab.side)
            old, new = (torch.linalg.vector_norm(norms * kept, dim=1) for kept in (self.mask, mask))
            moved = moved & (old > 0) & (new > 0)
            factor = old / new
        return torch.where(moved, factor, 1.0).to(full.dtype)

    def _over_weight(self, per_connection: Tensor) -> Tensor:
        return over_weight(per_connection, self.weight, self.slab.side)


class Sparsifier:
    """Holds the masks of a model in training; made by `sparsify`.

    Attributes:
        step: applied optimiser steps of the sparse phase so far.
        refreshes: one row per refresh and slab: step, slab, budget (exact, as text), connections, density, pruned,
            regrown, churn (pruned and regrown over old and new connections); with on-rates also silent units, the
            connections that they hold, and units at k_min.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        weights: Mapping[Slab, nn.Parameter],
        algorithm: Algorithm,
        schedule: Schedule,
        rescale: Rescale,
        seed: int,
    ) -> None:
        self.optimizer = optimizer
        self.algorithm = algorithm
        self.schedule = schedule
        self.rescale = rescale
        self.seed = seed
        self.step = 0
        self.refreshes: list[dict[str, Any]] = []
        self.weights: list[MaskedWeight] = []
        self.on_rates: OnRates | None = None
        self._shapes = {slab: slab_shape(weight, slab.side) for slab, weight in weights.items()}
        if not algorithm.masks_weights:
            return
        self.weights = [MaskedWeight(slab, weight, rescale) for slab, weight in weights.items()]
        if algorithm.uses_on_rates:
            self.on_rates = OnRates.of_slabs(model, weights)
        optimizer.register_step_post_hook(self._after_step)
        optimizer.register_load_state_dict_post_hook(self._zero_pruned_state)

    def valid(self, positions: Tensor) -> AbstractContextManager[None]:
        """Within it, forward passes count on-rates only where `positions` is true (padding is not a position)."""
        return nullcontext() if self.on_rates is None else self.on_rates.valid(positions)

    def masks(self) -> dict[str, Tensor]:
        """The masks in force, bool [units, fan] by slab name; all true for a method that masks no weights."""
        if not self.weights:
            return {slab.name: torch.ones(shape, dtype=torch.bool) for slab, shape in self._shapes.items()}
        return {masked.slab.name: masked.mask for masked in self.weights}

    @torch.no_grad()
    def apply_to(self, model: nn.Module) -> None:
        """Masks a deepcopy or a weight average of the sparsified model, in place."""
        for masked in self.weights:
            weight = model.get_submodule(masked.slab.name).weight
            weight.mul_(masked.grad_mask.to(weight.device))

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on bitwise, beside the states of model and optimiser."""
        packed, shapes = pack_masks(self.masks())
        return {
            "identity": self._identity(),
            "step": self.step,
            "masks": packed,
            "shapes": shapes,
            "dormant": {masked.slab.name: masked.dormant.clone() for masked in self.weights},
            "scale": {masked.slab.name: masked.scale.clone() for masked in self.weights},
            "answered": {masked.slab.name: masked.answered.clone() for masked in self.weights},
            "on_rates": None if self.on_rates is None else self.on_rates.state_dict(),
            "refreshes": [dict(row) for row in self.refreshes],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state of the same method, budget and slabs; raises ValueError naming what differs."""
        mine = self._identity()
        differing = [key for key in mine if mine[key] != state["identity"].get(key)]
        if differing:
            differences = "; ".join(f"{key} is {state['identity'].get(key)}, here {mine[key]}" for key in differing)
            raise ValueError(f"the sparsifier's state is of another run: {differences}")
        self.step = state["step"]
        self.refreshes = [dict(row) for row in state["refreshes"]]
        masks = unpack_masks(state["masks"], state["shapes"])
        for masked in self.weights:
            name, device = masked.slab.name, masked.weight.device
            masked.mask = masks[name].to(device)
            masked.dormant = state["dormant"][name].to(device, copy=True)
            masked.scale = state["scale"][name].to(device, copy=True)
            masked.answered = state["answered"][name].to(device, copy=True)
            masked.grad_mask.copy_(over_weight(masked.mask, masked.weight, masked.slab.side))
        if self.on_rates is not None:
            self.on_rates.load_state_dict(state["on_rates"], self.weights[0].weight.device)
            self.on_rates.counting = self.step < self.schedule.freeze_step

    def _identity(self) -> dict[str, Any]:
        schedule = self.schedule
        return {
            "algorithm": type(self.algorithm).__name__,
            "parameters": self.algorithm.model_dump(),
            "budget": f"{schedule.budget.normalize():f}",
            "schedule": [schedule.total_steps, schedule.ramp_end, schedule.freeze, schedule.interval],
            "rescale": self.rescale,
            "seed": self.seed,
            "slabs": {slab.name: [slab.side, list(slab.units), list(shape)] for slab, shape in self._shapes.items()},
        }

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        # A fused optimiser under a GradScaler runs its hooks on steps that it skips.
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is not None and bool(found_inf):
            return
        self.step += 1
        if self.step > self.schedule.freeze_step:
            return
        if self.on_rates is not None:
            self.on_rates.fold()
        if self.schedule.is_refresh(self.step):
            self._refresh()
        if self.on_rates is not None:
            self.on_rates.counting = self.step < self.schedule.freeze_step

    def _refresh(self) -> None:
        budget = self.schedule.budget_at(self.step)
        views = [self._view(masked) for masked in self.weights]
        for masked, view, mask in zip(self.weights, views, self.algorithm.masks(views, budget), strict=True):
            self.refreshes.append(
                {"step": self.step, "slab": view.name, "budget": str(budget)} | _refresh_row(view, mask)
            )
            masked.put(mask, self.optimizer)
        if self.on_rates is not None:
            self.on_rates.forget()

    def _view(self, masked: MaskedWeight) -> SlabView:
        slab = masked.slab
        scores = masked.scores()
        rates, silent = (None, None) if self.on_rates is None else self.on_rates.of(slab.units)
        if rates is not None and len(rates) != len(scores):
            raise ValueError(
                f"slab {slab.name}: {', '.join(slab.units)} have {len(rates)} outputs, "
                f"but its weight has {len(scores)} units on side {slab.side}"
            )
        seed = zlib.crc32(f"{self.seed}/{slab.name}".encode())
        return SlabView(slab.name, scores, masked.mask, masked.scale, rates, silent, seed)

    def _zero_pruned_state(self, optimizer: Optimizer) -> None:
        for masked in self.weights:
            zero_state(optimizer, masked.weight, masked.grad_mask == 0)


def zero_state(optimizer: Optimizer, weight: nn.Parameter, where: Tensor) -> None:
    """Zeroes the optimiser's per-weight state of `weight` where `where` is true."""
    for value in optimizer.state.get(weight, {}).values():
        if torch.is_tensor(value) and value.shape == weight.shape:
            value.masked_fill_(where, 0)


def _refresh_row(view: SlabView, mask: Tensor) -> dict[str, Any]:
    degrees = mask.sum(1)
    figures = {
        "connections": degrees.sum(),
        "pruned": (view.mask & ~mask).sum(),
        "regrown": (mask & ~view.mask).sum(),
    }
    if view.silent is not None:
        figures["silent_units"] = view.silent.sum()
        figures["silent_connections"] = (degrees * view.silent).sum()
        figures["units_at_smallest"] = (degrees == smallest_degree(mask.shape[1])).sum()
    row = dict(zip(figures, torch.stack(list(figures.values())).tolist(), strict=True))
    before = row["connections"] + row["pruned"] - row["regrown"]
    return row | {
        "density": row["connections"] / mask.numel(),
        "churn": (row["pruned"] + row["regrown"]) / (before + row["connections"]),
    }
