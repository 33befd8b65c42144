"""The encoder, whose tokens read all levels, and the proposals of boxes from its tokens."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bbnet.models.hybrid_detector.boxes import logit
from bbnet.models.hybrid_detector.layers import FeedForward
from bbnet.models.hybrid_detector.outputs import Predictions, Rated, Unrated
from bbnet.models.operators.deformable_attention import MultiScaleDeformableAttention
from bbnet.models.operators.sampling import cell_centres, extent
from bbnet.models.settings.hybrid_detector import Sizes

ANCHOR = 4  # height and width of the reference box of a token, in pixels of its map
PRIOR = 0.01  # score of every class at first


class Heads(nn.Module):
    """Predicts class logits, a change of a reference box and, with the flag, the logit of the box's IoU."""

    def __init__(self, width: int, classes: int, rated: bool) -> None:
        super().__init__()
        self.classes = nn.Linear(width, classes)
        self.box = FeedForward(width, width, 4)
        self.iou = nn.Linear(width, 1) if rated else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Sets scores near the prior, and boxes near their references; the other layers draw themselves."""
        nn.init.normal_(self.classes.weight, std=0.05)
        nn.init.constant_(self.classes.bias, float(torch.logit(torch.tensor(PRIOR))))
        nn.init.normal_(self.box.contract.weight, std=0.01)
        nn.init.zeros_(self.box.contract.bias)

    def forward(self, states: Tensor, references: Tensor) -> Predictions:
        """Returns the predictions for states [batch, Q, width] and their reference boxes [batch, Q, 4]."""
        logits, boxes = self.classes(states), self.boxes(states, references)
        return Unrated(logits, boxes) if self.iou is None else Rated(logits, boxes, self.iou(states).squeeze(-1))

    def boxes(self, states: Tensor, references: Tensor) -> Tensor:
        """Returns sigmoid(change + logit(reference)), in the dtype of the references."""
        return (self.box(states).to(references.dtype) + logit(references)).sigmoid()


class EncoderLayer(nn.Module):
    """Deformable attention of some levels' tokens to the maps of all, and a feed-forward layer, each after a norm."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.attention = MultiScaleDeformableAttention(sizes.width, sizes.heads, sizes.levels, sizes.points)
        self.norm1 = nn.LayerNorm(sizes.width)
        self.ffn = FeedForward(sizes.width, sizes.hidden, sizes.width, sizes.gated)
        self.norm2 = nn.LayerNorm(sizes.width)

    def forward(self, tokens: Tensor, references: Tensor, maps: Sequence[Tensor]) -> Tensor:
        tokens = tokens + self.attention(self.norm1(tokens), references, maps)
        return tokens + self.ffn(self.norm2(tokens))


class Encoder(nn.Module):
    """Layers that update the tokens of the coarsest `encoder_levels` levels."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.levels = sizes.encoder_levels
        self.layers = nn.ModuleList(EncoderLayer(sizes) for _ in range(sizes.encoder_layers))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps the maps of all levels, finest first, to maps of the same sizes."""
        kept, updated = list(maps[: -self.levels]), list(maps[-self.levels :])
        shapes = [each.shape[1:3] for each in updated]
        references = anchors(updated)
        for layer in self.layers:
            tokens = layer(flattened(updated), references, [*kept, *updated])
            parts = tokens.split([height * width for height, width in shapes], dim=1)
            updated = [part.unflatten(1, shape) for part, shape in zip(parts, shapes, strict=True)]
        return [*kept, *updated]


class Proposed(NamedTuple):
    """The Q best proposals, `states` [batch, Q, width] and `boxes` [batch, Q, 4]; in training mode also `all`."""

    states: Tensor
    boxes: Tensor
    all: Predictions | None


class Proposals(nn.Module):
    """Scores a box at every token, and returns the best ones, which may be fewer than `queries` on small images."""

    def __init__(self, width: int, classes: int, queries: int, rated: bool) -> None:
        super().__init__()
        self.queries = queries
        self.project = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.heads = Heads(width, classes, rated)

    def forward(self, maps: Sequence[Tensor]) -> Proposed:
        """Returns the proposals from the maps of all levels. No gradients pass to states and boxes of the best ones."""
        states = self.norm(self.project(flattened(maps)))
        references = anchors(maps).expand(len(states), -1, -1)
        found = self.heads(states, references) if self.training else None
        logits = self.heads.classes(states) if found is None else found.logits
        best = logits.amax(-1).topk(min(self.queries, states.shape[1]), dim=1).indices[..., None]
        boxes = references if found is None else found.boxes
        states, boxes = (each.detach().gather(1, best.expand(-1, -1, each.shape[2])) for each in (states, boxes))
        return Proposed(states, self.heads.boxes(states, boxes) if found is None else boxes, found)


def flattened(maps: Sequence[Tensor]) -> Tensor:
    """Returns the tokens of maps, [batch, sum of height * width, channels]."""
    return torch.cat([each.flatten(1, 2) for each in maps], dim=1)


def anchors(maps: Sequence[Tensor]) -> Tensor:
    """Returns the reference box of each token [1, tokens, 4]: 4 x 4 pixels of its map around its centre."""
    device = maps[0].device
    return torch.cat([_anchors(*each.shape[1:3], device) for each in maps])[None]


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _anchors(height: int, width: int, device: torch.device) -> Tensor:
    size = extent(height, width, device)
    centres = (cell_centres(height, width, device) + 0.5) / size
    return torch.cat([centres, (ANCHOR / size).clamp(max=1.0).expand(len(centres), -1)], dim=-1)
