"""SparseGPT (Frantar & Alistarh 2023, "SparseGPT: massive language models can be accurately pruned in one-shot").

A weight matrix is pruned so that its outputs for the calibration inputs change little: columns are visited in order,
and what is pruned in a column is compensated by the columns after it, as the inverse Hessian of the squared error says.
As in the published code, the mask of 128 columns is chosen when they are reached, the mean of the Hessian's diagonal
times `damping` is added to the diagonal, and weights of inputs that were always 0 are set to 0. Unlike there, the mask
keeps exactly the number of connections of the budget, each block its share. A connection of a convolution is a whole
kernel, whose columns are pruned together; with one weight per connection this is the published algorithm.
"""

from decimal import Decimal

import torch
from torch import Tensor

from bbnet.sparsity.algorithms import OneShotPruning
from bbnet.sparsity.degrees import connection_count
from bbnet.sparsity.masks import keep_largest, keep_largest_of_all
from bbnet.sparsity.parameters.sparsegpt import Parameters

BLOCK = 128


class SparseGPT(OneShotPruning, Parameters):
    """Prunes a layer once, and changes the weights that it keeps."""

    def prune(self, weight: Tensor, hessian: Tensor, budget: Decimal) -> Tensor:
        outputs, inputs, taps = weight.shape
        columns = weight.view(outputs, inputs * taps)
        columns[:, hessian.diagonal() == 0] = 0
        factor = _inverse_factor(hessian, self.damping)
        mask = torch.ones(outputs, inputs, dtype=torch.bool, device=weight.device)
        group = self.group()
        width = BLOCK if group is None else -(-BLOCK // group[1]) * group[1]
        for first in range(0, inputs, width):
            end = min(first + width, inputs)
            kept = connection_count(budget, outputs, end) - connection_count(budget, outputs, first)
            block = slice(first * taps, end * taps)
            errors = self._prune_block(columns[:, block], factor[block, block], mask[:, first:end], kept)
            columns[:, block.stop :].addmm_(errors, factor[block, block.stop :], alpha=-1)
        return mask

    def _prune_block(self, weight: Tensor, factor: Tensor, mask: Tensor, kept: int) -> Tensor:
        """Prunes consecutive columns, with their rows and columns of the factor; returns their errors.

        Args:
            weight: [outputs, columns], changed in place.
            mask: bool [outputs, inputs], changed in place.
            kept: number of connections to keep, if there is no pattern.
        """
        inputs = mask.shape[1]
        taps = weight.shape[1] // inputs
        group = self.group()
        if group is None:
            mask.copy_(keep_largest_of_all(_losses(weight, factor, taps), kept))
        errors = torch.zeros_like(weight)
        for column in range(inputs):
            if group is not None and column % group[1] == 0:
                together = slice(column * taps, (column + group[1]) * taps)
                losses = _losses(weight[:, together], factor[together, together], taps)
                degrees = torch.full((len(weight),), group[0], device=weight.device)
                mask[:, column : column + group[1]] = keep_largest(losses, degrees)
            own = slice(column * taps, (column + 1) * taps)
            pruned = ~mask[:, column, None]
            error = _errors(weight[:, own], factor[own, own]) * pruned
            weight[:, own.stop :].addmm_(error, factor[own, own.stop :], alpha=-1)
            weight[:, own].masked_fill_(pruned, 0)
            errors[:, own] = error
        return errors


def _inverse_factor(hessian: Tensor, damping: float) -> Tensor:
    """Returns the upper Cholesky factor of the inverse of the damped Hessian, in the Hessian's memory.

    Row i from the diagonal on is row 0 of the inverse of the Hessian of the columns from i on, divided by the square
    root of its first entry.
    """
    diagonal = hessian.diagonal()
    diagonal[diagonal == 0] = 1
    diagonal += damping * diagonal.mean()
    # LAPACK writes columns, so that the transposed view is factorised in place.
    transposed = hessian.mT
    torch.linalg.cholesky(transposed, out=transposed)
    torch.cholesky_inverse(transposed, out=transposed)
    torch.linalg.cholesky(transposed, out=transposed)
    return hessian


def _errors(weight: Tensor, factor: Tensor) -> Tensor:
    """Returns `weight` [outputs, taps] divided by the diagonal block `factor` [taps, taps] from the right."""
    if factor.shape[0] == 1:
        return weight / factor
    return torch.linalg.solve_triangular(factor, weight, upper=True, left=False)


def _losses(weight: Tensor, factor: Tensor, taps: int) -> Tensor:
    """Returns the increase of the squared error if a connection alone is pruned, [outputs, inputs].

    For one weight w per connection it is (w / d)^2 with the diagonal d of the factor (eq. 3 of the paper).
    """
    if taps == 1:
        return (weight / factor.diagonal()).square_()
    firsts = range(0, weight.shape[1], taps)
    blocks = [(weight[:, at : at + taps], factor[at : at + taps, at : at + taps]) for at in firsts]
    return torch.stack([_errors(*block).square().sum(1) for block in blocks], dim=1)
