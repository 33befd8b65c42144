"""Bottleneck ResNets (He et al. 2016), with the structure and parameter names of torchvision's, and their slabs."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from bbnet.models.settings.bottleneck_resnet import EXPANSION, Stage
from bbnet.models.slabs import Convolution, slabs_of_blocks
from bbnet.sparsity.slab import Slab


class Bottleneck(nn.Module):
    """A bottleneck block: 1x1 reduce, 3x3 with the stride, 1x1 expand."""

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


class BottleneckResNet(nn.Module):
    """A bottleneck ResNet, whose stages after the first halve the size of the maps.

    Args:
        stages: width and number of bottlenecks of each stage, which outputs 4 times as many channels as its width.
        stem: `imagenet`: a 7x7 convolution of stride 2, then max pooling of stride 2; `small`: a 3x3 convolution of
            stride 2, for small images.
        classes: number of classes of the linear layer `fc`; without it the network returns features.
    """

    def __init__(
        self, stages: Sequence[Stage], stem: Literal["imagenet", "small"] = "imagenet", classes: int | None = None
    ) -> None:
        super().__init__()
        inputs = stages[0][0]
        kernel = 7 if stem == "imagenet" else 3
        self.conv1 = nn.Conv2d(3, inputs, kernel, stride=2, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if stem == "imagenet" else nn.Identity()
        self.stages: list[str] = []
        for number, (width, blocks) in enumerate(stages, start=1):
            layers = []
            for block in range(blocks):
                layers.append(Bottleneck(inputs, width, 2 if number > 1 and block == 0 else 1))
                inputs = EXPANSION * width
            self.stages.append(f"layer{number}")
            self.add_module(f"layer{number}", nn.Sequential(*layers))
        self.features = inputs
        self.fc = nn.Identity() if classes is None else nn.Linear(inputs, classes)
        # As torchvision does (He et al. 2015, by fan-out).
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Maps images [batch, 3, height, width] to logits [batch, classes], or to pooled features [batch, features]."""
        maps = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for stage in self.stages:
            maps = self.get_submodule(stage)(maps)
        return self.fc(maps.mean((2, 3)))


def slabs(
    network: nn.Module, which: Literal["paper", "wide"], side: Literal["in", "out", "both"], prefix: str = ""
) -> list[Slab]:
    """Returns the slabs of the 1x1 convolutions that may be sparsified, which are the same on all sides.

    `paper` selects the reduce convolution of every bottleneck, `wide` also the expand and the shortcut convolutions.
    Sides are those of `slabs_of_blocks`; the units of expand and shortcut convolutions are the outputs of the
    bottleneck.

    Args:
        prefix: what stands before the names of the network's modules in those of the whole model, such as `backbone.`.
    """
    blocks = []
    before = f"{prefix}bn1"
    for name, block in network.named_modules(prefix=prefix.removesuffix(".")):
        if not isinstance(block, Bottleneck):
            continue
        chosen = [Convolution(f"{name}.conv1", f"{name}.bn1", before)]
        if which == "wide":
            chosen.append(Convolution(f"{name}.conv3", name, f"{name}.bn2"))
        if which == "wide" and block.downsample is not None:
            chosen.append(Convolution(f"{name}.downsample.0", name, before))
        blocks.append(chosen)
        before = name
    return slabs_of_blocks(blocks, side)
