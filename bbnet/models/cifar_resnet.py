"""The ResNets for CIFAR of He et al. (2016), section 4.2: ResNet-20, 32, 44, 56 and 110; and their slabs."""

from itertools import pairwise
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from bbnet.models.settings.cifar_resnet import blocks_per_stage, widths
from bbnet.models.slabs import Convolution, slabs_of_blocks
from bbnet.sparsity.slab import Slab


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, the first with the stride, and a shortcut without weights (option A).

    Where the size changes, the shortcut takes every `stride`-th row and column and adds channels that are 0, half of
    them before and half after the others.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.stride = stride
        before = (outputs - inputs) // 2
        self.added = (before, outputs - inputs - before)

    def forward(self, maps: Tensor) -> Tensor:
        own = self.relu(self.bn1(self.conv1(maps)))
        own = self.bn2(self.conv2(own))
        shortcut = maps
        if self.stride > 1 or any(self.added):
            shortcut = functional.pad(maps[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *self.added))
        own += shortcut
        return self.relu(own)


class CifarResNet(nn.Module):
    """A 3x3 convolution, three stages of basic blocks of which the later two halve the maps, and a linear layer `fc`.

    Weights of convolutions and of the linear layer are drawn from normal distributions of He et al. (2015), by fan-in.

    Args:
        depth: 6n + 2 for n blocks per stage.
        width: channels of the first stage; the later ones have two and four times as many.
        stem_stride: stride of the first convolution, 1 in the paper.
    """

    def __init__(self, depth: int, classes: int, width: int = 16, stem_stride: int = 1) -> None:
        super().__init__()
        blocks = blocks_per_stage(depth)
        self.conv1 = nn.Conv2d(3, width, 3, stem_stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        stages = []
        for number, (inputs, outputs) in enumerate(pairwise([width, *widths(width)])):
            first = BasicBlock(inputs, outputs, stride=1 if number == 0 else 2)
            stages.append(nn.Sequential(first, *(BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1))))
        self.layer1, self.layer2, self.layer3 = stages
        self.fc = nn.Linear(widths(width)[-1], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images [batch, 3, height, width] to logits [batch, classes]."""
        maps = self.relu(self.bn1(self.conv1(images)))
        maps = self.layer3(self.layer2(self.layer1(maps)))
        return self.fc(maps.mean((2, 3)))


def slabs(
    network: nn.Module, which: Literal["paper", "wide"], side: Literal["in", "out", "both"], prefix: str = ""
) -> list[Slab]:
    """Returns the slabs of the 3x3 convolutions that may be sparsified, which are the same on all sides.

    `paper` selects the first convolution of every block, `wide` also the second. Sides are those of `slabs_of_blocks`;
    the units of a second convolution are the outputs of the block.

    Args:
        prefix: what stands before the names of the network's modules in those of the whole model, such as `backbone.`.
    """
    blocks = []
    before = f"{prefix}bn1"
    for name, block in network.named_modules(prefix=prefix.removesuffix(".")):
        if not isinstance(block, BasicBlock):
            continue
        chosen = [Convolution(f"{name}.conv1", f"{name}.bn1", before)]
        if which == "wide":
            chosen.append(Convolution(f"{name}.conv2", name, f"{name}.bn1"))
        blocks.append(chosen)
        before = name
    return slabs_of_blocks(blocks, side)
