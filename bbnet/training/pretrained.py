"""Loads the weights of a finished run into a model of another architecture, as far as they fit."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from bbnet.study.record import check_files, read_record
from bbnet.training.checkpoint import read_weights

logger = logging.getLogger(__name__)
NAMED_IN_ERRORS = 3


def start_from(model: nn.Module, run: Path, fingerprint: str) -> dict[str, Any]:
    """Loads the selected weights of the run in the folder `run` into `model`, as `load_matching` does.

    Args:
        fingerprint: that of the run whose weights are meant.
    Returns: an entry `started_from` of a record; see `bbnet.study.record.StartedFrom`.
    Raises: ValueError if the folder holds another run, a file of it was changed, or no parameter fits.
    """
    record = read_record(run / "record.json")
    if record.fingerprint != fingerprint:
        raise ValueError(f"{run}: is the run of another configuration or of other code than the one to start from")
    check_files(run, record)
    path = run / "model.safetensors"
    try:
        loaded, unused = load_matching(model, read_weights(path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    untouched = sorted(set(model.state_dict()) - set(loaded))
    logger.info("started from %s: %d tensors loaded", path, len(loaded))
    for what, names in (("of the run are not used", unused), ("of the model keep their first values", untouched)):
        logger.info("%d tensors %s%s", len(names), what, f": {', '.join(names)}" if names else "")
    described = {key: record.run[key] for key in ("task", "model", "method", "budget", "seed")}
    return {
        "run": "{task}/{model}/{method}/b{budget}/s{seed}".format(**described),
        "weights": record.files[path.name],
        "loaded": loaded,
        "unused": unused,
        "untouched": untouched,
    }


@torch.no_grad()
def load_matching(model: nn.Module, weights: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
    """Copies into `model` the parameters, and running statistics of norms, whose names and shapes are those of its own.

    Other buffers stay, such as the mean of the training pixels by which a network normalises its inputs.

    Returns: the sorted names of the loaded tensors, and of those that were not.
    Raises: ValueError if no parameter matches.
    """
    own = model.state_dict(keep_vars=True)
    fitting = {name for name in weights.keys() & own.keys() if weights[name].shape == own[name].shape}
    parameters = fitting & {name for name, _ in model.named_parameters(remove_duplicate=False)}
    if not parameters:
        raise ValueError(
            f"no parameter has name and shape of one of the model: it has {_named(weights)}; the model {_named(own)}"
        )
    norms = [f"{name}." for name, module in model.named_modules() if isinstance(module, _NormBase)]
    loaded = sorted(parameters | {name for name in fitting if name.startswith(tuple(norms))})
    for name in loaded:
        own[name].copy_(weights[name])
    return loaded, sorted(weights.keys() - set(loaded))


def _named(tensors: Iterable[str]) -> str:
    """Returns the first names and the number of the others."""
    names = list(tensors)
    others = f" and {len(names) - NAMED_IN_ERRORS} more" if len(names) > NAMED_IN_ERRORS else ""
    return ", ".join(names[:NAMED_IN_ERRORS]) + others
