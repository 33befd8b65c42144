"""Algorithms, found by module name: `algorithms/{name}.py` holds one subclass of `Algorithm`.

The study reads the parameters of an algorithm from its source without importing it (`bbnet.study.discover`), so a
parameter is an annotated field built from `typing` and `pydantic` names alone.
"""

import importlib
import pkgutil
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor


@dataclass(frozen=True)
class SlabView:
    """What an algorithm sees of a slab at a refresh.

    Args:
        scores: [units, fan], magnitude of every connection, dormant ones at their stored value.
        mask: bool [units, fan], in force until now.
        scale: [units], the factor by which each unit's row was rescaled so far.
        on_rates: float64 [units], and `silent`, bool [units]; None unless the algorithm uses on-rates.
        seed: fixed per slab and run.
    """

    name: str
    scores: Tensor
    mask: Tensor
    scale: Tensor
    on_rates: Tensor | None
    silent: Tensor | None
    seed: int

    def generator(self) -> torch.Generator:
        """The same stream at every call."""
        return torch.Generator().manual_seed(self.seed)


class Algorithm(BaseModel, extra="forbid", frozen=True):
    """A rule for what is kept. Fields are its parameters."""

    masks_weights: ClassVar[bool] = False
    uses_on_rates: ClassVar[bool] = False


class WeightMasking(Algorithm):
    """An algorithm that masks the weights of the slabs of its `side`."""

    masks_weights: ClassVar[bool] = True

    side: Literal["in", "out", "both"] = "in"

    @abstractmethod
    def masks(self, slabs: Sequence[SlabView], budget: Decimal) -> list[Tensor]:
        """The masks, bool [units, fan], to be in force from now on: one per slab."""


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
