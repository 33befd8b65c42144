"""Deformable attention of one level (Xia et al. 2022, arXiv 2201.00520) and of several (Zhu et al. 2021)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from bbnet.models.operators.sampling import cell_centres, extent, weighted_samples

DISTANCES = 15  # entries of the table of biases along each axis


class DeformableAttention(nn.Module):
    """DAT: all places attend to the same sampled places, which depend on the input.

    The sampled places are a regular grid of one place for stride x stride pixels, moved by offsets that a depthwise
    convolution, a norm, GELU and a linear layer compute from the queries, one for each group of channels, and kept
    within the map. Keys and values are projections of the maps sampled there. The bias of a pair is interpolated from a
    table of 15 x 15 entries that spans all distances on the map, so maps of any size have the same weights.

    Args:
        width: channels of the maps [batch, height, width, channels]; a multiple of `head_width`.
        stride: distance of the sampled places before they are moved, in pixels.
    """

    def __init__(self, width: int, head_width: int, stride: int = 1) -> None:
        super().__init__()
        self.heads = width // head_width
        self.groups = self.heads // 2 if self.heads % 2 == 0 else self.heads
        self.query = nn.Linear(width, width)
        span = width // self.groups
        self.local = nn.Conv2d(span, span, 5, stride, 2, groups=span)
        self.norm = nn.LayerNorm(span)
        self.offset = nn.Linear(span, 2, bias=False)
        self.key_value = nn.Linear(width, 2 * width)
        self.bias = nn.Parameter(torch.empty(self.heads, DISTANCES, DISTANCES))
        self.output = nn.Linear(width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the biases, and offsets of about a pixel; the other layers draw themselves."""
        nn.init.normal_(self.bias, std=0.02)
        nn.init.normal_(self.offset.weight, std=0.1)

    def forward(self, maps: Tensor) -> Tensor:
        batch, height, width, channels = maps.shape
        query = self.query(maps)
        points = self.places(query)
        weights = points.new_ones(()).expand(points.shape[:-1])[..., None]
        sampled = weighted_samples(maps.unflatten(-1, (self.groups, -1)), points[..., None, :], weights).flatten(2)
        key, value = self.key_value(sampled).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query = query.flatten(1, 2).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        bias = self._biases(points, height, width).to(query.dtype)
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return self.output(mixed.transpose(1, 2).reshape(batch, height, width, channels))

    def places(self, query: Tensor) -> Tensor:
        """Returns x and y of the sampled places [batch, n, groups, 2] in pixels, for queries of the maps' shape."""
        height, width = query.shape[1:3]
        grouped = query.unflatten(-1, (self.groups, -1)).permute(0, 3, 4, 1, 2).flatten(0, 1)
        local = self.local(grouped).permute(0, 2, 3, 1)
        offsets = self.offset(functional.gelu(self.norm(local)))
        offsets = offsets.to(torch.promote_types(offsets.dtype, torch.float32))
        rows, columns = offsets.shape[1:3]
        size = extent(height, width, query.device, offsets.dtype)
        spread = size / extent(rows, columns, query.device, offsets.dtype)
        grid = (cell_centres(rows, columns, query.device) + 0.5) * spread - 0.5
        points = torch.minimum((grid + offsets.flatten(1, 2)).clamp(min=0), size - 1)
        return points.unflatten(0, (-1, self.groups)).transpose(1, 2)

    def _biases(self, points: Tensor, height: int, width: int) -> Tensor:
        """Returns the bias [batch, heads, height * width, n] of each query and sampled place."""
        batch = points.shape[0]
        places = cell_centres(height, width, points.device)[None, None, :, None]
        # Distances from -1 to 1, the distance of the borders of the map.
        apart = (points.transpose(1, 2)[:, :, None] - places) / extent(height, width, points.device, points.dtype)
        tables = self.bias.to(points.dtype).unflatten(0, (self.groups, -1)).repeat(batch, 1, 1, 1)
        found = functional.grid_sample(tables, apart.flatten(0, 1), align_corners=True)
        return found.unflatten(0, (batch, self.groups)).flatten(1, 2)


class MultiScaleDeformableAttention(nn.Module):
    """Each query reads, per head, `points` places of each level around its reference box, weighted by a softmax.

    Offsets are in units of size / (2 points) of the reference, so an offset of `points` reaches its border. They and
    the weights depend on the query linearly (Zhu et al. 2021, arXiv 2010.04159, equation 3 and appendix A.4). They
    begin in directions that differ between heads, at lengths that grow with the point, with nearly equal weights.

    Args:
        width: channels of queries and maps; a multiple of `heads`.
        points: number of points per head and level.
    """

    def __init__(self, width: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.value = nn.Linear(width, width)
        self.offset = nn.Linear(width, heads * levels * points * 2)
        self.weight = nn.Linear(width, heads * levels * points)
        self.output = nn.Linear(width, width)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Sets the layers of offsets and weights; those of values and outputs draw themselves."""
        angles = torch.arange(self.heads) * (2 * math.pi / self.heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
        directions /= directions.abs().amax(-1, keepdim=True)
        lengths = torch.arange(1, self.points + 1)
        bias = directions[:, None, None] * lengths[:, None]
        self.offset.bias.copy_(bias.expand(-1, self.levels, -1, -1).flatten())
        # Not 0, since queries would then have no gradient at first.
        for linear in (self.offset, self.weight):
            nn.init.normal_(linear.weight, std=0.01)
        nn.init.zeros_(self.weight.bias)

    def forward(self, queries: Tensor, references: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """Returns [batch, Q, width].

        Args:
            queries: [batch, Q, width].
            references: boxes [batch, Q, 4], centre and size in shares of the maps.
            maps: of each level [batch, height, width, width of queries].
        """
        shape = (self.heads, self.levels * self.points)
        offsets = self.offset(queries).unflatten(-1, (*shape, 2)).to(references.dtype)
        weights = self.weight(queries).unflatten(-1, shape).to(references.dtype).softmax(-1)
        centres, sizes = references[:, :, None, None, :2], references[:, :, None, None, 2:]
        places = centres + offsets * sizes / (2 * self.points)
        values = [self.value(each).unflatten(-1, (self.heads, -1)) for each in maps]
        return self.output(multi_scale_samples(values, places, weights).flatten(2))


def multi_scale_samples(maps: Sequence[Tensor], places: Tensor, weights: Tensor) -> Tensor:
    """Returns the weighted sums of the values at places of several levels, [batch, Q, heads, d].

    Args:
        maps: of each level [batch, height, width, heads, d].
        places: x and y [batch, Q, heads, levels * points, 2] in shares of the maps, level by level.
        weights: [batch, Q, heads, levels * points].
    """
    sums = []
    for each, at, weight in zip(maps, places.chunk(len(maps), 3), weights.chunk(len(maps), 3), strict=True):
        points = at * extent(*each.shape[1:3], at.device, at.dtype) - 0.5
        sums.append(weighted_samples(each, points, weight))
    return torch.stack(sums).sum(0)
