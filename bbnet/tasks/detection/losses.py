"""The loss of the hybrid detector: a sum over its heads, in which every part is divided by the number of objects."""

import torch
from torch import Tensor
from torch.nn import functional

from bbnet.models.hybrid_detector.boxes import overlaps
from bbnet.models.hybrid_detector.outputs import Denoising, Output, Predictions, Rated, Targets
from bbnet.tasks.detection.matching import match

WEIGHTS = {"class": 1.0, "l1": 5.0, "giou": 2.0, "iou": 1.0}
AUXILIARY = {"reversible": 0.25}  # weights of heads, 1 for the others
ALPHA, GAMMA = 0.75, 2.0  # of the varifocal loss


def detection_loss(output: Output | Predictions, targets: Targets) -> dict[str, Tensor]:
    """Returns the weighted loss of each head and their sum, scalars in float32; of evaluation mode only the last layer.

    Names are `{part}` for the last layer, `{part}.{head}` for the auxiliary heads and `{part}.denoising`, with the
    parts `class` (varifocal loss, Zhang et al. 2021, equation 2), `l1`, `giou` and, where the head predicts it, `iou`;
    and `total`. Every part is divided by the number of objects in the batch, at least 1, also where classes are summed
    over all queries, so that arms with more heads or queries do not differ in scale. Nothing is read by the CPU but
    the costs of the matching.
    Raises: ValueError if predictions or targets are not finite.
    """
    if not isinstance(output, Output):
        output = Output(output)
    heads = {"": output.last} | {f".{name}": head for name, head in output.auxiliary.items()}
    objects = (targets.labels >= 0).sum().clamp(min=1)
    losses: dict[str, Tensor] = {}
    for (name, head), queries in zip(heads.items(), match(list(heads.values()), targets), strict=True):
        weight = AUXILIARY.get(name[1:], 1.0)
        losses |= {f"{part}{name}": weight * loss / objects for part, loss in _matched(head, queries, targets).items()}
    if output.denoising is not None:
        found = _denoising(output.denoising, targets)
        losses |= {f"{part}.denoising": loss / objects for part, loss in found.items()}
    return losses | {"total": torch.stack(list(losses.values())).sum()}


def _matched(head: Predictions, queries: Tensor, targets: Targets, counted: Tensor | None = None) -> dict[str, Tensor]:
    """Returns the weighted sums of each part's loss, with the query [batch, M] of each object, or Q for none.

    Only the classes of the queries in `counted`, bool [batch, Q], count; by default all do.
    """
    logits = head.logits.float()
    batch, count, classes = logits.shape
    matched = (queries < count).float()
    at = queries.clamp(max=count - 1)
    boxes = head.boxes.float().gather(1, at[..., None].expand(-1, -1, 4))
    wanted = targets.boxes.float()
    iou, giou = overlaps(boxes, wanted)
    quality = iou.detach()
    # Objects that are not matched write to a row that is cut off.
    goals = logits.new_zeros(batch, count + 1, classes)
    places = torch.arange(batch, device=queries.device)[:, None], queries, targets.labels.clamp(min=0)
    goals[places] = quality
    present = torch.zeros_like(goals)
    present[places] = 1.0
    of_classes = varifocal(logits, goals[:, :-1], present[:, :-1]).sum(-1)
    losses = {
        "class": (of_classes if counted is None else of_classes * counted).sum(),
        "l1": ((boxes - wanted).abs().sum(-1) * matched).sum(),
        "giou": ((1 - giou) * matched).sum(),
    }
    if isinstance(head, Rated):
        rated = head.iou.float().gather(1, at)
        losses["iou"] = (functional.binary_cross_entropy_with_logits(rated, quality, reduction="none") * matched).sum()
    return {part: WEIGHTS[part] * loss for part, loss in losses.items()}


def varifocal(logits: Tensor, quality: Tensor, present: Tensor) -> Tensor:
    """Returns the varifocal loss (Zhang et al. 2021, equation 2) of each logit.

    Where an object of the class is `present` (1), the loss is the cross-entropy with `quality` times `quality`;
    elsewhere that with 0, times .75 p^2 for the score p, which has no gradient.
    """
    weight = torch.where(present > 0, quality, ALPHA * logits.detach().sigmoid() ** GAMMA)
    return functional.binary_cross_entropy_with_logits(logits, quality, weight, reduction="none")


def _denoising(denoising: Denoising, targets: Targets) -> dict[str, Tensor]:
    """Returns the weighted sums over layers, and the mean over groups, of each part's loss of noised objects.

    The first half of a group must reconstruct the objects, each its own; the second must be background.
    """
    objects, groups = targets.labels.shape[1], denoising.groups
    valid = targets.labels >= 0
    repeated = Targets(targets.boxes.repeat(1, groups, 1), targets.labels.repeat(1, groups))
    count = 2 * objects * groups
    first = torch.arange(count, device=valid.device).reshape(groups, 2, objects)[:, 0].flatten()
    queries = torch.where(repeated.labels >= 0, first, count)
    # The queries of padding count as neither object nor background.
    counted = valid.repeat(1, 2 * groups)
    sums: dict[str, Tensor] = {}
    for layer in denoising.layers:
        for part, loss in _matched(layer, queries, repeated, counted).items():
            sums[part] = sums.get(part, 0.0) + loss / groups
    return sums
