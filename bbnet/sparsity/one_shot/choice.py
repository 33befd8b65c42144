"""Which layers of a model are pruned: by default those in its blocks, else those that are named or given as slabs."""

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal

from torch import nn

from bbnet.sparsity.algorithms import Algorithm
from bbnet.sparsity.claims import BINARIZERS, SPARSIFIERS
from bbnet.sparsity.one_shot.stages import block_names, is_inside
from bbnet.sparsity.plain.structure import find_slabs
from bbnet.sparsity.slab import Side, Slab, check_slabs, choose_slabs, is_layer, layer_shape


@dataclass
class Choice:
    """The layers to prune.

    Attributes:
        slabs: their slabs, by name.
        inputs_as_units: names of those of side `out` whose units are read at the input of the layer.
        left_dense: why each other layer of the blocks is not pruned, by name.
    """

    slabs: dict[str, Slab]
    inputs_as_units: set[str] = field(default_factory=set)
    left_dense: dict[str, str] = field(default_factory=dict)

    def without(self, names: Iterable[str], reason: str) -> "Choice":
        """Returns the choice without some layers, which stay dense for that reason."""
        gone = dict.fromkeys(names, reason)
        kept = {name: slab for name, slab in self.slabs.items() if name not in gone}
        return replace(self, slabs=kept, left_dense=self.left_dense | gone)


def in_blocks(model: nn.Module, blocks: Sequence[str], algorithm: Algorithm, budget: Decimal) -> Choice:
    """Returns every layer inside blocks that can be pruned to the budget."""
    found = _as_slabs(model, [name for name in _layers(model) if _is_in_any(name, blocks)], algorithm)
    slabs, left_dense = {}, {}
    for name, slab in found.slabs.items():
        try:
            chosen, dense = choose_slabs(model, [slab], budget)
            check_slabs(model, chosen or [slab], budget)
        except ValueError as error:
            chosen, dense = [], {name: str(error)}
        slabs |= {slab.name: slab for slab in chosen}
        left_dense |= dense
    if not slabs:
        reasons = "; ".join(f"{name}: {why}" for name, why in left_dense.items()) or "there are none"
        raise ValueError(f"no layer in the blocks {blocks[0]} to {blocks[-1]} can be pruned ({reasons})")
    return replace(found, slabs=slabs, left_dense=left_dense)


def of_names(model: nn.Module, given: Sequence[str | Slab], algorithm: Algorithm) -> Choice:
    """Returns the layers that are given as names, patterns or slabs.

    Raises: ValueError if a name or pattern matches no layer, or a slab has another side than the method.
    """
    names = _layers(model)
    matched: dict[str, None] = {}
    for pattern in (each for each in given if isinstance(each, str)):
        found = fnmatch.filter(names, pattern)
        if not found:
            raise ValueError(f"layers: {pattern!r} matches no linear layer or convolution of {type(model).__name__}")
        matched |= dict.fromkeys(found)
    choice = _as_slabs(model, list(matched), algorithm)
    for slab in (each for each in given if isinstance(each, Slab)):
        if algorithm.side not in (slab.side, "both"):
            raise ValueError(f"slab {slab.name} has side {slab.side}, but the method has side {algorithm.side}")
        if slab.name in choice.slabs:
            raise ValueError(f"layer {slab.name} is given twice")
        choice.slabs[slab.name] = slab
    return choice


def check(model: nn.Module, choice: Choice, algorithm: Algorithm, budget: Decimal) -> None:
    """Raises ValueError if a layer cannot be pruned by the algorithm to the budget."""
    group = algorithm.group()
    for slab, weight in check_slabs(model, choice.slabs.values(), budget).items():
        if weight in SPARSIFIERS or weight in BINARIZERS:
            raise ValueError(
                f"layer {slab.name}: a sparsifier or binarizer acts on its weight in training; call remove() of the "
                "sparsifier, or restore() of the binarizer, first"
            )
        inputs = layer_shape(model.get_submodule(slab.name), "in")[1]
        if group is not None and inputs % group[1]:
            raise ValueError(f"layer {slab.name}: its {inputs} inputs do not fit pattern {algorithm.pattern}")


def named_blocks(model: nn.Module, blocks: str | Sequence[str]) -> list[str]:
    """Returns the names of the blocks in a container, or those that are given; raises ValueError for an unknown one."""
    names = [blocks] if isinstance(blocks, str) else list(blocks)
    try:
        modules = [model.get_submodule(name) for name in names]
    except AttributeError as error:
        raise ValueError(f"blocks: {error}") from None
    found = block_names(blocks, modules[0]) if isinstance(blocks, str) else names
    if not found:
        raise ValueError(f"blocks: {blocks!r} holds no modules")
    return found


def holds_all(blocks: Sequence[str], slabs: Iterable[Slab]) -> bool:
    """Returns whether every slab has its layer and its units in one of the blocks."""
    together = ((slab.name, *slab.units) for slab in slabs)
    return all(any(all(is_inside(name, block) for name in names) for block in blocks) for names in together)


def _layers(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if is_layer(module)]


def _is_in_any(name: str, blocks: Iterable[str]) -> bool:
    return any(is_inside(name, block) for block in blocks)


def _as_slabs(model: nn.Module, names: Sequence[str], algorithm: Algorithm) -> Choice:
    """Returns slabs of the method's side for layers. Their units matter to algorithms with on-rates alone."""
    side: Side = algorithm.side
    if names and side == "both":
        raise ValueError("side both needs layers that are given as slabs, since a name does not say which side it has")
    if not names or not getattr(algorithm, "uses_on_rates", False):
        return Choice({name: Slab(name, side, name) for name in names})
    try:
        found = {slab.name: slab for slab in find_slabs(model, side)}
    except ValueError:  # no hidden units between layers
        found = {}
    slabs = {name: found.get(name, Slab(name, side, name)) for name in names}
    return Choice(slabs, set() if side == "in" else {name for name in names if name not in found})
