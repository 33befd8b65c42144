"""Joint statistics of the units of a network: entropy of codes, correlation and effective rank of activations."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from bbnet.sparsity.slab import CHANNELS_FIRST, Slab, channels_first, unit_modules

GROUP = 8  # number of units that form a joint code
POSITIONS_PER_PASS = 512
MEASURES = ("binary_entropy", "code_entropy", "correlation", "effective_rank")


def binary_entropy(on_rates: np.ndarray) -> float:
    """Returns the mean entropy of a unit being on or off, in bits; `on_rates` [units]."""
    shares = np.stack([on_rates, 1 - on_rates])
    return float(_plog2(shares).sum(0).mean())


def code_entropy(counts: np.ndarray, units: int) -> float:
    """Returns the entropy per unit, in bits, of the joint codes of groups of units, by the plug-in estimate.

    Args:
        counts: [groups, codes], number of times each code of a group was seen.
        units: number of units of all groups together.
    """
    shares = counts / counts.sum(1, keepdims=True)
    return float(_plog2(shares).sum() / units)


def _plog2(shares: np.ndarray) -> np.ndarray:
    """Returns -p log2 p, and 0 where p is 0."""
    return -shares * np.log2(np.where(shares > 0, shares, 1.0))


def mean_absolute_correlation(covariance: np.ndarray) -> float:
    """Returns the mean of abs(Pearson's r) over pairs of units that vary; NaN if fewer than two vary."""
    sd = np.sqrt(np.diag(covariance).clip(min=0))
    varies = sd > 0
    if varies.sum() < 2:
        return float("nan")
    correlations = (covariance / np.outer(np.where(varies, sd, 1), np.where(varies, sd, 1)))[np.ix_(varies, varies)]
    return float(np.abs(correlations[np.triu_indices(len(correlations), 1)]).mean())


def effective_rank(covariance: np.ndarray) -> float:
    """Returns exp of the entropy of the normalised eigenvalues (after Roy and Vetterli 2007); NaN if all are 0."""
    eigenvalues = np.linalg.eigvalsh(covariance).clip(min=0)
    if not eigenvalues.sum() > 0:
        return float("nan")
    shares = eigenvalues / eigenvalues.sum()
    return float(np.exp(_plog2(shares).sum() * np.log(2)))


@dataclass
class Moments:
    """Running sums of the rectified pre-activations of one module's units, and counts of the codes of their groups."""

    seen: int = 0
    total: np.ndarray | float = 0.0
    products: np.ndarray | float = 0.0
    codes: np.ndarray | int = 0
    on: np.ndarray | int = 0

    def add(self, positions: Tensor) -> None:
        """Adds `positions`, float [positions, units]."""
        active = positions.clamp(min=0).double()
        on = positions > 0
        self.seen += len(positions)
        self.total += active.sum(0).cpu().numpy()
        self.products += (active.T @ active).cpu().numpy()
        self.codes += count_codes(on).cpu().numpy()
        self.on += on.sum(0).cpu().numpy()

    def covariance(self) -> np.ndarray:
        mean = self.total / self.seen
        return self.products / self.seen - np.outer(mean, mean)


def count_codes(on: Tensor) -> Tensor:
    """Counts each joint code of every `GROUP` neighbouring units: int64 [groups, 2 ** GROUP].

    Args:
        on: bool [positions, units]; the last group may be smaller.
    """
    positions, units = on.shape
    groups = -(-units // GROUP)
    padded = torch.nn.functional.pad(on.long(), (0, groups * GROUP - units)).reshape(positions, groups, GROUP)
    codes = (padded << torch.arange(GROUP, device=on.device)).sum(-1)
    offsets = torch.arange(groups, device=on.device) << GROUP
    return torch.bincount((codes + offsets).flatten(), minlength=groups << GROUP).reshape(groups, -1)


class Codes:
    """Collects `Moments` of the modules whose outputs are units in every forward pass, until `remove` is called.

    At most 512 valid positions of each forward pass are used, evenly spaced.

    Args:
        valid_of: returns the valid positions of a module's outputs, by module name; None if all are valid.
    """

    def __init__(self, model: nn.Module, slabs: Iterable[Slab], valid_of: Callable[[str], Tensor | None]) -> None:
        slabs = list(slabs)
        first = channels_first(model, slabs)
        self.valid_of = valid_of
        self.moments = {name: Moments() for name in unit_modules(model, slabs)}
        self._hooks = [
            module.register_forward_hook(partial(self._add, name, name in first or isinstance(module, CHANNELS_FIRST)))
            for name, module in unit_modules(model, slabs).items()
        ]

    def _add(self, name: str, is_channels_first: bool, module: nn.Module, inputs: tuple, output: Tensor) -> None:
        positions = output.detach().movedim(1, -1) if is_channels_first else output.detach()
        valid = self.valid_of(name)
        rows = positions.flatten(0, -2) if valid is None else positions[valid]
        if len(rows):
            self.moments[name].add(rows[:: -(-len(rows) // POSITIONS_PER_PASS)])

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def of(self, slab: Slab) -> dict[str, float]:
        """Returns `MEASURES` of a slab's units: the mean over the modules that they come from, weighted by units.

        `code_entropy` is in bits per unit; `effective_rank` is a fraction of the number of units.
        """
        by_module = [_measures(self.moments[name]) for name in slab.units]
        weights = [units for units, _ in by_module]
        return {
            name: float(np.average([measures[name] for _, measures in by_module], weights=weights)) for name in MEASURES
        }


def _measures(moments: Moments) -> tuple[int, dict[str, float]]:
    units, covariance = len(moments.on), moments.covariance()
    return units, {
        "binary_entropy": binary_entropy(moments.on / moments.seen),
        "code_entropy": code_entropy(moments.codes, units),
        "correlation": mean_absolute_correlation(covariance),
        "effective_rank": effective_rank(covariance) / units,
    }
