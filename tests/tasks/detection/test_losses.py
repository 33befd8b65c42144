"""The loss of the detector against loops over images and objects, and what it does without objects."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from bbnet.models.hybrid_detector.boxes import corners, logit, overlaps
from bbnet.models.hybrid_detector.outputs import Denoising, Output, Predictions, Rated, Targets, Unrated
from bbnet.tasks.detection.decoding import decode
from bbnet.tasks.detection.losses import detection_loss, varifocal
from bbnet.tasks.detection.matching import match

CLASSES = 3


def predictions(batch: int, queries: int, rated: bool = False) -> Predictions:
    boxes = (torch.rand(batch, queries, 4) * 0.5 + 0.2).requires_grad_()
    logits = torch.randn(batch, queries, CLASSES, requires_grad=True)
    return Rated(logits, boxes, torch.randn(batch, queries, requires_grad=True)) if rated else Unrated(logits, boxes)


def objects(*labels: list[int]) -> Targets:
    found = torch.tensor(labels).reshape(len(labels), -1)
    boxes = torch.rand(*found.shape, 4) * 0.5 + 0.2
    return Targets(torch.where(found[..., None] < 0, 0.0, boxes), found)


def areas(box: torch.Tensor, other: torch.Tensor) -> tuple[float, float]:
    """IoU and generalised IoU of two boxes, from their sides."""
    (left, top, right, bottom), (left2, top2, right2, bottom2) = corners(box).tolist(), corners(other).tolist()
    shared = max(0, min(right, right2) - max(left, left2)) * max(0, min(bottom, bottom2) - max(top, top2))
    union = (right - left) * (bottom - top) + (right2 - left2) * (bottom2 - top2) - shared
    hull = (max(right, right2) - min(left, left2)) * (max(bottom, bottom2) - min(top, top2))
    return shared / union, shared / union - (hull - union) / hull


def cross_entropy(logit: float, share: float) -> float:
    score = 1 / (1 + math.exp(-logit))
    return -share * math.log(score) - (1 - share) * math.log(1 - score)


def by_loops(head: Predictions, pairs, targets: Targets, counted=lambda image, query: True) -> dict[str, float]:
    """The sums of each part's loss, given the pairs (image, query, object)."""
    of_pair = {(image, query): number for image, query, number in pairs}
    parts = {"class": 0.0, "l1": 0.0, "giou": 0.0, "iou": 0.0}
    batch, queries, classes = head.logits.shape
    for image in range(batch):
        for query in range(queries):
            number = of_pair.get((image, query))
            quality = 0.0
            if number is not None:
                box, wanted = head.boxes[image, query], targets.boxes[image, number]
                quality, giou = areas(box, wanted)
                parts["l1"] += 5 * (box - wanted).abs().sum().item()
                parts["giou"] += 2 * (1 - giou)
                if isinstance(head, Rated):
                    parts["iou"] += cross_entropy(head.iou[image, query].item(), quality)
            for label in range(classes if counted(image, query) else 0):
                value = head.logits[image, query, label].item()
                if number is not None and targets.labels[image, number] == label:
                    parts["class"] += quality * cross_entropy(value, quality)
                else:
                    parts["class"] += 0.75 * (1 / (1 + math.exp(-value))) ** 2 * cross_entropy(value, 0.0)
    return parts if isinstance(head, Rated) else {name: each for name, each in parts.items() if name != "iou"}


def pairs_of(queries: torch.Tensor, count: int):
    return [
        (image, query, number)
        for image, row in enumerate(queries.tolist())
        for number, query in enumerate(row)
        if query < count
    ]


@pytest.mark.parametrize("rated", [False, True])
@pytest.mark.parametrize("queries", [5, 2])  # fewer than objects
def test_the_loss_is_that_of_loops_over_images_queries_and_classes(rated, queries):
    last, other = predictions(3, queries, rated), predictions(3, queries, rated)
    hidden = predictions(3, 2 * 2 * 4, rated)
    targets = objects([0, 2, 1, -1], [-1, -1, -1, -1], [1, -1, 1, 0])
    output = Output(last, {"proposals": other, "reversible": other}, Denoising((hidden, hidden), 2))
    found = detection_loss(output, targets)
    number = 6
    matched = [pairs_of(each, queries) for each in match([last, other], targets)]
    expected = {}
    for name, head, pairs, weight in (
        ("", last, matched[0], 1),
        (".proposals", other, matched[1], 1),
        (".reversible", other, matched[1], 0.25),
    ):
        expected |= {f"{part}{name}": weight * each for part, each in by_loops(head, pairs, targets).items()}
    # Group by group: four queries that reconstruct the objects, then four that are background.
    real = [(image, number) for image, number in torch.cartesian_prod(torch.arange(3), torch.arange(4)).tolist()]
    real = [(image, number) for image, number in real if targets.labels[image, number] >= 0]
    pairs = [(image, 8 * group + number, number) for group in (0, 1) for image, number in real]
    noised = by_loops(hidden, pairs, targets, lambda image, query: targets.labels[image, query % 4] >= 0)
    expected |= {f"{part}.denoising": 2 * each / 2 for part, each in noised.items()}  # two layers, two groups
    assert found.keys() == {*expected, "total"}
    for name, each in expected.items():
        assert found[name].item() == pytest.approx(each / number, rel=1e-4), name
    assert found["total"].item() == pytest.approx(sum(expected.values()) / number, rel=1e-4)


def test_perfect_boxes_and_sure_scores_cost_nothing():
    targets = objects([0, 1], [2, -1])
    logits = torch.full((2, 2, CLASSES), -30.0)
    for image, number in ((0, 0), (0, 1), (1, 0)):
        logits[image, number, targets.labels[image, number]] = 30.0
    boxes = torch.where(targets.labels[..., None] < 0, torch.rand(2, 2, 4) / 2 + 0.1, targets.boxes)
    found = detection_loss(Unrated(logits, boxes), targets)
    assert found["total"].item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("count", [0, 3])
@pytest.mark.parametrize("noised", [False, True])
def test_batches_without_objects_have_finite_losses_and_gradients(count, noised):
    head = predictions(2, 4, rated=True)
    targets = Targets(torch.zeros(2, count, 4), torch.full((2, count), -1))
    hidden = predictions(2, 2 * count, rated=True)
    found = detection_loss(Output(head, {}, Denoising((hidden,), 1) if noised else None), targets)
    found["total"].backward()
    assert all(each.isfinite() for each in found.values())
    assert all(each == 0 for name, each in found.items() if not name.startswith(("class", "total")))
    assert found["class"] > 0 and (not noised or found["class.denoising"] == 0)
    assert head.logits.grad.any() and not head.boxes.grad.any() and not head.iou.grad.any()


def test_padding_changes_nothing():
    head, targets = predictions(2, 6), objects([0, 2], [1, -1])
    alone = detection_loss(head, targets)
    boxes = torch.cat([targets.boxes, torch.rand(2, 3, 4)], dim=1)
    labels = torch.cat([targets.labels, torch.full((2, 3), -1)], dim=1)
    padded = detection_loss(Output(head), Targets(boxes, labels))
    assert all(torch.allclose(padded[name], each) for name, each in alone.items())


def test_losses_of_half_precision_are_float32_and_gradients_are_finite():
    head = predictions(2, 6, rated=True)
    half = Rated(head.logits.bfloat16(), head.boxes, head.iou.bfloat16())
    found = detection_loss(half, objects([0, 2], [1, -1]))
    found["total"].backward()
    assert all(each.dtype == torch.float32 for each in found.values())
    assert all(each.grad.isfinite().all() for each in head)


def test_boxes_that_have_no_area_or_lie_apart_have_finite_gradients():
    boxes = torch.tensor([[[0.5, 0.5, 0.0, 0.0], [0.9, 0.9, 1e-6, 1e-6], [0.2, 0.2, 0.1, 0.1]]], requires_grad=True)
    targets = Targets(torch.tensor([[[0.5, 0.5, 0.0, 0.0], [0.1, 0.1, 0.1, 0.1]]]), torch.tensor([[0, 1]]))
    detection_loss(Unrated(torch.zeros(1, 3, CLASSES), boxes), targets)["total"].backward()
    assert boxes.grad.isfinite().all()


def test_overlaps_by_hand():
    box = torch.tensor([0.5, 0.5, 0.4, 0.4])
    others = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.7, 0.5, 0.4, 0.4], [0.9, 0.9, 0.2, 0.2], [0.5, 0.5, 0.2, 0.2]])
    iou, giou = overlaps(box, others)
    torch.testing.assert_close(iou, torch.tensor([1, 1 / 3, 0, 1 / 4]))
    torch.testing.assert_close(giou, torch.tensor([1, 1 / 3, -(0.49 - 0.2) / 0.49, 1 / 4]))
    assert gradcheck(overlaps, (torch.rand(3, 4).double().requires_grad_(), torch.rand(3, 4).double()))


def test_logits_of_shares_are_finite_at_the_borders():
    shares = torch.tensor([0.0, 0.25, 1.0])
    assert logit(shares).isfinite().all()
    torch.testing.assert_close(logit(shares).sigmoid(), shares, atol=1.1e-5, rtol=0)


def test_the_varifocal_loss_by_hand():
    found = varifocal(torch.zeros(3), torch.tensor([0.0, 0.6, 0.0]), torch.tensor([0.0, 1.0, 1.0]))
    torch.testing.assert_close(found, torch.tensor([0.75 * 0.25, 0.6, 0.0]) * math.log(2))


# Decoding.


def test_detections_are_the_best_pairs_of_query_and_class():
    logits = torch.tensor([[[2.0, -1.0, 0.0], [3.0, 2.0, -5.0]]])
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.4], [0.1, 0.9, 0.4, 0.4]]])
    found = decode(Unrated(logits, boxes), top=4)
    torch.testing.assert_close(found.scores, torch.tensor([[3.0, 2.0, 2.0, 0.0]]).sigmoid())
    assert found.labels.tolist() == [[0, 0, 1, 2]]  # of equal scores the first query is first
    first, second = [0.4, 0.3, 0.6, 0.7], [0.0, 0.7, 0.3, 1.0]
    torch.testing.assert_close(found.boxes, torch.tensor([[second, first, second, first]]))
    assert decode(Unrated(logits, boxes)).scores.shape == (1, 6)
    rated = decode(Rated(logits, boxes, torch.tensor([[1.0, -2.0]])), top=2)
    torch.testing.assert_close(rated.scores[0], torch.tensor([2.0, 0.0]).sigmoid() * torch.tensor(1.0).sigmoid().sqrt())
    assert rated.labels.tolist() == [[0, 2]]
