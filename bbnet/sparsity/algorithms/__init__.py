"""Algorithms, found by module name: `algorithms/{name}.py` holds one subclass of `Algorithm`.

The study reads the parameters of an algorithm from its source without importing it (`bbnet.study.discover`), so a
parameter is an annotated field built from `typing` and `pydantic` names alone.
"""

import importlib
import math
import pkgutil
import zlib
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor

from bbnet.sparsity.degrees import connection_count, erdos_renyi_counts
from bbnet.sparsity.masks import drop_and_grow, project_to_pattern


@dataclass(frozen=True)
class SlabView:
    """What an algorithm sees of a slab at a refresh.

    Args:
        side: `in`, the units are the layer's outputs; `out`, its inputs.
        taps: extents of the kernel that go with one connection, () for a linear layer.
        scores: [units, fan], magnitude of every connection, dormant ones at their stored value.
        mask: bool [units, fan], in force until now.
        scale: [units], the factor by which each unit's row was rescaled so far.
        seed: fixed per slab and run.
        step: applied optimiser steps of the sparse phase so far; 0 before training.
        progress: share of the steps until the freeze.
        on_rates: float64 [units], and `silent`, bool [units]; None unless the algorithm uses on-rates.
        input_norms: root mean square of what each connection reads, [1, fan] on side `in`, [units, 1] on side `out`;
            None unless the algorithm uses input norms.
        gradient: [units, fan], magnitude of the dense gradient of every connection, pruned ones too; None unless the
            algorithm uses it, before training, and where it is not finite.
    """

    name: str
    side: Literal["in", "out"]
    taps: tuple[int, ...]
    scores: Tensor
    mask: Tensor
    scale: Tensor
    seed: int
    step: int
    progress: float
    on_rates: Tensor | None = None
    silent: Tensor | None = None
    input_norms: Tensor | None = None
    gradient: Tensor | None = None

    def unscaled_scores(self) -> Tensor:
        """Magnitudes at the scale that each unit had before any rescaling, at which units can be compared."""
        return self.scores / self.scale[:, None]

    def noise(self, *, fresh: bool = False) -> Tensor:
        """Uniform in [0, 1), [units, fan], drawn for this slab and run: once for all, or `fresh` at each refresh."""
        return torch.rand(self.scores.shape, generator=self.generator(fresh=fresh)).to(self.scores.device)

    def generator(self, *, fresh: bool = False) -> torch.Generator:
        """The same stream at every refresh, or a `fresh` one."""
        seed = zlib.crc32(f"{self.seed}/{self.step}".encode()) if fresh else self.seed
        return torch.Generator().manual_seed(seed)


class Algorithm(BaseModel, extra="forbid", frozen=True):
    """A rule for what is kept. Fields are its parameters."""

    masks_weights: ClassVar[bool] = False
    gates_activations: ClassVar[bool] = False


class ActivationGating(Algorithm):
    """An algorithm that leaves weights dense and lets a share of a layer's outputs through at each position."""

    gates_activations: ClassVar[bool] = True

    @abstractmethod
    def kept(self, outputs: Tensor, count: int) -> Tensor:
        """Bool, of the shape of `outputs` [..., units]: exactly `count` units at every position."""


class WeightMasking(Algorithm):
    """An algorithm that masks the weights of the slabs of its `side`."""

    masks_weights: ClassVar[bool] = True
    uses_on_rates: ClassVar[bool] = False
    uses_input_norms: ClassVar[bool] = False
    uses_gradient: ClassVar[bool] = False
    starts_sparse: ClassVar[bool] = False  # the budget holds from the start, instead of the ramp
    regrows_at_zero: ClassVar[bool] = False  # instead of at the stored value

    side: Literal["in", "out", "both"] = Field(
        "in", description="Whose connections are masked: a unit's inputs, its outputs, or of each block one of both."
    )
    pattern: str | None = Field(
        None,
        pattern=r"^[1-9][0-9]*:[1-9][0-9]*$",
        description="N:M, as 2:4: of each M connections along the fan N stay, so that all units have one degree. "
        "The budget must be N/M.",
    )

    @abstractmethod
    def masks(self, slabs: Sequence[SlabView], budget: Decimal) -> list[Tensor]:
        """The masks, bool [units, fan], to be in force from now on: one per slab."""

    def ranking(self, slab: SlabView) -> Tensor:
        """What decides between the connections of a slab when a pattern leaves a choice, [units, fan], not negative."""
        return slab.unscaled_scores()

    def group(self) -> tuple[int, int] | None:
        """N and M of the pattern; None without one."""
        if self.pattern is None:
            return None
        kept, size = map(int, self.pattern.split(":"))
        return kept, size

    def patterned_masks(self, slabs: Sequence[SlabView], budget: Decimal) -> list[Tensor]:
        """`masks`, brought into the pattern if there is one."""
        masks = self.masks(slabs, budget)
        group = self.group()
        if group is None:
            return masks
        return [project_to_pattern(mask, self.ranking(slab), *group) for slab, mask in zip(slabs, masks, strict=True)]


class SparseFromStart(WeightMasking):
    """A weight-masking algorithm that meets its budget before the first step of the sparse phase."""

    ramp: bool = Field(False, description="Come down to the budget along the study's ramp instead.")
    distribution: Literal["uniform", "erk"] = Field(
        "uniform",
        description="The same density in every slab, or that of an Erdos-Renyi graph (Evci et al. 2020): small slabs "
        "are denser, the sum is the same.",
    )

    @property
    def starts_sparse(self) -> bool:
        return not self.ramp

    def counts(self, slabs: Sequence[SlabView], budget: Decimal) -> list[int]:
        """How many connections each slab keeps."""
        counts = [connection_count(budget, *slab.scores.shape) for slab in slabs]
        if self.distribution == "uniform":
            return counts
        return erdos_renyi_counts(sum(counts), [(*slab.scores.shape, slab.taps) for slab in slabs])


class DropAndGrow(SparseFromStart):
    """Each refresh replaces a share of a slab's live connections, which falls along a cosine to 0 at the freeze."""

    regrows_at_zero: ClassVar[bool] = True

    drop_fraction: float = Field(0.3, gt=0, le=1, description="Share of the live connections replaced, at the start.")

    @abstractmethod
    def growth(self, slab: SlabView) -> Tensor | None:
        """Where the largest grow, [units, fan], not negative; None if nothing shall."""

    def masks(self, slabs: Sequence[SlabView], budget: Decimal) -> list[Tensor]:
        return [
            drop_and_grow(slab.mask, slab.unscaled_scores(), self.growth(slab), count, self.drop_share(slab.progress))
            for slab, count in zip(slabs, self.counts(slabs, budget), strict=True)
        ]

    def ranking(self, slab: SlabView) -> Tensor:
        """Live connections by magnitude; behind them the pruned ones, by what would grow first."""
        magnitudes, growth = slab.unscaled_scores(), self.growth(slab)
        if growth is None:
            return magnitudes
        least = magnitudes[slab.mask].min()
        return torch.where(slab.mask, magnitudes, growth / growth.amax() * least / 2)

    def drop_share(self, progress: float) -> float:
        """Evci et al. 2020, eq. 1."""
        return self.drop_fraction / 2 * (1 + math.cos(math.pi * progress))


def names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def make(name: str, **parameters) -> Algorithm:
    """The algorithm of `algorithms/{name}.py`; raises ValueError for an unknown name or parameter."""
    if name not in names():
        raise ValueError(f"unknown algorithm {name!r}, allowed: {', '.join(names())}")
    module = importlib.import_module(f"{__name__}.{name}")
    kinds = [kind for kind in vars(module).values() if isinstance(kind, type) and kind.__module__ == module.__name__]
    (kind,) = (kind for kind in kinds if issubclass(kind, Algorithm))
    try:
        return kind(**parameters)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        allowed = ", ".join(sorted(kind.model_fields)) or "none"
        raise ValueError(f"algorithm {name}: {problems}; its parameters: {allowed}") from None
