"""Bottleneck ResNets (He et al. 2016) with a classifier on the pooled features, and their slabs."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from bbnet.sparsity.slab import Slab
from bbnet.tasks.face.settings import EXPANSION, ResNet

IMAGENET_MEAN, IMAGENET_SD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


class Bottleneck(nn.Module):
    """A bottleneck block (1x1 reduce, 3x3, 1x1 expand), with the parameter names and structure of torchvision's."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = EXPANSION * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, maps: Tensor) -> Tensor:
        own = self.relu(self.bn1(self.conv1(maps)))
        own = self.relu(self.bn2(self.conv2(own)))
        own = self.bn3(self.conv3(own))
        own += maps if self.downsample is None else self.downsample(maps)
        return self.relu(own)


class SmallResNet(nn.Module):
    """A bottleneck ResNet for small images: a 3x3 convolution of stride 2; stages after the first halve the size."""

    def __init__(self, stages: list[tuple[int, int]]) -> None:
        super().__init__()
        inputs = stages[0][0]
        self.conv1 = nn.Conv2d(3, inputs, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu = nn.ReLU(inplace=True)
        self.stages: list[str] = []
        for number, (width, blocks) in enumerate(stages, start=1):
            layers = []
            for block in range(blocks):
                layers.append(Bottleneck(inputs, width, 2 if number > 1 and block == 0 else 1))
                inputs = EXPANSION * width
            self.stages.append(f"layer{number}")
            self.add_module(f"layer{number}", nn.Sequential(*layers))
        self.features = inputs
        # As torchvision does (He et al. 2015, by fan-out).
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Maps images [batch, 3, height, width] to pooled features [batch, features]."""
        maps = self.relu(self.bn1(self.conv1(images)))
        for stage in self.stages:
            maps = self.get_submodule(stage)(maps)
        return maps.mean((2, 3))


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
        if settings.weights is not None:
            mean, sd = IMAGENET_MEAN, IMAGENET_SD
        self.register_buffer("mean", torch.tensor(mean).reshape(-1, 1, 1))
        self.register_buffer("sd", torch.tensor(sd).reshape(-1, 1, 1))
        if settings.architecture == "small":
            self.backbone: nn.Module = SmallResNet(settings.stages())
            features = self.backbone.features
        else:
            from torchvision.models import resnet101  # imported here because it takes seconds

            self.backbone = resnet101()
            features = self.backbone.fc.in_features
            self.backbone.fc = nn.Identity()
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
    """Returns the slabs of the 1x1 convolutions that may be sparsified, which are the same on all sides.

    `paper` selects the reduce convolution of every bottleneck, `wide` also the expand and the shortcut convolutions. On
    side `in` the units are the output channels of a convolution (for expand and shortcut convolutions, the outputs of
    the bottleneck); on side `out` they are its input channels. On side `both` the first, third, ... bottleneck uses
    side `in`, the others side `out`.
    """
    chosen = []
    before = "backbone.bn1"
    blocks = [name for name, module in model.named_modules() if hasattr(module, "conv3")]
    for number, block in enumerate(blocks):
        own_side = side if side != "both" else ("in", "out")[number % 2]
        reduce = [(f"{block}.conv1", f"{block}.bn1", before)]
        rest = [(f"{block}.conv3", block, f"{block}.bn2")]
        if model.get_submodule(block).downsample is not None:
            rest.append((f"{block}.downsample.0", block, before))
        for name, outputs, inputs in reduce + (rest if which == "wide" else []):
            chosen.append(Slab(name, own_side, outputs if own_side == "in" else inputs, normalised=own_side == "in"))
        before = block
    return chosen
