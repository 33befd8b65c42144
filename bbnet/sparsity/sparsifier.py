"""The sparsifier: computes and applies the masks of a model in training through hooks of its optimiser."""

import warnings
import weakref
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from decimal import Decimal
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bbnet.sparsity import algorithms
from bbnet.sparsity.algorithms import Algorithm, SlabView, WeightMasking
from bbnet.sparsity.claims import BINARIZERS, SPARSIFIERS
from bbnet.sparsity.copies import OfSparsified
from bbnet.sparsity.degrees import as_budget
from bbnet.sparsity.forward_averages import ForwardAverages
from bbnet.sparsity.gate import Gates, is_gated
from bbnet.sparsity.input_norm import InputNorms
from bbnet.sparsity.limits import smallest_degree
from bbnet.sparsity.masked_weight import MaskedWeight, Rescale, weight_state
from bbnet.sparsity.masks import pack_masks, unpack_masks
from bbnet.sparsity.on_rate import OnRates
from bbnet.sparsity.schedule import Schedule
from bbnet.sparsity.slab import Slab, check_slabs, layer_shape, stored_side, unit_modules, unwrap
from bbnet.sparsity.step_watch import StepWatch

# Method labels of the default study.
METHODS: dict[str, dict[str, Any]] = {
    "dense": {"algorithm": "dense"},
    "sp_in": {"algorithm": "budgeted_broadcast", "side": "in"},
    "sp_out": {"algorithm": "budgeted_broadcast", "side": "out"},
    "magnitude": {"algorithm": "magnitude", "side": "in"},
    "rigl": {"algorithm": "rigl", "side": "in"},
    "topk": {"algorithm": "topk"},
}

# Columns of a refresh. Methods that use on-rates add `silent_units` and `silent_connections`.
REFRESH_COLUMNS = (
    "step",
    "slab",
    "budget",
    "connections",
    "pruned",
    "regrown",
    "units_at_smallest",
    "density",
    "churn",
)

UNSUPPORTED_OPTIMIZERS = {
    "LBFGS": "it moves all weights along one search line and evaluates the loss several times per step",
    "ZeroRedundancyOptimizer": "its state is held by an inner optimizer, where it cannot be masked",
    "Muon": "it orthogonalises the update of a whole matrix, which moves its pruned weights",
}
UNSUPPORTED_MODULES = {
    "FullyShardedDataParallel": "no rank holds whole rows of its weights",
    "FSDPModule": "no rank holds whole rows of its weights",
    "DataParallel": "its replicas would count on-rates concurrently",
}


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
    """Sparsifies `model` to `budget` while `optimizer` trains it. `optimizer.step()` updates the masks.

    Call it before the first training step of the sparse phase, with the model itself or the model wrapped by
    torch.compile or DistributedDataParallel. If `optimizer` wraps another one, as accelerate's, Lookahead or SAM do,
    the steps of the inner one count. To resume, load the states of model, optimizer and sparsifier, in any order.

    Args:
        slabs: the weights to sparsify, all of the method's side. A method that gates activations accepts slabs of
            either side and gates their units.
        method: a label of `METHODS`, the name of an algorithm, or `{"algorithm": name, **parameters}`.
        budget: share of the slabs' connections that is kept at the end of the ramp; for a method that gates
            activations, the share of a layer's units that is kept at each position.
        total_steps: number of applied optimiser steps in the sparse phase.
        ramp_end, freeze, every: see `Schedule`.
        rescale: how a unit's row is rescaled when its support changes: `none`; `sqrt`, by sqrt(old / new degree); or
            `energy`, such that the l2 norm of its live weights stays the same.
        seed: seed of all randomness in the masks.
    Raises: ValueError for an unknown method, an infeasible budget, an unsupported slab, model or optimizer, or a slab
        that `optimizer` does not train or that another sparsifier already masks.
    """
    if isinstance(method, str):
        by_name = {name: {"algorithm": name} for name in algorithms.names()} | METHODS
        if method not in by_name:
            raise ValueError(f"unknown method {method!r}, allowed: {', '.join(by_name)}")
        method = by_name[method]
    parameters = dict(method)
    if "algorithm" not in parameters:
        raise ValueError(f"method {parameters} names no algorithm, allowed: {', '.join(algorithms.names())}")
    algorithm = algorithms.make(parameters.pop("algorithm"), **parameters)
    if algorithm.prunes_once:
        raise ValueError(f"{type(algorithm).__name__} prunes a trained model once: use bbnet.prune_one_shot")
    exact = as_budget(budget)
    if rescale not in ("none", "sqrt", "energy"):
        raise ValueError(f"unknown rescale {rescale!r}, allowed: none, sqrt, energy")
    optimizer = inner_optimizer(optimizer)
    check_supported("sparsify", model, optimizer, UNSUPPORTED_MODULES, UNSUPPORTED_OPTIMIZERS)
    model = unwrap(model)
    if algorithm.masks_weights:
        weights = check_slabs(model, slabs, exact, algorithm.smallest_degree)
    else:
        weights = check_slabs(model, slabs, Decimal(1))
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for slab, weight in weights.items():
        if id(weight) not in trained or not weight.requires_grad:
            raise ValueError(f"slab {slab.name}: its weight is not trained by the optimizer")
    if algorithm.masks_weights:
        _check_masking(algorithm, model, weights, exact)
    elif not algorithm.gates_activations and exact != 1:
        raise ValueError(f"{type(algorithm).__name__} keeps every weight: its budget must be 1, not {budget}")
    schedule = Schedule(total_steps, exact, ramp_end, freeze, every)
    return Sparsifier(model, optimizer, weights, algorithm, schedule, rescale, seed)


def inner_optimizer(optimizer: Any) -> Optimizer:
    """Returns the innermost torch.optim.Optimizer, found in the attributes of wrappers around it.

    Raises: ValueError if there is none.
    """
    for name in ("optimizer", "base_optimizer", "_base_optimizer"):
        if hasattr(getattr(optimizer, name, None), "step"):
            return inner_optimizer(getattr(optimizer, name))
    if not isinstance(optimizer, Optimizer):
        raise ValueError(
            f"{type(optimizer).__name__} is no torch.optim.Optimizer and holds none as `optimizer` or `base_optimizer`"
        )
    return optimizer


def check_supported(
    verb: str, model: nn.Module, optimizer: Optimizer, modules: Mapping[str, str], optimizers: Mapping[str, str]
) -> None:
    """Raises ValueError if the optimizer or a module is of a kind that `optimizers` or `modules` name, with the reason.

    Args:
        verb: what cannot be done, for the message.
    """
    for kind in type(optimizer).__mro__:
        for name, why in optimizers.items():
            if name in kind.__name__:
                raise ValueError(f"cannot {verb} under the optimizer {type(optimizer).__name__}: {why}")
    for kind in {kind for module in model.modules() for kind in type(module).__mro__}:
        if kind.__name__ in modules:
            raise ValueError(f"cannot {verb} a model under {kind.__name__}: {modules[kind.__name__]}")


def _check_masking(algorithm: WeightMasking, model: nn.Module, slabs: Iterable[Slab], budget: Decimal) -> None:
    group = algorithm.group()
    if group is not None and (group[0] >= group[1] or budget * group[1] != group[0]):
        raise ValueError(f"pattern {algorithm.pattern} implies budget {group[0]}/{group[1]} below 1, not {budget}")
    if group is not None and getattr(algorithm, "distribution", "uniform") != "uniform":
        raise ValueError(f"pattern {algorithm.pattern} needs the same density everywhere, not {algorithm.distribution}")
    for slab in slabs:
        _, fan = layer_shape(model.get_submodule(slab.name), slab.side)
        if algorithm.side not in (slab.side, "both"):
            raise ValueError(f"slab {slab.name} has side {slab.side}, but the method has side {algorithm.side}")
        if group is not None and fan % group[1]:
            raise ValueError(f"slab {slab.name}: its fan {fan} does not fit pattern {algorithm.pattern}")


class Sparsifier:
    """Holds and updates the masks of a model in training. Created by `sparsify`.

    Attributes:
        step: number of applied optimiser steps of the sparse phase so far.
        refreshes: one row per refresh and slab: step, slab, budget (exact, as text), connections, density, pruned,
            regrown, churn (pruned + regrown over old + new connections), units at k_min or below; with on-rates also
            silent units and their connections. For a method that starts sparse, the first rows are of step 0.
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
        self.input_norms: InputNorms | None = None
        self.gates: Gates | None = None
        self._shapes = {slab: layer_shape(model.get_submodule(slab.name), slab.side) for slab in weights}
        self._attached: list[Any] = []
        self._stepping = False
        self._unmasked: list[_Unmasked] = []
        self._model = weakref.ref(model)
        self._hooked = {name: weakref.ref(module) for name, module in unit_modules(model, weights).items()}
        self._state_loaded = self._own_state_loaded = False
        try:
            self._attach(model, weights)
        except Exception:
            self.remove()
            raise

    def _attach(self, model: nn.Module, weights: Mapping[Slab, nn.Parameter]) -> None:
        SPARSIFIERS.release_dropped(weights.values())
        BINARIZERS.release_dropped(weights.values())
        for slab, weight in weights.items():
            if weight in BINARIZERS:
                raise ValueError(
                    f"slab {slab.name}: its weight is binary already; call restore() of the binarizer, then "
                    "bbnet.sparsify, then bbnet.binarize, because masks are chosen by the latent weights"
                )
        algorithm = self.algorithm
        # The hooks hold another object with the same state, so that it can be noticed when the caller drops this one.
        shared = object.__new__(type(self))
        shared.__dict__ = self.__dict__
        if algorithm.gates_activations:
            self.gates = self._attached_part(Gates(model, weights, algorithm))
        elif algorithm.masks_weights:
            for slab, weight in weights.items():
                dormant, gradient = not algorithm.regrows_at_zero, algorithm.uses_gradient
                side = stored_side(model.get_submodule(slab.name), slab.side)
                masked = MaskedWeight(slab, weight, side, self.rescale, dormant=dormant, watches_gradient=gradient)
                self.weights.append(self._attached_part(masked))
            averaged = {"decay": algorithm.average_decay(), "every": self._sample_every()}
            if algorithm.uses_on_rates:
                self.on_rates = self._attached_part(OnRates.of_slabs(model, weights, **averaged))
            if algorithm.uses_input_norms:
                self.input_norms = self._attached_part(InputNorms.of_slabs(model, weights, **averaged))
            if algorithm.starts_sparse:
                self._start_sparse()
            self._attached_part(model.register_forward_pre_hook(OfSparsified(shared)))
        else:
            return
        self._attached_part(self.optimizer.register_step_pre_hook(shared._before_step))
        self._attached_part(self.optimizer.register_step_post_hook(shared._after_step))
        self._attached_part(self.optimizer.register_load_state_dict_post_hook(shared._after_load))
        self.step_watch = self._attached_part(StepWatch(next(iter(weights.values())), self.optimizer))
        self._attached_part(SPARSIFIERS.add(weights.values(), self, shared))
        self._prepare_step()

    def _sample_every(self) -> int:
        """Returns the number of steps per sampled step: at most 4, and at least 5 samples per refresh if possible."""
        return min(4, max(1, self.schedule.interval // 5))

    def _attached_part(self, part: Any) -> Any:
        self._attached.append(part)
        return part

    @torch.no_grad()
    def _start_sparse(self) -> None:
        self._unmasked = [_Unmasked(masked, self.optimizer) for masked in self.weights]
        self._refresh()
        for unmasked in self._unmasked:
            unmasked.version = unmasked.masked.weight._version

    def __deepcopy__(self, memo: dict[int, Any]) -> "Sparsifier":
        raise TypeError(
            "a Sparsifier cannot be copied or pickled, because its hooks belong to one model and optimizer; save its "
            "state_dict(), call bbnet.sparsify for the copies and load the state there"
        )

    def __reduce__(self) -> tuple:
        self.__deepcopy__({})

    @property
    def is_attached(self) -> bool:
        """Whether the hooks are in place, that is, `remove` was not called."""
        return bool(self._attached)

    def remove(self) -> None:
        """Removes all hooks from model and optimizer. Weights keep their values; pruned ones can be trained again."""
        for part in self._attached:
            part.remove()
        self._attached = []

    @contextmanager
    def valid(self, positions: Tensor | Mapping[str, Tensor]) -> Iterator[None]:
        """Restricts on-rates and input norms to valid positions, for example to exclude padding (context manager).

        Args:
            positions: bool, of the shape of the units' outputs without channels; or a mapping of such tensors by part
                of the model, such as {"encoder": ..., "decoder": ...}. In other parts all positions are valid. Where
                outputs have only the first axes, because they are pooled, they are valid if any of their positions is.
        """
        with ExitStack() as stack:
            for averages in self._averages():
                stack.enter_context(averages.valid(positions))
            yield

    def masks(self) -> dict[str, Tensor]:
        """Returns the current masks, bool [units, fan] by slab name; all true for a method that masks no weights."""
        if not self.weights:
            return {slab.name: torch.ones(shape, dtype=torch.bool) for slab, shape in self._shapes.items()}
        return {masked.slab.name: masked.mask for masked in self.weights}

    @torch.no_grad()
    def apply_to(self, model: nn.Module) -> None:
        """Applies the current masks in-place to a deepcopy or a weight average of the sparsified model.

        Raises: ValueError if the method gates activations and the copy has no gates.
        """
        model = unwrap(model)
        if self.gates is not None and not any(is_gated(module) for module in model.modules()):
            raise ValueError("this copy has no gates; make copies and averages after bbnet.sparsify")
        for masked in self.weights:
            masked.apply(model.get_submodule(masked.slab.name).weight)

    def state_dict(self) -> dict[str, Any]:
        """Returns everything needed to resume bitwise, besides the states of model and optimiser."""
        packed, shapes = pack_masks(self.masks())
        return {
            "identity": self._identity(),
            "step": self.step,
            "masks": packed,
            "shapes": shapes,
            "weights": {masked.slab.name: masked.state_dict() for masked in self.weights},
            "averages": [averages.state_dict() for averages in self._averages()],
            "share": None if self.gates is None else str(self.gates.share),
            "refreshes": [dict(row) for row in self.refreshes],
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Loads a state of the same method, settings and slabs; raises ValueError naming what differs."""
        if "identity" not in state:
            keys = ", ".join(map(str, list(state)[:5]))
            raise ValueError(f"this is not a state of a sparsifier: its keys are {keys} ...")
        differences = _differences(state["identity"], self._identity())
        if differences:
            raise ValueError(f"the sparsifier's state belongs to another run: {'; '.join(differences)}")
        masks = unpack_masks(state["masks"], state["shapes"])
        for unmasked in self._unmasked:
            unmasked.restore()
        self._unmasked = []
        self.step = state["step"]
        self.refreshes = [dict(row) for row in state["refreshes"]]
        for masked in self.weights:
            masked.load_state_dict(state["weights"][masked.slab.name], masks[masked.slab.name])
        self._state_loaded = self._own_state_loaded = True
        for averages, saved in zip(self._averages(), state["averages"], strict=True):
            averages.load_state_dict(saved, self.weights[0].weight.device)
        if self.gates is not None:
            self.gates.set_share(Decimal(state["share"]))
        self._prepare_step()

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

    def _averages(self) -> list[ForwardAverages]:
        return [averages for averages in (self.on_rates, self.input_norms) if averages is not None]

    @torch.no_grad()
    def _before_step(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        self._stepping = True
        if self._state_loaded:
            self._use_loaded_state(optimizer)
        self._mask_gradients()
        # The only callable argument is a closure.
        args = tuple(self._masking(each) if callable(each) else each for each in args)
        return args, {name: self._masking(each) if callable(each) else each for name, each in kwargs.items()}

    def _mask_gradients(self) -> None:
        for masked in self.weights:
            masked.mask_gradient()

    def _masking(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """Returns a closure that computes the gradients and then masks them, in case it changes them in between."""

        def masked_closure() -> Any:
            loss = closure()
            with torch.no_grad():
                self._mask_gradients()
            return loss

        return masked_closure

    def _after_load(self, optimizer: Optimizer) -> None:
        """Runs after the optimiser has loaded a state, whose masks may be loaded only after it."""
        self._state_loaded = True
        for unmasked in self._unmasked:
            unmasked.keep_state()

    def _use_loaded_state(self, optimizer: Optimizer) -> None:
        """Zeroes the loaded state of pruned weights, and warns if the sparsifier's own state is missing."""
        self._state_loaded = False
        for masked in self.weights:
            masked.use_loaded_state(optimizer)
        values = (value for state in optimizer.state.values() for value in state.values())
        if not self._own_state_loaded and self.step == 0 and any(torch.is_tensor(value) for value in values):
            warnings.warn(
                "the optimizer has loaded the state of a training, but the sparsifier starts at step 0; to resume a "
                "sparse phase, load also the sparsifier's state_dict()",
                stacklevel=2,
            )

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        # An optimiser whose step() calls the step() of its base class runs this hook twice.
        if not self._stepping:
            return
        self._stepping = False
        self.step_watch.stepped()
        # A fused optimiser under a GradScaler also runs its hooks on skipped steps.
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is not None and bool(found_inf):
            return
        self.step += 1
        if self._unmasked:
            self._unmasked = []
            self._hold_squares()
        if self.step > self.schedule.freeze_step:
            if self.step % self.schedule.interval == 0:
                self.check_masks()
                self._hold_squares()
            return
        for averages in self._averages():
            averages.fold()
        if self.schedule.is_refresh(self.step):
            self._refresh()
        self._prepare_step()

    def _prepare_step(self) -> None:
        """Sets what the forward and backward passes of the next step gather."""
        for averages in self._averages():
            averages.watch(self.step < self.schedule.freeze_step)
        if self.algorithm.masks_weights and self.algorithm.uses_gradient:
            refreshes_next = self.schedule.is_refresh(self.step + 1)
            for masked in self.weights:
                masked.gather(refreshes_next)

    def _refresh(self) -> None:
        algorithm, schedule = self.algorithm, self.schedule
        if self.gates is not None:
            self.check_masks()
            self.gates.set_share(schedule.budget_at(self.step))
            return
        budget = schedule.budget if algorithm.starts_sparse else schedule.budget_at(self.step)
        self.check_masks()
        for masked in self.weights:
            masked.join_ranks()
        views = [self._view(masked) for masked in self.weights]
        # One slab after the other, since the values that are computed for a slab take several times its memory.
        for masked, view, mask in zip(self.weights, views, algorithm.patterned_masks(views, budget), strict=True):
            before = masked.degrees.sum()
            changed = masked.put(mask, self.optimizer)
            row = {"step": self.step, "slab": view.name, "budget": str(budget)}
            self.refreshes.append(row | _refresh_row(before, masked, changed, view.silent))
        for averages in self._averages():
            averages.forget()

    def _hold_squares(self) -> None:
        for masked in self.weights:
            masked.hold_squares(self.optimizer)

    def check_masks(self) -> None:
        """Raises ValueError if a pruned weight is not 0, or a layer, its weight or a unit's module was replaced."""
        model = self._model()
        if model is None:
            return
        for masked in self.weights:
            masked.check_pruned(model)
        for name, hooked in self._hooked.items():
            try:
                current = model.get_submodule(name)
            except AttributeError:
                current = None
            if current is not hooked():
                raise ValueError(
                    f"module {name} was replaced since bbnet.sparsify was called, so that its outputs are not seen any "
                    "more; call remove() and bbnet.sparsify again"
                )

    def _view(self, masked: MaskedWeight) -> SlabView:
        slab = masked.slab
        units, _ = masked.mask.shape
        figures: dict[str, Any] = {}
        if self.on_rates is not None:
            figures["on_rates"], figures["silent"] = self.on_rates.of(slab.units)
            if len(figures["on_rates"]) != units:
                raise ValueError(
                    f"slab {slab.name}: {', '.join(slab.units)} have {len(figures['on_rates'])} outputs, "
                    f"but its weight has {units} units on side {slab.side}"
                )
        if self.input_norms is not None:
            norms = self.input_norms.of(slab.name).float()
            figures["input_norms"] = norms[None, :] if slab.side == "in" else norms[:, None]
        return SlabView(
            name=slab.name,
            side=slab.side,
            taps=tuple(masked.weight.shape[2:]),
            compute_scores=masked.scores,
            compute_gradient=masked.gradient,
            mask=masked.mask,
            scale=masked.scale,
            seed=zlib.crc32(f"{self.seed}/{slab.name}".encode()),
            step=self.step,
            progress=min(1.0, self.step / self.schedule.freeze_step),
            **figures,
        )


class _Unmasked:
    """A copy of a weight and its optimiser state from before the first mask of a method that starts sparse.

    It is needed until the first step: the values may belong to a saved run whose own mask has not been loaded yet.
    """

    def __init__(self, masked: MaskedWeight, optimizer: Optimizer) -> None:
        self.masked = masked
        self.optimizer = optimizer
        self.weight = masked.weight.clone()
        self.version = masked.weight._version
        self.keep_state()

    def keep_state(self) -> None:
        state = weight_state(self.optimizer, self.masked.weight)
        self.state = {key: value.clone() for key, value in state.items()}

    def restore(self) -> None:
        """Restores the values from before the first mask, except those of a weight that was overwritten since."""
        if self.masked.weight._version == self.version:
            self.masked.weight.copy_(self.weight)
        for key, value in weight_state(self.optimizer, self.masked.weight).items():
            if key in self.state:
                value.copy_(self.state[key])


def _differences(saved: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """Returns descriptions of all differences between two identities; slabs are compared by name."""
    found = [
        f"{key} is {saved.get(key)}, here {own[key]}" for key in own if key != "slabs" and own[key] != saved.get(key)
    ]
    theirs, ours = saved.get("slabs", {}), own["slabs"]
    found += [f"slab {name} is only in the state" for name in theirs if name not in ours]
    found += [f"slab {name} is not in the state" for name in ours if name not in theirs]
    for name in ours:
        if name in theirs and theirs[name] != ours[name]:
            found.append(f"slab {name} has side, units and shape {theirs[name]}, here {ours[name]}")
    if not found and list(theirs) != list(ours):
        found.append(f"slabs are in the order {', '.join(theirs)}, here {', '.join(ours)}")
    return found


def _refresh_row(before: Tensor, masked: MaskedWeight, changed: int, silent: Tensor | None) -> dict[str, Any]:
    """Returns the figures of a refresh, given the number of connections `before` it and that of those that changed."""
    degrees, (_, fan) = masked.degrees, masked.mask.shape
    figures = [before, degrees.sum(), (degrees <= smallest_degree(fan)).sum()]
    if silent is not None:
        figures += [silent.sum(), (degrees * silent).sum()]
    connections_before, connections, at_smallest, *silent_figures = torch.stack(figures).tolist()
    regrown = (changed + connections - connections_before) // 2
    row = {
        "connections": connections,
        "pruned": changed - regrown,
        "regrown": regrown,
        "units_at_smallest": at_smallest,
    }
    row |= dict(zip(("silent_units", "silent_connections"), silent_figures, strict=False))
    return row | {
        "density": connections / masked.mask.numel(),
        "churn": changed / max(1, connections_before + connections),
    }
