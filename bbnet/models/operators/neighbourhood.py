"""Neighbourhood attention (Hassani et al. 2023, arXiv 2204.07143): each place attends to the window around it."""

from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional

DENSE_PLACES = 256  # largest map on which all pairs of places are computed, which is faster there


class NeighbourhoodAttention(nn.Module):
    """Multi-head neighbourhood attention with projections and a bias per head and distance.

    Args:
        width: channels of the maps [batch, height, width, channels]; a multiple of `head_width`.
        kernel: height and width of the windows, odd.
    """

    def __init__(self, width: int, head_width: int, kernel: int) -> None:
        super().__init__()
        self.heads = width // head_width
        self.query_key_value = nn.Linear(width, 3 * width)
        self.bias = nn.Parameter(torch.empty(self.heads, 2 * kernel - 1, 2 * kernel - 1))
        self.output = nn.Linear(width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the biases; the projections draw themselves."""
        nn.init.normal_(self.bias, std=0.02)

    def forward(self, maps: Tensor) -> Tensor:
        query, key, value = self.query_key_value(maps).unflatten(-1, (3, self.heads, -1)).unbind(3)
        return self.output(neighbourhood_attention(query, key, value, self.bias).flatten(3))


def neighbourhood_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, dense: bool | None = None
) -> Tensor:
    """Returns for each place the mean of the values of its window, weighted by softmax(q k / sqrt(d) + bias).

    The window has kernel x kernel places, also at borders, where it is shifted inward, not padded. An axis shorter than
    the kernel is one window.

    Args:
        query, key, value: [batch, height, width, heads, d].
        bias: [heads, 2 kernel - 1, 2 kernel - 1], by the distance of key from query along both axes; kernel is odd.
        dense: whether all pairs of places are computed, and those outside of windows masked, or only pairs of a place
            and the rows of its window; by default whether the map is small.
    """
    kernel = (bias.shape[-1] + 1) // 2
    rows, row_distances = _windows(query.shape[1], kernel, query.device)
    columns, column_distances = _windows(query.shape[2], kernel, query.device)
    bias = bias.to(query.dtype)
    if dense is None:
        dense = query.shape[1] * query.shape[2] <= DENSE_PLACES
    if dense:
        of_window = bias[:, row_distances[:, None, :, None], column_distances[None, :, None, :]]
        places = rows[:, None, :, None] * query.shape[2] + columns[None, :, None, :]
        return _by_all_pairs(query, key, value, of_window, places)
    return _by_rows(query, key, value, bias[:, :, column_distances], row_distances, rows, columns)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _windows(size: int, kernel: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns along one axis, int64 [size, window]: the places of each window, and their distances from its query.

    Distances are counted from 1 - kernel on, as indices of the bias.
    """
    window = min(kernel, size)
    query = torch.arange(size, device=device)
    start = (query - window // 2).clamp(0, size - window)
    places = start[:, None] + torch.arange(window, device=device)
    return places, places - query[:, None] + kernel - 1


def _by_all_pairs(query: Tensor, key: Tensor, value: Tensor, of_window: Tensor, places: Tensor) -> Tensor:
    """Attention with bias [heads, height, width, rows, columns] for the keys at [height, width, rows, columns]."""
    heads, height, width = of_window.shape[:3]
    mask = of_window.new_full((heads, height * width, height * width), -torch.inf)
    places = places.flatten(2).flatten(0, 1).expand(heads, -1, -1)
    mask = mask.scatter(2, places, of_window.flatten(3).flatten(1, 2))
    heads_first = (each.flatten(1, 2).transpose(1, 2) for each in (query, key, value))
    mixed = functional.scaled_dot_product_attention(*heads_first, attn_mask=mask)
    return mixed.transpose(1, 2).unflatten(1, (height, width))


def _by_rows(
    query: Tensor, key: Tensor, value: Tensor, by_row: Tensor, row_distances: Tensor, rows: Tensor, columns: Tensor
) -> Tensor:
    """Attention of each row of places to the rows of its windows, with bias [heads, row distance, width, columns]."""
    height, window = rows.shape
    heads, distances, width, _ = by_row.shape
    mask = by_row.new_full((heads, distances, width, width), -torch.inf)
    mask = mask.scatter(3, columns.expand(heads, distances, -1, -1), by_row)
    # From [heads, height, window, width, width] to a mask [width, window * width] for each row and head.
    mask = mask[:, row_distances].permute(1, 0, 3, 2, 4).flatten(3)
    keys, values = (
        each.index_select(1, rows.flatten()).unflatten(1, (height, window)).flatten(2, 3).transpose(2, 3)
        for each in (key, value)
    )
    return functional.scaled_dot_product_attention(query.transpose(2, 3), keys, values, attn_mask=mask).transpose(2, 3)
