"""The network that detects objects. Its slabs, and what does not decay, are those of the hybrid detector."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bbnet.models.hybrid_detector.detector import HybridDetector
from bbnet.models.hybrid_detector.outputs import Output, Predictions, Targets
from bbnet.tasks.detection.settings import Model


class Detector(HybridDetector):
    """The hybrid detector for images of pixels 0 to 255.

    Args:
        mean, sd: mean and standard deviation of the training pixels, 0 to 255, per channel.
    """

    def __init__(self, settings: Model, classes: int, mean: Sequence[float], sd: Sequence[float]) -> None:
        super().__init__(settings, classes)
        self.register_buffer("mean", torch.tensor(mean).reshape(-1, 1, 1))
        self.register_buffer("sd", torch.tensor(sd).reshape(-1, 1, 1))

    def forward(self, images: Tensor, targets: Targets | None = None) -> Output | Predictions:
        """Maps images [batch, 3, height, width] of pixels 0 to 255 to boxes; targets are read in training mode."""
        return super().forward((images - self.mean) / self.sd, targets)
