"""The backbone of the hybrid detector as a classifier, to train it before it detects."""

from typing import Literal

from torch import Tensor, nn

from bbnet.models.hybrid_detector.backbone import Backbone
from bbnet.models.hybrid_detector.detector import slabs_of_part
from bbnet.models.hybrid_detector.layers import draw_by_name, new_seed
from bbnet.models.settings import hybrid_detector as kinds
from bbnet.sparsity.slab import Slab


class ClassifyingBackbone(Backbone):
    """The backbone, then the mean of its coarsest maps over all places, a norm, and a linear layer `fc`.

    Args:
        settings: sizes and flags of the detector, whose backbone has modules of the same names.
        classes: number of classes.
    """

    def __init__(self, settings: kinds.HybridDetector, classes: int) -> None:
        seed = new_seed()
        super().__init__(settings)
        width = settings.size.stages[-1].width
        self.pooled_norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, classes)
        draw_by_name(self, seed)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images [batch, 3, height, width], normalised, to logits [batch, classes]."""
        return self.fc(self.pooled_norm(super().forward(images)[-1].mean((1, 2))))


def slabs(
    network: ClassifyingBackbone, which: kinds.Which, side: Literal["in", "out", "both"], prefix: str
) -> list[Slab]:
    """Returns the slabs of the backbone; see `detector.slabs`."""
    return [slab for slab in slabs_of_part(network, which, prefix) if side in (slab.side, "both")]
