"""Allocations: how many connections each layer keeps, so that all layers together meet the budget exactly."""

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal

import numpy as np
import torch
from torch import Tensor, nn

from bbnet.sparsity.degrees import connection_count, solve_level
from bbnet.sparsity.input_norm import InputNorms
from bbnet.sparsity.limits import smallest_degree
from bbnet.sparsity.one_shot.calibration import Calibration
from bbnet.sparsity.slab import Slab, connection_norms, layer_shape, stored_side

OUTLIER = 5  # M of the paper
SPREAD = 0.08  # lambda of the paper


def uniform_counts(shapes: Mapping[str, tuple[int, int]], budget: Decimal) -> dict[str, int]:
    """Returns the number of connections that each layer keeps if all have the same density."""
    return {name: connection_count(budget, *shape) for name, shape in shapes.items()}


def owl_counts(
    shapes: Mapping[str, tuple[int, int]], budget: Decimal, stages: Sequence[Sequence[str]], ratios: Sequence[float]
) -> dict[str, int]:
    """Returns the number of connections that each layer keeps under OWL (Yin et al. 2024, eq. 2).

    The density of a stage is proportional to its outlier ratio, on a line from the smallest to the largest ratio that
    spans 2 * lambda with lambda = 0.08. The line is shifted such that the densities, weighted by connections, have the
    budget as their mean; in the paper all layers are equally large. Densities are limited to what layers can keep.
    Connections are rounded by largest remainder, ties to the earlier layer, to floor(b * C + 1/2) of all C.

    Args:
        shapes: units and fan by name of the layer.
        stages: names of the layers of each stage, and `ratios` their outlier ratios.
    """
    found = np.asarray(ratios, dtype=np.float64)
    spread = found.max() - found.min()
    offsets = (found - found.min()) / spread * 2 * SPREAD if spread > 0 else np.zeros_like(found)
    stage_of = {name: index for index, names in enumerate(stages) for name in names}
    names = [name for name in shapes if name in stage_of]
    sizes = np.array([math.prod(shapes[name]) for name in names], dtype=np.float64)
    lowest = np.array([smallest_degree(shapes[name][1]) / shapes[name][1] for name in names])
    lines = np.array([offsets[stage_of[name]] for name in names])
    total = connection_count(budget, 1, int(sizes.sum()))
    level = solve_level(sizes * lines, sizes, sizes * lowest, sizes, total)
    wanted = sizes * np.clip(lines + level, lowest, 1)
    counts = np.floor(wanted.round(6)).astype(np.int64)
    # What is missing is less than one connection per layer; a layer that is full takes no more.
    remainders = np.where(counts < sizes, wanted - counts, -1.0)
    counts[np.argsort(-remainders, kind="stable")[: total - counts.sum()]] += 1
    return dict(zip(names, counts.tolist(), strict=True))


@torch.no_grad()
def outlier_ratios(model: nn.Module, stages: Sequence[Sequence[str]], calibration: Calibration) -> list[float]:
    """Returns the share of outliers among the weights of each stage of the dense model.

    An outlier has a score of Wanda, magnitude times input norm, above 5 times the mean score of its stage.
    """
    layers = {name: model.get_submodule(name) for names in stages for name in names}
    norms = InputNorms(layers, stride=1, in_training=False, root=model)
    try:
        for batch in calibration.batches:
            valid = calibration.valid(batch)
            with norms.valid({} if valid is None else valid):
                calibration.forward(model, batch)
    finally:
        norms.remove()
    norms.fold()

    def scores(name: str) -> Tensor:
        return connection_norms(layers[name].weight, stored_side(layers[name], "in")) * norms.of(name).float()

    ratios = []
    for names in stages:
        sizes = [layers[name].weight.numel() for name in names]
        mean = sum(float(scores(name).double().sum()) for name in names) / sum(sizes)
        outliers = sum(int((scores(name) > OUTLIER * mean).sum()) for name in names)
        ratios.append(outliers / sum(sizes))
    return ratios


def shapes_of(model: nn.Module, slabs: Mapping[str, Slab]) -> dict[str, tuple[int, int]]:
    """Returns units and fan of each slab by name."""
    return {name: layer_shape(model.get_submodule(name), slab.side) for name, slab in slabs.items()}
