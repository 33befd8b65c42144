"""The decoder: queries see each other, read the maps around their boxes, and refine these in every layer."""

from collections.abc import Sequence

from torch import Tensor, nn

from bbnet.models.hybrid_detector.encoder import Heads
from bbnet.models.hybrid_detector.layers import FeedForward, SelfAttention
from bbnet.models.hybrid_detector.outputs import Predictions
from bbnet.models.operators.deformable_attention import MultiScaleDeformableAttention
from bbnet.models.settings.hybrid_detector import Sizes


class DecoderLayer(nn.Module):
    """Self-attention, deformable attention to the maps, and a feed-forward layer, each after a norm."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.attention = SelfAttention(sizes.width, sizes.heads)
        self.norm1 = nn.LayerNorm(sizes.width)
        self.reading = MultiScaleDeformableAttention(sizes.width, sizes.heads, sizes.levels, sizes.points)
        self.norm2 = nn.LayerNorm(sizes.width)
        self.ffn = FeedForward(sizes.width, sizes.hidden, sizes.width, sizes.gated)
        self.norm3 = nn.LayerNorm(sizes.width)

    def forward(
        self, states: Tensor, positions: Tensor, references: Tensor, maps: Sequence[Tensor], allowed: Tensor | None
    ) -> Tensor:
        states = states + self.attention(self.norm1(states), positions, allowed)
        states = states + self.reading(self.norm2(states) + positions, references, maps)
        return states + self.ffn(self.norm3(states))


class Decoder(nn.Module):
    """The layers and, after a norm, the heads of each, whose boxes are the references of the next one."""

    def __init__(self, sizes: Sizes, classes: int, rated: bool) -> None:
        super().__init__()
        self.position = FeedForward(4, 2 * sizes.width, sizes.width)
        self.norm = nn.LayerNorm(sizes.width)
        self.layers = nn.ModuleList(DecoderLayer(sizes) for _ in range(sizes.decoder_layers))
        self.heads = nn.ModuleList(Heads(sizes.width, classes, rated) for _ in range(sizes.decoder_layers))

    def reset_parameters(self) -> None:
        """Sets the layer that embeds boxes, whose inputs are few and small; the others draw themselves."""
        nn.init.normal_(self.position.expand.weight, std=0.5)

    def forward(
        self, states: Tensor, references: Tensor, maps: Sequence[Tensor], allowed: Tensor | None
    ) -> list[Predictions]:
        """Returns the predictions of all layers in training mode, otherwise of the last.

        Gradients do not pass from a layer to the references that it got from the one before.

        Args:
            states: [batch, Q, width].
            references: boxes [batch, Q, 4] without gradient.
            maps: of each level [batch, height, width, width of states].
            allowed: bool [batch, 1, Q, Q], which query sees which; by default all see all.
        """
        found: list[Predictions] = []
        last = len(self.layers) - 1
        for number, (layer, heads) in enumerate(zip(self.layers, self.heads, strict=True)):
            states = layer(states, self.position(references), references, maps, allowed)
            if self.training or number == last:
                found.append(heads(self.norm(states), references))
                references = found[-1].boxes.detach()
            else:
                references = heads.boxes(self.norm(states), references)
        return found
