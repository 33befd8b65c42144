"""Algorithms, found by module name: `algorithms/{name}.py` holds one subclass of `Algorithm`.

Its parameters, if it has any of its own, are declared in `bbnet/sparsity/parameters/{name}.py`.
"""

import importlib
import math
import pkgutil
import zlib
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import ClassVar, Literal

import torch
from pydantic import ValidationError
from torch import Tensor

from bbnet.sparsity.degrees import connection_count, erdos_renyi_counts, weight_count
from bbnet.sparsity.limits import smallest_degree
from bbnet.sparsity.masks import drop_and_grow, project_to_pattern
from bbnet.sparsity.parameters import (
    AVERAGE_DECAY,
    AlgorithmParameters,
    DropAndGrowParameters,
    SparseFromStartParameters,
    WeightMaskingParameters,
    parameters_of,
)


@dataclass(frozen=True)
class SlabView:
    """The state of a slab that an algorithm reads at a refresh.

    Args:
        side: `in` if the units are the layer's outputs, `out` if they are its inputs.
        taps: kernel size of a convolution, () for a linear layer.
        compute_scores: computes `scores`, [units, fan], the magnitude of every connection; dormant ones count with
            their stored value.
        compute_gradient: computes `gradient`, [units, fan], the magnitude of the dense gradient of every connection,
            pruned ones included; None unless the algorithm uses it, before training, and if it is not finite.
        mask: bool [units, fan], the current mask.
        scale: [units], the factor by which each unit's row has been rescaled so far.
        seed: the same throughout a run, different for each slab.
        step: applied optimiser steps of the sparse phase so far; 0 before training.
        progress: share of the steps until the freeze.
        on_rates: float64 [units], and `silent`, bool [units]; None unless the algorithm uses on-rates.
        input_norms: root mean square of the input of each connection, [1, fan] on side `in`, [units, 1] on side `out`;
            None unless the algorithm uses input norms.
    """

    name: str
    side: Literal["in", "out"]
    taps: tuple[int, ...]
    compute_scores: Callable[[], Tensor]
    mask: Tensor
    scale: Tensor
    seed: int
    step: int
    progress: float
    on_rates: Tensor | None = None
    silent: Tensor | None = None
    input_norms: Tensor | None = None
    compute_gradient: Callable[[], Tensor | None] = lambda: None

    @property
    def scores(self) -> Tensor:
        """The magnitudes, computed at each access and not kept: they take as much memory as the weight."""
        return self.compute_scores()

    @property
    def gradient(self) -> Tensor | None:
        """The magnitudes of the dense gradient, computed at each access."""
        return self.compute_gradient()

    @property
    def shape(self) -> tuple[int, int, tuple[int, ...]]:
        """Units, fan and kernel size."""
        return (*self.mask.shape, self.taps)

    def unscaled_scores(self) -> Tensor:
        """Returns the magnitudes without any rescaling, so that they can be compared between units."""
        return self.scores / self.scale[:, None]

    def noise(self, *, fresh: bool = False) -> Tensor:
        """Returns uniform noise in [0, 1), [units, fan]: the same at every refresh, or a `fresh` draw for each."""
        noise = torch.rand(self.mask.shape, generator=self.generator(fresh=fresh), device="cpu")
        return noise.to(self.mask.device)

    def generator(self, *, fresh: bool = False) -> torch.Generator:
        """Returns a generator with the same seed at every refresh, or with a `fresh` one."""
        seed = zlib.crc32(f"{self.seed}/{self.step}".encode()) if fresh else self.seed
        return torch.Generator("cpu").manual_seed(seed)


class Algorithm(AlgorithmParameters):
    """Base of all algorithms. The fields are the parameters."""

    masks_weights: ClassVar[bool] = False
    gates_activations: ClassVar[bool] = False
    prunes_once: ClassVar[bool] = False


class OneShotPruning(Algorithm, WeightMaskingParameters):
    """An algorithm that prunes a trained layer and changes the weights that it keeps; see `bbnet.prune_one_shot`."""

    prunes_once: ClassVar[bool] = True

    @abstractmethod
    def prune(self, weight: Tensor, hessian: Tensor, budget: Decimal) -> Tensor:
        """Prunes a weight in place and returns its mask, bool [outputs, inputs].

        Args:
            weight: [outputs, inputs, taps], in float32 or float64.
            hessian: [inputs * taps, inputs * taps], the sum of x x^T over all inputs x of the layer, in the same dtype.
                Its memory is used.
        Raises: torch.linalg.LinAlgError if the damped Hessian is not positive definite.
        """


class ActivationGating(Algorithm):
    """An algorithm that leaves weights dense and zeroes part of a layer's outputs at each position."""

    gates_activations: ClassVar[bool] = True

    @abstractmethod
    def kept(self, outputs: Tensor, count: int) -> Tensor:
        """Returns which `outputs` [..., units] are kept, bool: exactly `count` units at every position."""


class WeightMasking(Algorithm, WeightMaskingParameters):
    """An algorithm that masks the weights of the slabs of its `side`."""

    masks_weights: ClassVar[bool] = True
    uses_on_rates: ClassVar[bool] = False
    uses_input_norms: ClassVar[bool] = False
    uses_gradient: ClassVar[bool] = False
    starts_sparse: ClassVar[bool] = False  # the budget is met before the first step, without a ramp
    regrows_at_zero: ClassVar[bool] = False  # instead of at the dormant value

    @abstractmethod
    def masks(self, slabs: Sequence[SlabView], budget: Decimal) -> Iterable[Tensor]:
        """Returns the new mask of each slab, bool [units, fan]; an iterator needs memory for one slab at a time."""

    def average_decay(self) -> float:
        """Returns the decay, per optimiser step, of the moving averages of on-rates and input norms."""
        return AVERAGE_DECAY

    def smallest_degree(self, fan: int) -> int:
        """Returns the number of connections that each unit must be able to keep at the budget."""
        return smallest_degree(fan)

    def ranking(self, slab: SlabView) -> Tensor:
        """Returns non-negative scores [units, fan] that decide where a pattern N:M leaves a choice."""
        return slab.unscaled_scores()

    def patterned_masks(self, slabs: Sequence[SlabView], budget: Decimal) -> Iterator[Tensor]:
        """Yields `masks`, projected to the pattern if there is one."""
        group = self.group()
        for slab, mask in zip(slabs, self.masks(slabs, budget), strict=True):
            yield mask if group is None else project_to_pattern(mask, self.ranking(slab), *group)


class SparseFromStart(WeightMasking, SparseFromStartParameters):
    """A weight-masking algorithm that meets its budget before the first step of the sparse phase."""

    @property
    def starts_sparse(self) -> bool:
        return not self.ramp

    def counts(self, slabs: Sequence[SlabView], budget: Decimal) -> list[int]:
        """Returns the number of connections that each slab keeps."""
        if self.distribution == "uniform":
            return [connection_count(budget, *slab.mask.shape) for slab in slabs]
        shapes = [slab.shape for slab in slabs]
        return erdos_renyi_counts(weight_count(budget, shapes), shapes)


class DropAndGrow(SparseFromStart, DropAndGrowParameters):
    """Each refresh replaces a share of a slab's live connections. The share falls along a cosine to 0 at the freeze."""

    regrows_at_zero: ClassVar[bool] = True

    @abstractmethod
    def growth(self, slab: SlabView) -> Tensor | None:
        """Returns non-negative scores [units, fan], the largest of which grow; None if nothing is to grow."""

    def masks(self, slabs: Sequence[SlabView], budget: Decimal) -> Iterator[Tensor]:
        for slab, count in zip(slabs, self.counts(slabs, budget), strict=True):
            share = self.drop_share(slab.progress)
            yield drop_and_grow(slab.mask, slab.unscaled_scores(), self.growth(slab), count, share)

    def ranking(self, slab: SlabView) -> Tensor:
        """Ranks live connections by magnitude, and all pruned ones below them by their growth scores."""
        magnitudes, growth = slab.unscaled_scores(), self.growth(slab)
        if growth is None:
            return magnitudes
        least = magnitudes[slab.mask].min()
        return torch.where(slab.mask, magnitudes, growth / growth.amax() * least / 2)

    def drop_share(self, progress: float) -> float:
        """Returns the share of live connections to replace (Evci et al. 2020, eq. 1)."""
        return self.drop_fraction / 2 * (1 + math.cos(math.pi * progress))


def names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def make(name: str, **parameters) -> Algorithm:
    """Returns the algorithm of `algorithms/{name}.py`; raises ValueError for an unknown name or parameter."""
    if name not in names():
        raise ValueError(f"unknown algorithm {name!r}, allowed: {', '.join(names())}")
    module = importlib.import_module(f"{__name__}.{name}")
    kinds = [kind for kind in vars(module).values() if isinstance(kind, type) and kind.__module__ == module.__name__]
    (kind,) = (kind for kind in kinds if issubclass(kind, Algorithm))
    undeclared = kind.model_fields.keys() ^ parameters_of(name).model_fields.keys()
    if undeclared:
        raise ValueError(
            f"algorithms/{name}.py: {', '.join(sorted(undeclared))}: the parameters must be those that "
            f"sparsity/parameters/{name}.py declares, or side and pattern where there is no such file"
        )
    try:
        return kind(**parameters)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        allowed = ", ".join(sorted(kind.model_fields)) or "none"
        raise ValueError(f"algorithm {name}: {problems}; its parameters: {allowed}") from None
