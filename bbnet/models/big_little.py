"""Big-Little ResNets (Chen et al., ICLR 2019, arXiv 1807.03848), with the structure of the authors' code; their slabs.

Every stage but the last has two branches that read the same maps. The big one has the full width, all bottlenecks but
one, and half the resolution; the little one has the full resolution, 1/alpha of the width and about 1/beta of the
bottlenecks. Both are brought to one shape and added, and one more bottleneck, the fusion, follows.
"""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from bbnet.models.settings.big_little import check_stages, little_blocks, narrowed
from bbnet.models.settings.bottleneck_resnet import EXPANSION, Stage
from bbnet.models.slabs import Convolution, slabs_of_blocks
from bbnet.sparsity.slab import Slab


class Bottleneck(nn.Module):
    """1x1 reduce, 3x3 with the stride, 1x1 expand, each with a batch norm, of which the last starts with factors of 0.

    The shortcut averages 3x3 pixels where the stride is 2 (zeros of the padding count), and then has a 1x1 convolution
    and a batch norm where the number of channels changes.

    Args:
        activated: whether a ReLU follows the sum with the shortcut.
    """

    def __init__(self, inputs: int, width: int, stride: int, activated: bool = True) -> None:
        super().__init__()
        outputs = EXPANSION * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.activated = activated
        self.pool = nn.AvgPool2d(3, stride, padding=1) if stride > 1 else nn.Identity()
        self.downsample = nn.Identity()
        if inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, maps: Tensor) -> Tensor:
        own = self.relu(self.bn1(self.conv1(maps)))
        own = self.relu(self.bn2(self.conv2(own)))
        own = self.bn3(self.conv3(own))
        own += self.downsample(self.pool(maps))
        return self.relu(own) if self.activated else own


def _stack(inputs: int, width: int, blocks: int, stride: int, activated: bool = True) -> nn.Sequential:
    """Returns bottlenecks of which the first has the stride. `activated` says whether a ReLU ends the last one."""
    return nn.Sequential(
        *(
            Bottleneck(
                EXPANSION * width if block else inputs,
                width,
                1 if block else stride,
                activated=activated or block < blocks - 1,
            )
            for block in range(blocks)
        )
    )


class BigLittleStage(nn.Module):
    """A big branch of half the resolution and a little branch; ReLU of their sum; then a bottleneck with the stride.

    The big branch does not end with a ReLU, and is brought to the resolution of the little one by nearest
    interpolation, whatever the size of the maps. A 1x1 convolution and a batch norm expand the little branch.
    """

    def __init__(self, inputs: int, width: int, blocks: int, alpha: float, beta: float, stride: int) -> None:
        super().__init__()
        outputs, little = EXPANSION * width, narrowed(width, alpha)
        self.big = _stack(inputs, width, blocks - 1, stride=2, activated=False)
        self.little = _stack(inputs, little, little_blocks(blocks, beta), stride=1)
        self.expand = nn.Sequential(nn.Conv2d(EXPANSION * little, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.relu = nn.ReLU(inplace=True)
        self.fusion = Bottleneck(outputs, width, stride)

    def forward(self, maps: Tensor) -> Tensor:
        little = self.expand(self.little(maps))
        big = functional.interpolate(self.big(maps), size=little.shape[-2:], mode="nearest")
        return self.fusion(self.relu(big + little))


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    """Returns a convolution that keeps or divides the resolution, and its batch norm."""
    return [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs)]


class ImageNetStem(nn.Module):
    """A 7x7 convolution of stride 2, then two branches of stride 2 that are added, and a 1x1 convolution."""

    def __init__(self, channels: int, alpha: float) -> None:
        super().__init__()
        little = narrowed(channels, alpha)
        self.first = nn.Sequential(*_convolution(3, channels, 7, 2), nn.ReLU(inplace=True))
        self.big = nn.Sequential(*_convolution(channels, channels, 3, 2))
        self.little = nn.Sequential(
            *_convolution(channels, little, 3),
            nn.ReLU(inplace=True),
            *_convolution(little, little, 3, 2),
            nn.ReLU(inplace=True),
            *_convolution(little, channels, 1),
        )
        self.relu = nn.ReLU(inplace=True)
        self.merge = nn.Sequential(*_convolution(channels, channels, 1), nn.ReLU(inplace=True))

    def forward(self, images: Tensor) -> Tensor:
        maps = self.first(images)
        return self.merge(self.relu(self.big(maps) + self.little(maps)))


class BigLittleResNet(nn.Module):
    """A Big-Little ResNet for images of any height and width, also odd ones.

    The fusion of every stage with branches halves the maps, except that of the last of them, because the last stage of
    the network does so. Weights are drawn as the authors do: convolutions from normal distributions of He et al.
    (2015), by fan-out, and the factors of the last norm of every bottleneck are 0, so that it begins as its shortcut.

    Args:
        stages: width and number L of bottlenecks of each stage, which outputs 4 times as many channels as its width.
            All but the last have branches: L - 1 bottlenecks in the big one, max(1, floor(L / beta) - 1) in the little
            one, and the fusion.
        alpha: divisor of the width of little branches.
        beta: divisor of their number of bottlenecks.
        stem: `imagenet`: a 7x7 convolution of stride 2 and two branches of stride 2; `small`: a 3x3 convolution of
            stride 2, for small images.
        classes: number of classes of the linear layer `fc`; without it the network returns features.
    Raises: ValueError if a stage with branches has a single bottleneck, or if there is only one stage.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        alpha: float,
        beta: float,
        stem: Literal["imagenet", "small"] = "imagenet",
        classes: int | None = None,
    ) -> None:
        super().__init__()
        check_stages(stages)
        inputs = stages[0][0]
        self.stem = (
            ImageNetStem(inputs, alpha)
            if stem == "imagenet"
            else nn.Sequential(*_convolution(3, inputs, 3, 2), nn.ReLU(inplace=True))
        )
        self.stages = [f"stage{number}" for number in range(1, len(stages) + 1)]
        for name, (width, blocks) in zip(self.stages[:-1], stages[:-1], strict=True):
            stride = 1 if name == self.stages[-2] else 2
            self.add_module(name, BigLittleStage(inputs, width, blocks, alpha, beta, stride))
            inputs = EXPANSION * width
        width, blocks = stages[-1]
        self.add_module(self.stages[-1], _stack(inputs, width, blocks, stride=2))
        self.features = EXPANSION * width
        self.fc = nn.Identity() if classes is None else nn.Linear(self.features, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, Bottleneck):
                nn.init.zeros_(module.bn3.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images [batch, 3, height, width] to logits [batch, classes], or to pooled features [batch, features]."""
        maps = self.stem(images)
        for stage in self.stages:
            maps = self.get_submodule(stage)(maps)
        return self.fc(maps.mean((2, 3)))


def slabs(
    network: BigLittleResNet, which: Literal["paper", "wide"], side: Literal["in", "out", "both"], prefix: str = ""
) -> list[Slab]:
    """Returns the slabs of the 1x1 convolutions that may be sparsified, which are the same on all sides.

    `paper` selects the reduce convolution of every bottleneck of the big and little branches, the fusions and the last
    stage; `wide` all 1x1 convolutions. Names tell the branch (`branch_of`), such as `stage1.big.0.conv1`. Sides are
    those of `slabs_of_blocks`. Units are observed after their own ReLU: those of expand and shortcut convolutions at
    the output of the bottleneck or, where that has no ReLU, after the sum of the branches; those that a shortcut reads
    through a pool before it.

    Args:
        prefix: what stands before the names of the network's modules in those of the whole model, such as `backbone.`.
    """
    stem, wide = f"{prefix}stem", which == "wide"
    blocks: list[list[Convolution]] = []

    def add(name: str, bottlenecks: nn.Sequential, before: str, end: str | None = None) -> str:
        """Adds the bottlenecks of a stack, whose units are at `end` or at its last bottleneck; returns which."""
        last = str(len(bottlenecks) - 1)
        for number, block in bottlenecks.named_children():
            after = end if end is not None and number == last else f"{name}.{number}"
            blocks.append(_of_bottleneck(f"{name}.{number}", block, before, after, wide))
            before = after
        return before

    if isinstance(network.stem, ImageNetStem):
        before = f"{stem}.merge.1"
        if wide:
            blocks.append([Convolution(f"{stem}.little.6", f"{stem}.relu", f"{stem}.little.4")])
            blocks.append([Convolution(f"{stem}.merge.0", before, f"{stem}.relu")])
    else:
        before = f"{stem}.1"
    for stage in network.stages[:-1]:
        module, name = network.get_submodule(stage), f"{prefix}{stage}"
        merged, fusion = f"{name}.relu", f"{name}.fusion"
        add(f"{name}.big", module.big, before, merged)
        after_little = add(f"{name}.little", module.little, before)
        if wide:
            blocks.append([Convolution(f"{name}.expand.0", merged, after_little)])
        blocks.append(_of_bottleneck(fusion, module.fusion, merged, fusion, wide))
        before = fusion
    add(f"{prefix}{network.stages[-1]}", network.get_submodule(network.stages[-1]), before)
    return slabs_of_blocks(blocks, side)


def _of_bottleneck(name: str, block: Bottleneck, before: str, after: str, wide: bool) -> list[Convolution]:
    """Returns the 1x1 convolutions of a bottleneck that reads the units `before`, and outputs the units `after`."""
    chosen = [Convolution(f"{name}.conv1", f"{name}.bn1", before)]
    if wide:
        chosen.append(Convolution(f"{name}.conv3", after, f"{name}.bn2"))
    if wide and not isinstance(block.downsample, nn.Identity):
        chosen.append(Convolution(f"{name}.downsample.0", after, before))
    return chosen
