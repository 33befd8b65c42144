"""The networks that classify images, and their slabs."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bbnet.models import big_little, bottleneck_resnet, cifar_resnet
from bbnet.models.big_little import BigLittleResNet
from bbnet.models.bottleneck_resnet import BottleneckResNet
from bbnet.models.cifar_resnet import CifarResNet
from bbnet.models.hybrid_detector import classifier, detector
from bbnet.models.hybrid_detector.classifier import ClassifyingBackbone
from bbnet.sparsity.slab import Slab
from bbnet.tasks.classification import settings as kinds


class Classifier(nn.Module):
    """A `backbone` whose features a linear `head` classifies.

    Args:
        mean, sd: mean and standard deviation of the training pixels, 0 to 255, per channel.
    """

    def __init__(self, settings: kinds.Network, classes: int, mean: Sequence[float], sd: Sequence[float]) -> None:
        super().__init__()
        self.settings = settings
        self.register_buffer("mean", torch.tensor(mean).reshape(-1, 1, 1))
        self.register_buffer("sd", torch.tensor(sd).reshape(-1, 1, 1))
        if isinstance(settings, kinds.CifarResNet):
            self.backbone: nn.Module = CifarResNet(settings.depth, classes, settings.width, settings.stem_stride)
        elif isinstance(settings, kinds.HybridBackbone):
            self.backbone = ClassifyingBackbone(settings, classes)
        elif isinstance(settings, kinds.BigLittleNetwork):
            sizes = settings.stages(), settings.alpha, settings.beta
            self.backbone = BigLittleResNet(*sizes, settings.stem, classes)
        else:
            stem = "small" if isinstance(settings, kinds.SmallResNet) else "imagenet"
            self.backbone = BottleneckResNet(settings.stages(), stem, classes)
        self.head: nn.Module = self.backbone.fc
        self.backbone.fc = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """Maps images [batch, 3, height, width] of pixels 0 to 255 to logits [batch, classes]."""
        return self.head(self.backbone((images - self.mean) / self.sd))


def slabs(model: Classifier, which: str, side: str) -> list[Slab]:
    """Returns the slabs of the backbone; see `slabs` of its module in `bbnet.models`."""
    if isinstance(model.backbone, ClassifyingBackbone):
        return classifier.slabs(model.backbone, kinds.SLABS_OF_BACKBONE[which], side, "backbone.")
    modules = {CifarResNet: cifar_resnet, BigLittleResNet: big_little, BottleneckResNet: bottleneck_resnet}
    return modules[type(model.backbone)].slabs(model.backbone, which, side, "backbone.")


def without_decay(model: Classifier) -> list[nn.Parameter]:
    """Returns the parameters of the hybrid backbone that must not decay; of other networks the decay is that of all."""
    return detector.without_decay(model) if isinstance(model.backbone, ClassifyingBackbone) else []
