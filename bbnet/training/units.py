"""What the units of a network do: on-rate, degree and traffic of each, their codes, and the balance line, on dev."""

from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bbnet.analysis.balance import effective_degrees, mean_lines
from bbnet.sparsity.limits import smallest_degree
from bbnet.sparsity.on_rate import OnRates
from bbnet.sparsity.slab import Slab, connection_norms
from bbnet.training.codes import Codes


def measure_units(
    task: ModuleType,
    model: nn.Module,
    split: Any,
    device: torch.device,
    slabs: Iterable[Slab],
    masks: Mapping[str, Tensor],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """From one pass over `split`, one row per slab and unit, and one per slab.

    Of a unit: on-rate over the valid positions, degree, fan, traffic = on-rate * degree. Of a slab: `codes.MEASURES`.

    A unit is `silent` if it was on at none of at least 1,000 positions, and `at_smallest` with degree k_min or less.

    Args:
        masks: bool [units, fan] by slab name; a slab without one is dense.
    """
    slabs = list(slabs)
    on_rates = OnRates.of_slabs(model, slabs, stride=1, in_training=False)
    codes = Codes(model, slabs, on_rates.valid_of)
    _pass_over(task, model, split, device, on_rates)
    codes.remove()
    rows = []
    for slab in slabs:
        rates, silent = on_rates.of(slab.units)
        weight = model.get_submodule(slab.name).weight
        fan = weight.shape[1 if slab.side == "in" else 0]
        mask = masks.get(slab.name)
        degrees = [fan] * len(rates) if mask is None else mask.sum(1).tolist()
        rows += [
            {
                "slab": slab.name,
                "side": slab.side,
                "unit": unit,
                "fan": fan,
                "on_rate": rate,
                "degree": degree,
                "at_smallest": degree <= smallest_degree(fan),
                "traffic": rate * degree,
                "silent": quiet,
            }
            for unit, (rate, degree, quiet) in enumerate(zip(rates.tolist(), degrees, silent.tolist(), strict=True))
        ]
    of_slabs = [{"slab": slab.name, "side": slab.side, "units": len(on_rates.of(slab.units)[0])} for slab in slabs]
    return rows, [row | codes.of(slab) for row, slab in zip(of_slabs, slabs, strict=True)]


def measure_balance(
    task: ModuleType,
    model: nn.Module,
    split: Any,
    device: torch.device,
    slabs: Iterable[Slab],
    masks: Mapping[str, Tensor],
) -> dict[str, float]:
    """From one pass over `split`, the balance lines of the slabs: `analysis.balance.mean_lines`.

    Args:
        masks: as in `measure_units`.
    """
    slabs = list(slabs)
    on_rates = OnRates.of_slabs(model, slabs, stride=1, in_training=False)
    _pass_over(task, model, split, device, on_rates)
    found = []
    for slab in slabs:
        rates, silent = (each.cpu().numpy() for each in on_rates.of(slab.units))
        magnitudes = connection_norms(model.get_submodule(slab.name).weight.detach(), slab.side).double().cpu().numpy()
        units, fan = magnitudes.shape
        mask = masks.get(slab.name)
        live = np.full(units, fan) if mask is None else mask.sum(1).cpu().numpy()
        found.append(
            {"side": slab.side, "fan": fan, "on_rates": rates, "silent": silent}
            | {"live": live, "effective": effective_degrees(magnitudes)}
        )
    return mean_lines(found)


def _pass_over(task: ModuleType, model: nn.Module, split: Any, device: torch.device, on_rates: OnRates) -> None:
    """Evaluates the loss of all samples, so that the on-rates are those of the split, and removes their hooks."""
    model.eval()
    for indices in split.in_order():
        batch = split.batch(indices, device)
        with torch.no_grad(), on_rates.valid(task.valid_positions(model, batch)):
            task.loss(model, batch)
    on_rates.remove()
    on_rates.fold()
