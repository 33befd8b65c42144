"""Copies of many tensors, and their norms, sums, largest values and numbers of non-zero entries, in few operations."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

# Copies on a CPU of up to so many entries lie end to end, because calls would take longer than their entries.
SMALL = 2**16
# Others are copied in float32.
WIDE = {torch.float64: torch.float64, torch.complex128: torch.complex128} | dict.fromkeys(
    (torch.complex32, torch.complex64), torch.complex64
)


class Copies:
    """A copy of each of many tensors, whose values are set and changed in place, and the figures of the copies.

    Copies are in float32, or in float64 where the tensor is. In figures a complex entry counts as two.

    Args:
        tensors: the tensors, by a number that stands for each; none is empty.
        axes: the axis of the units, of those tensors that have units.
    """

    def __init__(self, tensors: Mapping[int, Tensor], axes: Mapping[int, int]) -> None:
        self._axes = axes
        self._copies: dict[int, Tensor] = {}
        self._apart: dict[torch.device, list[int]] = {}
        small: dict[torch.dtype, dict[int, Tensor]] = {}
        for number, tensor in tensors.items():
            dtype = WIDE.get(tensor.dtype, torch.float32)
            if tensor.device.type == "cpu" and tensor.numel() <= SMALL:
                small.setdefault(dtype, {})[number] = tensor
            else:
                self._apart.setdefault(tensor.device, []).append(number)
                self._copies[number] = torch.empty_like(tensor, dtype=dtype)
        self._joined = [Joined(own, axes, dtype) for dtype, own in small.items()]
        for group in self._joined:
            self._copies |= group.copies

    def __getitem__(self, number: int) -> Tensor:
        return self._copies[number]

    def __iter__(self) -> Iterator[int]:
        return iter(self._copies)

    def __contains__(self, number: int) -> bool:
        return number in self._copies

    def set(self, values: Mapping[int, Tensor]) -> None:
        """Sets the copies of some tensors."""
        dense = [each if each.layout == torch.strided else each.to_dense() for each in values.values()]
        if dense:
            torch._foreach_copy_([self._copies[number] for number in values], dense)

    def subtract(self, values: Mapping[int, Tensor]) -> None:
        """Subtracts from the copies of some tensors."""
        own = [self._copies[number] for number in values]
        if own:
            torch._foreach_sub_(own, [each.to(copy.dtype) for each, copy in zip(values.values(), own, strict=True)])

    def measure(self, name: str) -> Iterator[tuple[Sequence[int], Tensor | np.ndarray]]:
        """Yields numbers of tensors, and a figure of each, one of `FIGURES`; arrays, or tensors on a device."""
        together, each = FIGURES[name]
        for group in self._joined:
            with np.errstate(over="ignore", invalid="ignore"):  # of gradients that are not finite
                values = together(group)
            yield group.numbers, values
        for numbers in self._apart.values():
            yield numbers, torch.stack([*each([self._real(number) for number in numbers])])

    def count(self) -> Iterator[tuple[Sequence[int], Tensor | np.ndarray, dict[int, Tensor | np.ndarray]]]:
        """Yields numbers of tensors, the number of non-zero entries of each, and whether each unit has one, [units]."""
        for group in self._joined:
            yield group.count()
        for numbers in self._apart.values():
            copies = {number: self._real(number) for number in numbers}
            flows = {
                number: torch.linalg.vector_norm(copy, dim=_others(copy, self._axes[number])) != 0
                for number, copy in copies.items()
                if number in self._axes
            }
            yield numbers, torch.stack([copy.count_nonzero() for copy in copies.values()]), flows

    def _real(self, number: int) -> Tensor:
        copy = self._copies[number]
        return torch.view_as_real(copy) if copy.is_complex() else copy


class Joined:
    """Copies of one type that lie end to end, with the entries of each unit side by side.

    A row is a unit, or all entries of a tensor without units.
    """

    def __init__(self, tensors: Mapping[int, Tensor], axes: Mapping[int, int], dtype: torch.dtype) -> None:
        sizes = np.array([each.numel() for each in tensors.values()])
        flat = torch.empty(sizes.sum(), dtype=dtype)
        self.numbers = np.array(list(tensors))
        self.copies = {
            number: _laid_out(part, tensor, axes.get(number))
            for (number, tensor), part in zip(tensors.items(), flat.split(sizes.tolist()), strict=True)
        }
        entries = sizes * (2 if dtype.is_complex else 1)
        self.flat: np.ndarray = (torch.view_as_real(flat).flatten() if dtype.is_complex else flat).numpy()
        self.starts = np.cumsum([0, *entries[:-1]])
        self.parts = np.split(self.flat, self.starts[1:])
        rows = np.array([each.shape[axes[number]] if number in axes else 1 for number, each in tensors.items()])
        self._row_ends = np.cumsum([0, *np.repeat(entries // rows, rows)])
        self._first_rows = np.cumsum([0, *rows[:-1]])
        self._layers = {
            number: slice(first, first + count)
            for number, first, count in zip(tensors, self._first_rows, rows, strict=True)
            if number in axes
        }

    def count(self) -> tuple[np.ndarray, np.ndarray, dict[int, np.ndarray]]:
        """See `Copies.count`."""
        zeros_before = np.searchsorted(np.flatnonzero(self.flat == 0), self._row_ends)
        counts = np.diff(self._row_ends) - np.diff(zeros_before)
        flows = counts > 0
        return (
            self.numbers,
            np.add.reduceat(counts, self._first_rows),
            {number: flows[rows] for number, rows in self._layers.items()},
        )


def _laid_out(flat: Tensor, like: Tensor, axis: int | None) -> Tensor:
    """Returns a view of `flat` in the shape of a tensor, with the axis of units outermost and others in its order."""
    order = sorted(range(like.dim()), key=lambda each: (each != axis, -like.stride(each)))
    return flat.view([like.shape[each] for each in order]).permute([order.index(each) for each in range(like.dim())])


def _others(tensor: Tensor, axis: int) -> tuple[int, ...]:
    return tuple(other for other in range(tensor.dim()) if other != axis)


def _largest(tensor: Tensor) -> Tensor:
    # On a CPU a fifth of the time of the norm of infinite order.
    return torch.stack(tensor.aminmax()).abs().amax()


# Of copies that lie end to end, and of a list of others on one device.
FIGURES: dict[str, tuple[Callable[[Joined], np.ndarray], Callable[[list[Tensor]], Sequence[Tensor]]]] = {
    "norm": (
        lambda group: np.sqrt([part.dot(part) for part in group.parts]),
        lambda tensors: torch._foreach_norm(tensors),
    ),
    "largest": (
        lambda group: np.maximum(
            np.abs(np.maximum.reduceat(group.flat, group.starts)), np.abs(np.minimum.reduceat(group.flat, group.starts))
        ),
        lambda tensors: (
            [_largest(each) for each in tensors]
            if tensors[0].device.type == "cpu"
            else torch._foreach_norm(tensors, float("inf"))
        ),
    ),
    "sum": (lambda group: np.add.reduceat(group.flat, group.starts), lambda tensors: [each.sum() for each in tensors]),
}
