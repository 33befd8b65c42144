"""The boxes of a detector's output, best first."""

from typing import NamedTuple

import torch
from torch import Tensor

from bbnet.models.hybrid_detector.boxes import corners
from bbnet.models.hybrid_detector.outputs import Predictions, Rated

EXPONENT = 0.5  # of the predicted IoU in the score


class Detections(NamedTuple):
    """The best pairs of query and class of each image.

    `scores` [batch, K], falling; `labels` int64 [batch, K]; `boxes` [batch, K, 4]: corners, in shares of the image.
    """

    scores: Tensor
    labels: Tensor
    boxes: Tensor


@torch.no_grad()
def decode(output: Predictions, top: int = 100) -> Detections:
    """Returns the K = min(top, Q * classes) pairs of query and class with the best scores, in float32.

    The score is the sigmoid of the class logit; where IoUs are predicted, it is multiplied by the square root of
    that. A query may be returned for several classes. There is no suppression of overlapping boxes, since the matching
    is one to one. Pairs with equal scores are in the order of queries, then classes. Boxes are clipped to the image.
    """
    scores = output.logits.float().sigmoid()
    if isinstance(output, Rated):
        scores = scores * output.iou.float().sigmoid()[..., None] ** EXPONENT
    classes = scores.shape[2]
    sorted_scores, order = scores.flatten(1).sort(dim=1, descending=True, stable=True)
    order = order[:, :top]
    boxes = corners(output.boxes.float()).clamp(0, 1)
    chosen = boxes.gather(1, (order // classes)[..., None].expand(-1, -1, 4))
    return Detections(sorted_scores[:, :top], order % classes, chosen)
