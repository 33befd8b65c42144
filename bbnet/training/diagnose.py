"""Looks inside a finished run: gradient flow in steps from its beginning, its warm start and its end, and probes.

Everything is computed on copies in memory. The files of the run are only read.
"""

import inspect
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import count
from pathlib import Path
from typing import Any

from torch import nn

from bbnet.binary.binarizer import Binarizer
from bbnet.diagnostics.probe import Probe, probe
from bbnet.diagnostics.record import Record
from bbnet.diagnostics.watch import watch
from bbnet.sparsity.masks import pack_masks
from bbnet.sparsity.sparsifier import Sparsifier
from bbnet.study.record import LATENT
from bbnet.training.checkpoint import load_latent, load_masks, load_weights
from bbnet.training.runs import Job, check_masks_in_force
from bbnet.training.trainer import Trainer

logger = logging.getLogger(__name__)
INITIALISATION, WARM_START, END = "initialisation", "warm_start", "end"
DEV_BATCHES = 8  # that layers are probed with


@dataclass
class Continued:
    """A training that can go on from a point of a run, with what acts on its weights. `offset` counts earlier steps."""

    trainer: Trainer
    sparsifier: Sparsifier | None
    binarizer: Binarizer | None
    offset: int


@dataclass
class Look:
    """What was found at a point of a run, after `offset` steps: a probe, and the record of the steps from there."""

    record: Record
    probed: Probe
    offset: int


def diagnose(
    job: Job,
    warm_start: Mapping[str, Any],
    run: Path,
    selected_epoch: int,
    dense: Path | None,
    steps: int,
    every: int,
    layers: Sequence[str] | None = None,
) -> dict[str, Look]:
    """Watches steps of a run's training from its warm start and from its end, and probes its layers at these points.

    Of a dense run also from its initial weights, which all runs of a seed share, unless they are those of another run
    or of a file. These are the first steps of the warm-up. From the warm start these are the first steps of the run's
    training, to the bit unless the run was compiled. At the end, the training goes on from the run's weights with its
    frozen masks, with the batches and learning rates of the selected epoch, which are repeated as needed. The state of
    the optimiser is not stored with a run and starts anew.

    Args:
        run: folder of the run.
        selected_epoch: the epoch whose weights are stored there.
        dense: folder of the dense run of the same seed, with whose features those of the run are aligned on dev.
        steps: number of steps to watch; from the warm start at most those of the sparse phase, from the initial weights
            at most those of the warm-up.
        every: number of steps per observed step.
        layers: dotted names or patterns of the layers to probe; by default those of the slabs and of their units.
    Returns: by point, `INITIALISATION`, `WARM_START` or `END`.
    Raises: ValueError if no pattern matches a layer, or files of the run do not fit together.
    """
    against = None if dense is None else _scored(job, dense)

    def look(at: Continued, steps: int, repeat: bool) -> Look:
        model, names = at.trainer.model, layers_to_probe(job, at.trainer.model, layers)
        with nullcontext() if at.binarizer is None else at.binarizer.signs():
            probed = probe(model, _dev_inputs(at.trainer), names, against=against)
        return Look(follow(at, steps, every, repeat), probed, at.offset)

    found = {}
    if job.algorithm["algorithm"] == "dense" and getattr(job.model_settings, "weights", None) is None:
        beginning = from_initialisation(job)
        found[INITIALISATION] = look(beginning, min(steps, beginning.trainer.warm_up_steps), repeat=False)
        del beginning
    start = from_warm_start(job, warm_start)
    found[WARM_START] = look(start, min(steps, start.trainer.sparse_steps), repeat=False)
    del start
    found[END] = look(from_end(job, run, selected_epoch), steps, repeat=True)
    for point, each in found.items():
        logger.info("from the %s: %s", point.replace("_", " "), each.record.text())
    return found


def from_initialisation(job: Job) -> Continued:
    """Returns the warm-up of a run before its first step, with random weights, as `runs.warm_up` begins it."""
    return Continued(job.trainer(), None, None, 0)


def from_warm_start(job: Job, warm_start: Mapping[str, Any]) -> Continued:
    """Returns the training of a run before its first step, as `runs.train` begins it."""
    trainer = job.trainer()
    trainer.load_state(warm_start)
    job.exempt_latent(trainer)
    sparsifier = job.sparsifier(trainer, job.slabs(trainer.model, job.slab_side)[0])
    return Continued(trainer, sparsifier, job.binarizer(trainer), trainer.epoch * trainer.steps_per_epoch)


def from_end(job: Job, run: Path, selected_epoch: int) -> Continued:
    """Returns the training of a run with its stored weights and frozen masks, at the beginning of the selected epoch.

    Of binary weights the latent ones are trained. Raises: ValueError if the weights are not those of the masks.
    """
    trainer = job.trainer()
    model = trainer.model
    load_weights(run / "model.safetensors", model)
    masks = load_masks(run / "masks.safetensors")
    slabs, _ = job.slabs(model, job.slab_side)
    check_masks_in_force(model, slabs, masks)
    if job.weights.weights != "float":
        model.load_state_dict(load_latent(run / LATENT), strict=False)
    job.exempt_latent(trainer)
    sparsifier = job.sparsifier(trainer, slabs)
    packed, shapes = pack_masks(masks)
    frozen = {"step": trainer.sparse_steps, "masks": packed, "shapes": shapes}
    if sparsifier.gates is not None:
        frozen["share"] = job.config["budget"]
    sparsifier.load_state_dict(sparsifier.state_dict() | frozen)
    trainer.epoch = selected_epoch - 1
    return Continued(trainer, sparsifier, job.binarizer(trainer), selected_epoch * trainer.steps_per_epoch)


class _EnoughError(Exception):
    """Ends an epoch after the last step to be watched."""


def follow(at: Continued, steps: int, every: int, repeat: bool) -> Record:
    """Trains for a number of steps and returns the record of those that were observed, which holds no weights.

    Args:
        repeat: the same epoch again and again, instead of one epoch after the other.
    """
    trainer, numbers = at.trainer, count(1)
    epoch = trainer.epoch

    def after_step() -> None:
        if next(numbers) == steps:
            raise _EnoughError

    with watch(trainer.model, trainer.optimizer, every) as watched:
        try:
            while True:
                trainer.run_epoch("watched", at.sparsifier, after_step, at.binarizer)
                if repeat:
                    trainer.epoch = epoch
        except _EnoughError:
            pass
    return Record.of_state(watched.state_dict())


def layers_to_probe(job: Job, model: nn.Module, patterns: Sequence[str] | None) -> list[str]:
    """Returns the names of the layers that match a pattern; without patterns, those of the slabs and their units.

    A study has one list of patterns for all of its models, so those that match nothing here are named in the log.

    Raises: ValueError if no pattern matches a layer.
    """
    names = [name for name, _ in model.named_modules() if name]
    if patterns is None:
        slabs = [slab for side in ("in", "out") for slab in job.slabs(model, side)[0]]
        wanted = {name for slab in slabs for name in (slab.name, *slab.units)}
        return [name for name in names if name in wanted]
    found = [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            logger.warning("diagnostics.layers: %r matches no layer of this model", pattern)
    if not found:
        some = ", ".join(names[:8])
        raise ValueError(f"diagnostics.layers: no pattern matches a layer of this model; its layers are {some} ...")
    return found


def _scored(job: Job, run: Path) -> nn.Module:
    """Returns the network of a dense run with its stored weights."""
    model = job.task.build_model(job.model_settings, job.index, job.device)
    load_weights(run / "model.safetensors", model)
    return model.eval()


class _CalledError(Exception):
    """Carries the arguments with which a model was called out of a loss."""


def _dev_inputs(trainer: Trainer) -> Iterator[Any]:
    """Yields the inputs of the first batches of dev, as the task's loss gives them to the model."""

    def stop(module: nn.Module, positional: tuple, named: dict[str, Any]) -> None:
        raise _CalledError(positional, named)

    split = trainer.dev_split
    for indices in split.in_order()[:DEV_BATCHES]:
        handle = trainer.model.register_forward_pre_hook(stop, with_kwargs=True, prepend=True)
        try:
            trainer.task.loss(trainer.model, split.batch(indices, trainer.device))
        except _CalledError as called:
            positional, named = called.args
        else:
            raise ValueError("layers cannot be probed, because the loss of the task does not call the model itself")
        finally:
            handle.remove()
        yield inspect.signature(trainer.model.forward).bind(*positional, **named).arguments if named else positional


def flow_rows(looks: Mapping[str, Look]) -> list[dict[str, Any]]:
    """Returns the rows of `gradient_flow.csv`: `Record.rows` of each point, with `depth`, the place in the model."""
    return [
        {"point": point, "depth": depth, **row}
        for point, look in looks.items()
        for depth, row in enumerate(look.record.rows())
    ]


def series_rows(looks: Mapping[str, Look]) -> list[dict[str, Any]]:
    """Returns the rows of `gradient_flow_series.csv`: `Record.series` of each point, counted from the first step."""
    return [
        {"point": point, **row} | {name: row[name] + look.offset for name in ("first_step", "last_step")}
        for point, look in looks.items()
        for row in look.record.series()
    ]


def verdict_rows(looks: Mapping[str, Look]) -> list[dict[str, Any]]:
    """Returns the findings of each point, the worst first."""
    return [{"point": point, **row} for point, look in looks.items() for row in look.record.verdicts()]


def probe_rows(looks: Mapping[str, Look], table: str) -> list[dict[str, Any]]:
    """Returns the rows of a table of the probe, with the point of each."""
    return [{"point": point, **row} for point, look in looks.items() for row in look.probed.table(table)]


def live_rows(flow: Iterable[Mapping[str, Any]], series: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns all numbers of both tables for `live.Live`: a row per step, with `{figure}/{point}/{parameter}`.

    The figures of `gradient_flow.csv` are at the last observed step of their point.
    """
    rows: dict[int, dict[str, Any]] = {}
    last: dict[str, int] = {}
    for row in series:
        last[row["point"]] = row["last_step"]
        own = rows.setdefault(row["last_step"], {"step": row["last_step"]})
        for name in ("gradient_norm", "gradient_rms", "update_ratio"):
            own[f"series_{name}/{row['point']}/{row['parameter']}"] = row[name]
    for row in flow:
        if row["point"] in last:
            own = rows[last[row["point"]]]
            for name in row.keys() - {"point", "depth", "parameter"}:
                own[f"{name}/{row['point']}/{row['parameter']}"] = row[name]
    return [rows[step] for step in sorted(rows)]
