"""The one-to-one matching of predictions and objects (Carion et al. 2020, section 3.1), by the Hungarian algorithm."""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

from bbnet.models.hybrid_detector.boxes import overlaps
from bbnet.models.hybrid_detector.outputs import Predictions, Targets

CLASS, L1, GIOU = 2.0, 5.0, 2.0  # weights of the costs
ALPHA, GAMMA = 0.25, 2.0  # of the focal loss, the cost of a class


@torch.no_grad()
def match(heads: Sequence[Predictions], targets: Targets) -> list[Tensor]:
    """Returns, per head, the query [batch, M] that each object is matched to: an index, or Q for none.

    None is for padding, and for the objects that are left where an image has more than Q. The heads may differ in Q.
    The costs of all heads and images are computed on the device and read by the CPU in one transfer.
    Raises: ValueError if the costs are not finite, because predictions or boxes are not.
    """
    valid = targets.labels >= 0
    costs = [_costs(head, targets) for head in heads]
    sizes = [cost.shape[1] for cost in costs]
    joined = torch.cat([*costs, valid[:, None].to(costs[0])], dim=1).cpu().numpy()
    found = [_assigned(cost, joined[:, -1] > 0) for cost in np.split(joined[:, :-1], np.cumsum(sizes)[:-1], axis=1)]
    return list(torch.from_numpy(np.stack(found)).to(targets.labels.device, non_blocking=True).unbind())


def _costs(head: Predictions, targets: Targets) -> Tensor:
    """Returns the cost [batch, Q, M] of each query for each object: focal loss of its class, L1 and GIoU of the box."""
    logits = head.logits.float()
    scores = logits.sigmoid()
    present = ALPHA * (1 - scores) ** GAMMA * -functional.logsigmoid(logits)
    absent = (1 - ALPHA) * scores**GAMMA * -functional.logsigmoid(-logits)
    labels = targets.labels.clamp(min=0)[:, None].expand(-1, logits.shape[1], -1)
    of_class = (present - absent).gather(2, labels)
    boxes, wanted = head.boxes.float()[:, :, None], targets.boxes.float()[:, None]
    return CLASS * of_class + L1 * (boxes - wanted).abs().sum(-1) - GIOU * overlaps(boxes, wanted)[1]


def _assigned(costs: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Returns the queries [batch, M] of least total cost, for costs [batch, Q, M] of which some objects are valid."""
    queries = costs.shape[1]
    found = np.full(valid.shape, queries)
    for image, (cost, of_image) in enumerate(zip(costs, valid, strict=True)):
        objects = of_image.nonzero()[0]
        cost = cost[:, objects]
        if not np.isfinite(cost).all():
            raise ValueError(f"the predicted boxes and classes of image {image} of the batch are not finite")
        rows, columns = linear_sum_assignment(cost)
        found[image, objects[columns]] = rows
    return found
