"""Bottleneck and Big-Little ResNets with a classifier on the pooled features, and their slabs."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from bbnet.models import big_little, bottleneck_resnet
from bbnet.models.big_little import BigLittleResNet
from bbnet.models.bottleneck_resnet import BottleneckResNet
from bbnet.sparsity.slab import Slab
from bbnet.tasks.face.settings import ResNet, Weights

IMAGENET_MEAN, IMAGENET_SD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


class CosineHead(nn.Module):
    """ArcFace (Deng et al. 2019): logits are s cos(angle to the class), with m added to that of the true class."""

    def __init__(self, features: int, classes: int, scale: float, margin: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(classes, features))
        nn.init.normal_(self.weight, std=0.01)
        self.scale, self.margin = scale, margin

    def forward(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        """Maps features [batch, features] to logits [batch, classes], with the margin if `labels` [batch] are given."""
        # In float32, because the angle of two close vectors depends on the last digits of their cosine.
        with torch.autocast(features.device.type, enabled=False):
            cosines = functional.linear(functional.normalize(features.float()), functional.normalize(self.weight))
        if labels is None:
            return self.scale * cosines
        own = functional.one_hot(labels, cosines.shape[1]).bool()
        angles = torch.acos(cosines.clamp(-1 + 1e-7, 1 - 1e-7))
        # Clamped to pi, because the cosine increases again for larger angles.
        return self.scale * torch.where(own, torch.cos((angles + self.margin).clamp(max=torch.pi)), cosines)


class FaceNetwork(nn.Module):
    """A backbone and a head that classifies identities. Pretrained ones use ImageNet's `mean` and `sd` of pixels."""

    def __init__(self, settings: ResNet, classes: int, mean: list[float], sd: list[float]) -> None:
        super().__init__()
        self.settings = settings
        if isinstance(settings.weights, Weights):
            mean, sd = IMAGENET_MEAN, IMAGENET_SD
        self.register_buffer("mean", torch.tensor(mean).reshape(-1, 1, 1))
        self.register_buffer("sd", torch.tensor(sd).reshape(-1, 1, 1))
        if settings.branched:
            sizes = settings.stages(), settings.alpha, settings.beta
            self.backbone: nn.Module = BigLittleResNet(*sizes, settings.stem)
        elif settings.small:
            self.backbone = BottleneckResNet(settings.stages(), "small")
        else:
            # With the layer of 1,000 classes, because its initial weights are drawn before those of the convolutions.
            self.backbone = BottleneckResNet(settings.stages(), "imagenet", classes=1000)
            self.backbone.fc = nn.Identity()
        features = self.backbone.features
        if settings.head == "linear":
            self.head: nn.Module = nn.Linear(features, classes)
        else:
            self.head = CosineHead(features, classes, settings.arcface_scale, settings.arcface_margin)

    def features(self, images: Tensor) -> Tensor:
        """Maps images [batch, 3, height, width] of pixels 0 to 255 to pooled features [batch, features]."""
        return self.backbone((images - self.mean) / self.sd)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Maps images [batch, 3, height, width] of pixels 0 to 255 to logits [batch, classes].

        Args:
            labels: [batch], the true classes, to which an ArcFace head applies its margin.
        """
        features = self.features(images)
        return self.head(features) if labels is None else self.head(features, labels)


def load_pretrained(model: FaceNetwork, path: Path) -> None:
    """Loads weights of torchvision's ResNet-101 into the backbone, except its classifier of 1,000 classes.

    Raises: ValueError naming the file if it does not contain such weights.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
        model.backbone.load_state_dict(state)
    except Exception as error:
        raise ValueError(f"{path}: contains no weights of ResNet-101 ({str(error).splitlines()[0]})") from None


def slabs(model: FaceNetwork, which: str, side: str) -> list[Slab]:
    """Returns the slabs of the backbone's 1x1 convolutions; see `slabs` of its module in `bbnet.models`."""
    module = big_little if model.settings.branched else bottleneck_resnet
    return module.slabs(model.backbone, which, side, "backbone.")
