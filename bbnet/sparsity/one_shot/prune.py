"""Prunes a trained model once, layer by layer, with calibration inputs instead of training."""

import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bbnet.sparsity import algorithms
from bbnet.sparsity.algorithms import Algorithm, SlabView
from bbnet.sparsity.degrees import as_budget
from bbnet.sparsity.limits import smallest_degree
from bbnet.sparsity.masks import pack_masks, project_to_pattern, unpack_masks
from bbnet.sparsity.one_shot import choice as choices
from bbnet.sparsity.one_shot.allocation import outlier_ratios, owl_counts, shapes_of, uniform_counts
from bbnet.sparsity.one_shot.calibration import Calibration, Forward, Valid, call, unpadded
from bbnet.sparsity.one_shot.settings import ALLOCATIONS, METHODS
from bbnet.sparsity.one_shot.stages import Blocks, Stages, WholeModel, WithoutInputs, find_stacks
from bbnet.sparsity.one_shot.statistics import Statistics
from bbnet.sparsity.slab import Side, Slab, connection_norms, connections, layer_shape, over_weight, stored_side, unwrap


@dataclass
class OneShot:
    """What `prune_one_shot` did.

    Attributes:
        method: the algorithm with all its parameters.
        slabs: the pruned layers, in the order of their calls.
        rows: for each of them its name (`slab`), step 0, budget, connections, how many were pruned and regrown (none),
            units with the smallest degree or less, density and churn, as `Sparsifier.refreshes` has them; for Budgeted
            Broadcast also silent units and their connections.
        left_dense: why each other layer of the blocks was not pruned, by name.
        calibration: see `Calibration.description`; None if no input was read.
    """

    method: dict[str, Any]
    budget: str
    allocation: str
    seed: int
    slabs: list[Slab] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    left_dense: dict[str, str] = field(default_factory=dict)
    calibration: dict[str, Any] | None = None
    _packed: dict[str, Tensor] = field(default_factory=dict, repr=False)
    _shapes: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def densities(self) -> dict[str, float]:
        """The kept share of each layer's connections, by name."""
        return {row["slab"]: row["density"] for row in self.rows}

    def masks(self) -> dict[str, Tensor]:
        """Returns the masks, bool [units, fan] on the CPU, by name of the layer. Until then they take 1 bit each."""
        return unpack_masks(self._packed, self._shapes)

    def record(self) -> dict[str, Any]:
        """Returns everything but the masks, of plain types, for a file beside the model."""
        names = ("method", "budget", "allocation", "seed", "calibration", "densities", "left_dense")
        return {name: getattr(self, name) for name in names}

    def add(self, slab: Slab, mask: Tensor, silent: Tensor | None) -> None:
        """Adds a layer that was pruned."""
        packed, shapes = pack_masks({slab.name: mask})
        self._packed |= packed
        self._shapes |= shapes
        self.slabs.append(slab)
        degrees = mask.sum(1)
        connections, total = int(degrees.sum()), mask.numel()
        row = {
            "step": 0,
            "slab": slab.name,
            "budget": self.budget,
            "connections": connections,
            "pruned": total - connections,
            "regrown": 0,
            "units_at_smallest": int((degrees <= smallest_degree(mask.shape[1])).sum()),
            "density": connections / total,
            "churn": (total - connections) / (total + connections),
        }
        if silent is not None:
            row |= {"silent_units": int(silent.sum()), "silent_connections": int((degrees * silent).sum())}
        self.rows.append(row)

    def order(self, names: Sequence[str]) -> None:
        """Puts slabs and rows into the order of names."""
        place = {name: index for index, name in enumerate(names)}
        self.slabs.sort(key=lambda slab: place[slab.name])
        self.rows.sort(key=lambda row: place[row["slab"]])


@torch.no_grad()
def prune_one_shot(
    model: nn.Module,
    batches: Iterable[Any] = (),
    method: str | Mapping[str, Any] = "sparsegpt",
    budget: float | str | Decimal = 0.5,
    *,
    pattern: str | None = None,
    allocation: Literal["uniform", "owl"] = "uniform",
    layers: Iterable[str | Slab] | None = None,
    blocks: str | Sequence[str] | None = None,
    side: Side = "in",
    seed: int = 0,
    forward: Forward = call,
    valid: Valid = unpadded,
    keep_on: torch.device | str | None = None,
    **parameters: Any,
) -> OneShot:
    """Prunes a trained model to `budget` once, without training, and returns masks and record. The model is changed.

    The model is pruned layer by layer. If the layers are in a stack of blocks whose outputs feed one another, as in a
    decoder, each block is run on the outputs of the pruned blocks before it, and only the statistics of one block are
    held at a time. Otherwise the whole model is run for each layer. It is run in evaluation mode and without gradients;
    its modes, its hooks and its weights outside the pruned layers stay as they are.

    Args:
        model: may be wrapped by torch.compile or DistributedDataParallel; the model inside is pruned.
        batches: calibration inputs, in the order in which they are read; they are held in a list. Only `magnitude` and
            `random` with uniform allocation need none, if `blocks` or `layers` are given.
        method: `sparsegpt`, `wanda`, `ria`, `magnitude`, `budgeted_broadcast` or `random`, or
            `{"algorithm": name, **parameters}`.
        budget: share of the connections of all pruned layers that is kept.
        pattern: N:M, such as 2:4: N of every M consecutive inputs of each output are kept. The budget must be N/M.
        allocation: `uniform`, the same density in every layer, or `owl` (Yin et al. 2024), more where the dense model
            has more outliers: each block its own density, or each layer where there are no blocks.
        layers: names, or patterns such as `*.mlp.*`, of the layers to prune, or slabs; by default every linear layer
            and convolution inside the blocks, so that embeddings and the output layer stay dense.
        blocks: the name of the module that holds the blocks, or their names; found by default.
        side: which units the degrees of Budgeted Broadcast belong to, the outputs (`in`) or the inputs (`out`) of each
            layer. On-rates are read where `find_slabs` finds the units; for other layers a unit is on where the output,
            or the input, of the layer is above 0. Masks have the same orientation.
        seed: seed of `random` and of the law `shuffled`.
        forward: calls the model with a batch; by default with keyword arguments if it is a mapping.
        valid: returns the valid positions of a batch, see `Sparsifier.valid`; by default those of its `attention_mask`.
        keep_on: the device on which the inputs of blocks are kept, such as "cpu"; by default where they are computed.
        parameters: parameters of the algorithm, such as `law`, `gain`, `silent`, `score` and `damping`.
    Raises: ValueError for an unknown method or parameter, an infeasible budget, layers that cannot be pruned, and named
        layers that calibration does not reach, before anything is pruned. Inputs that are not finite, and a Hessian
        that is not positive definite, are found when their layer is reached; the layers before it are pruned then.
    """
    algorithm = _algorithm(method, {"side": side, "pattern": pattern} | parameters)
    exact = as_budget(budget)
    _check_settings(algorithm, exact, allocation)
    model = unwrap(model)
    calibration = Calibration(list(batches), forward, valid)
    with _calibrating(model):
        reads_inputs = allocation == "owl" or _reads_inputs(algorithm)
        stages, choice = _plan(model, calibration, algorithm, exact, layers, blocks, keep_on, reads_inputs)
        counts = _counts(model, stages, choice, calibration, exact, allocation)
        done = OneShot(
            {"algorithm": _name(algorithm)} | algorithm.model_dump(),
            f"{exact.normalize():f}",
            allocation,
            seed,
            left_dense=choice.left_dense,
            calibration=calibration.description() if reads_inputs else None,
        )
        for stage, names in enumerate(stages.layers):
            for slabs in _groups(model, [choice.slabs[name] for name in names], algorithm):
                statistics = Statistics(model, slabs, algorithm, choice.inputs_as_units)
                statistics.gather(stages.runs(stage))
                for slab in slabs:
                    done.add(slab, *_prune(model, slab, algorithm, counts[slab.name], statistics, seed))
            if _reads_inputs(algorithm):
                stages.finish(stage)
    done.order([name for names in stages.layers for name in names])
    return done


def _groups(model: nn.Module, slabs: Sequence[Slab], algorithm: Algorithm) -> list[list[Slab]]:
    """Returns the slabs of a stage in groups, whose statistics are gathered one group after the other.

    The Hessians of a group take no more memory than the largest of all. Groups are in reverse order of the calls, so
    that what a group reads does not depend on the layers that were pruned before it in the same stage.
    """
    if not algorithm.prunes_once:
        return [list(slabs)]
    sizes = {slab: model.get_submodule(slab.name).weight.numel() // _outputs(model, slab) for slab in slabs}
    groups: list[list[Slab]] = []
    for slab in reversed(slabs):
        together = sizes[slab] ** 2 + sum(sizes[each] ** 2 for each in groups[-1]) if groups else math.inf
        if together <= max(sizes.values()) ** 2:
            groups[-1].append(slab)
        else:
            groups.append([slab])
    return groups


def _outputs(model: nn.Module, slab: Slab) -> int:
    return layer_shape(model.get_submodule(slab.name), "in")[0]


def _algorithm(method: str | Mapping[str, Any], parameters: dict[str, Any]) -> Algorithm:
    given = {"algorithm": method} if isinstance(method, str) else dict(method)
    name = given.pop("algorithm", None)
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r} of one-shot pruning, allowed: {', '.join(METHODS)}")
    return algorithms.make(name, **parameters | given)


def _name(algorithm: Algorithm) -> str:
    return type(algorithm).__module__.rpartition(".")[2]


def _reads_inputs(algorithm: Algorithm) -> bool:
    names = ("uses_on_rates", "uses_input_norms", "prunes_once")
    return any(getattr(algorithm, name, False) for name in names)


def _check_settings(algorithm: Algorithm, budget: Decimal, allocation: str) -> None:
    """Raises ValueError if pattern, budget and allocation do not fit one another."""
    if allocation not in ALLOCATIONS:
        raise ValueError(f"unknown allocation {allocation!r}, allowed: {', '.join(ALLOCATIONS)}")
    if getattr(algorithm, "distribution", "uniform") != "uniform":
        raise ValueError(
            f"distribution {algorithm.distribution} needs all layers at once: in one-shot pruning use allocation owl"
        )
    group = algorithm.group()
    if group is not None and (group[0] >= group[1] or budget * group[1] != group[0]):
        raise ValueError(f"pattern {algorithm.pattern} implies budget {group[0]}/{group[1]} below 1, not {budget}")
    if group is not None and allocation != "uniform":
        raise ValueError(f"pattern {algorithm.pattern} needs the same density everywhere, not allocation {allocation}")


def _plan(
    model: nn.Module,
    calibration: Calibration,
    algorithm: Algorithm,
    budget: Decimal,
    layers: Iterable[str | Slab] | None,
    blocks: str | Sequence[str] | None,
    keep_on: torch.device | str | None,
    reads_inputs: bool,
) -> tuple[Stages, choices.Choice]:
    """Returns the stages and the layers to prune in them; nothing is changed yet."""
    if reads_inputs and not calibration.batches:
        raise ValueError(f"{_name(algorithm)} needs calibration inputs, but there is no batch")
    stacks = [] if blocks is None else [choices.named_blocks(model, blocks)]
    if blocks is None and calibration.batches:
        stacks = find_stacks(model, calibration)
    if layers is not None:
        choice = choices.of_names(model, list(layers), algorithm)
    elif stacks:
        choice = choices.in_blocks(model, stacks[0], algorithm, budget)
    else:
        raise ValueError(
            f"no stack of blocks was found in {type(model).__name__}: name the module that holds them, as in "
            "blocks='model.layers', or the layers to prune"
        )
    choices.check(model, choice, algorithm, budget)
    names = list(choice.slabs)
    if not reads_inputs:
        return WithoutInputs(names), choice
    fitting = [stack for stack in stacks if choices.holds_all(stack, choice.slabs.values())]
    if blocks is not None and not fitting:
        raise ValueError(f"some layers or their units are not in the blocks {', '.join(stacks[0])}")
    if fitting:
        stages: Stages = Blocks(model, fitting[0], names, calibration, keep_on)
    else:
        stages = WholeModel(model, names, calibration)
    if layers is not None and stages.unused:
        raise ValueError(f"layer {stages.unused[0]}: no calibration input reaches it")
    return stages, choice.without(stages.unused, "no calibration input reaches it")


def _counts(
    model: nn.Module, stages: Stages, choice: choices.Choice, calibration: Calibration, budget: Decimal, allocation: str
) -> dict[str, int]:
    """Returns the number of connections that each layer keeps."""
    shapes = shapes_of(model, choice.slabs)
    if allocation == "uniform":
        return uniform_counts(shapes, budget)
    stage_layers = [names for names in stages.layers if names]
    return owl_counts(shapes, budget, stage_layers, outlier_ratios(model, stage_layers, calibration))


def _prune(
    model: nn.Module, slab: Slab, algorithm: Algorithm, count: int, statistics: Statistics, seed: int
) -> tuple[Tensor, Tensor | None]:
    """Prunes one layer to `count` connections; returns its mask [units, fan] and which units are silent, if known."""
    layer = model.get_submodule(slab.name)
    side, weight = stored_side(layer, slab.side), layer.weight
    units, fan = layer_shape(layer, slab.side)
    density = Decimal(count) / (units * fan)
    if algorithm.prunes_once:
        mask = _prune_with_hessian(slab, layer, algorithm, density, statistics)
        return (mask if slab.side == "in" else mask.T), None
    figures = statistics.figures(slab)
    if "on_rates" in figures and len(figures["on_rates"]) != units:
        raise ValueError(
            f"slab {slab.name}: {', '.join(slab.units)} have {len(figures['on_rates'])} outputs, "
            f"but its weight has {units} units on side {slab.side}"
        )
    view = SlabView(
        name=slab.name,
        side=slab.side,
        taps=tuple(weight.shape[2:]),
        compute_scores=lambda: connection_norms(weight, side),
        mask=torch.ones(units, fan, dtype=torch.bool, device=weight.device),
        scale=torch.ones(units, device=weight.device),
        seed=zlib.crc32(f"{seed}/{slab.name}".encode()),
        step=0,
        progress=1.0,
        **figures,
    )
    (mask,) = algorithm.masks([view], density)
    if algorithm.group() is not None:
        mask = _along_inputs(mask, algorithm.ranking(view), slab.side, *algorithm.group())
    weight.masked_fill_(over_weight(~mask, weight, side), 0)
    return mask, figures.get("silent")


def _along_inputs(mask: Tensor, ranking: Tensor, side: Side, kept: int, size: int) -> Tensor:
    """Returns a mask [units, fan] projected to the pattern along the inputs of each output."""
    if side == "in":
        return project_to_pattern(mask, ranking, kept, size)
    return project_to_pattern(mask.T.contiguous(), ranking.T.contiguous(), kept, size).T.contiguous()


def _prune_with_hessian(
    slab: Slab, layer: nn.Module, algorithm: Algorithm, density: Decimal, statistics: Statistics
) -> Tensor:
    """Prunes one layer by its Hessian; returns the mask [outputs, inputs]."""
    weight = layer.weight.detach()
    working = weight.to(torch.promote_types(weight.dtype, torch.float32), memory_format=torch.contiguous_format)
    try:
        mask = algorithm.prune(
            connections(working, stored_side(layer, "in")), statistics.hessians.take(slab.name), density
        )
    except torch.linalg.LinAlgError:
        raise ValueError(
            f"layer {slab.name}: the Hessian of its calibration inputs is not positive definite: use more inputs or a "
            f"larger damping than {algorithm.damping}"
        ) from None
    if working.data_ptr() != weight.data_ptr():
        weight.copy_(working)
    return mask


@contextmanager
def _calibrating(model: nn.Module) -> Iterator[None]:
    """Sets evaluation mode, and keeps a model of transformers from storing keys and values, within the context."""
    training = [module for module in model.modules() if module.training]
    settings = getattr(model, "config", None)
    caches = getattr(settings, "use_cache", None)
    model.eval()
    if caches:
        settings.use_cache = False
    try:
        yield
    finally:
        if caches:
            settings.use_cache = caches
        for module in training:
            module.training = True
