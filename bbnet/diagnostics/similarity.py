"""Similarity of features: of slices of one tensor, and of two layers by linear CKA."""

import torch
from torch import Tensor


def mean_cosine(features: Tensor, axis: int) -> float | None:
    """Returns the mean cosine of all pairs of different slices of `features` along `axis`; slices of 0 are left out.

    The memory that it takes is that of the features. None with fewer than two slices, or an entry that is not finite.
    """
    slices = _slices(features, axis)
    if not slices.isfinite().all():
        return None
    norms = slices.norm(dim=1)
    kept = slices[norms > 0] / norms[norms > 0, None]
    count = len(kept)
    if count < 2:
        return None
    # The squared norm of the sum of unit vectors is the sum of the cosines of all pairs, each with itself included.
    return float((kept.sum(0).square().sum() - count) / (count * (count - 1)))


def mean_kl(features: Tensor, axis: int) -> float | None:
    """Returns the mean Kullback-Leibler divergence, in nats, of all ordered pairs of different slices along `axis`.

    Each slice is turned into probabilities by a softmax over all of its entries. It is 0 for equal slices, and about 1
    for independent normal ones. The memory that it takes is that of the features. None with fewer than two slices, or
    an entry that is not finite.
    """
    slices = _slices(features, axis)
    count = len(slices)
    if count < 2 or not slices.isfinite().all():
        return None
    log = slices.log_softmax(1)
    probabilities = log.exp()
    # The sum over i and j of p_i (log p_i - log p_j), where the terms with i = j are 0.
    total = count * (probabilities * log).sum() - (probabilities.sum(0) * log.sum(0)).sum()
    return max(0.0, float(total / (count * (count - 1))))


def _slices(features: Tensor, axis: int) -> Tensor:
    """Returns the slices along an axis, [slices, entries], in float64."""
    return features.detach().movedim(axis, 0).flatten(1).double()


class LinearCKA:
    """Linear centred kernel alignment of the features of two layers at the same positions (Kornblith et al. 2019).

    It is |Y'X|^2 / (|X'X| |Y'Y|) with Frobenius norms, for features X and Y [positions, channels] centred over the
    positions. It is accumulated over batches exactly, from sums whose size is the square of the number of channels.
    """

    def __init__(self) -> None:
        self.positions = 0
        self._sums: tuple[Tensor, Tensor] | None = None
        self._products: dict[str, Tensor] = {}

    def add(self, mine: Tensor, others: Tensor) -> None:
        """Adds features [positions, channels] of both layers."""
        pair = mine.detach().double(), others.detach().double()
        if self._sums is None:
            # Features far from 0 would lose precision in sums of squares; any shift leaves the centred ones the same.
            self._shifts = tuple(each.mean(0) for each in pair)
            self._sums = tuple(torch.zeros_like(shift) for shift in self._shifts)
        x, y = (each - shift for each, shift in zip(pair, self._shifts, strict=True))
        self.positions += len(x)
        self._sums = (self._sums[0] + x.sum(0), self._sums[1] + y.sum(0))
        for name, product in {"xx": x.T @ x, "yy": y.T @ y, "yx": y.T @ x}.items():
            self._products[name] = product if name not in self._products else self._products[name] + product

    def value(self) -> float | None:
        """Returns the CKA, in [0, 1]; None if the features of a layer are the same at all positions."""
        if self._sums is None:
            return None
        x, y = self._sums
        norms = {
            name: (self._products[name] - torch.outer(first, second) / self.positions).norm()
            for name, first, second in (("xx", x, x), ("yy", y, y), ("yx", y, x))
        }
        below = float(norms["xx"] * norms["yy"])
        return min(1.0, float(norms["yx"] ** 2) / below) if below > 0 else None
