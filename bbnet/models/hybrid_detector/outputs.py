"""What the detector reads in training beside images, and what it returns."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor


class Targets(NamedTuple):
    """The objects of a batch of images. Rows with label -1 are padding; M may be 0.

    `boxes` [batch, M, 4]: centre x, centre y, width, height, in shares of the image; `labels` int64 [batch, M].
    """

    boxes: Tensor
    labels: Tensor


class Unrated(NamedTuple):
    """What one head predicts for each of Q queries, independently for each class.

    `logits` [batch, Q, classes], of which the sigmoid is the score of a class; there is no class for background.
    `boxes` [batch, Q, 4], as in `Targets`.
    """

    logits: Tensor
    boxes: Tensor


class Rated(NamedTuple):
    """As `Unrated`, with `iou` [batch, Q], the logit of the IoU of each box.

    It is a type of its own because a traced network cannot return None, which the field would be without a rating.
    """

    logits: Tensor
    boxes: Tensor
    iou: Tensor


Predictions = Unrated | Rated


class Denoising(NamedTuple):
    """The predictions for noised objects, of each layer of the decoder.

    The queries are [groups, 2, M], flattened: in each group one for each target that is to reconstruct it, then one
    for each target with more noise, which is to be background.
    """

    layers: tuple[Predictions, ...]
    groups: int


class Output(NamedTuple):
    """What the detector returns in training mode; in evaluation mode it returns the predictions of the last layer.

    `auxiliary` holds, by name, predictions that are matched to the targets as those of the `last` layer are:
    `proposals`, of all tokens, `decoder.0`, ..., and `reversible` with the flag. `denoising` is None where there is
    nothing to reconstruct.
    """

    last: Predictions
    auxiliary: Mapping[str, Predictions] = {}
    denoising: Denoising | None = None
