"""The matching against all assignments, for few boxes."""

import itertools
import math

import pytest
import torch

from bbnet.models.hybrid_detector.outputs import Predictions, Targets, Unrated
from bbnet.tasks.detection.matching import match


def predictions(batch: int, queries: int, classes: int = 3) -> Predictions:
    boxes = torch.rand(batch, queries, 4) * 0.5 + 0.2
    return Unrated(torch.randn(batch, queries, classes), boxes)


def objects(*labels: list[int]) -> Targets:
    found = torch.tensor(labels).reshape(len(labels), -1)
    boxes = torch.rand(*found.shape, 4) * 0.5 + 0.2
    return Targets(torch.where(found[..., None] < 0, 0.0, boxes), found)


def cost(logit: float, box: list[float], wanted: list[float]) -> float:
    """By hand: 2 focal + 5 L1 - 2 GIoU."""
    score = 1 / (1 + math.exp(-logit))
    focal = 0.25 * (1 - score) ** 2 * -math.log(score) - 0.75 * score**2 * -math.log(1 - score)
    sides = []
    for x, y, width, height in (box, wanted):
        sides.append((x - width / 2, y - height / 2, x + width / 2, y + height / 2))
    (left, top, right, bottom), (left2, top2, right2, bottom2) = sides
    shared = max(0, min(right, right2) - max(left, left2)) * max(0, min(bottom, bottom2) - max(top, top2))
    union = box[2] * box[3] + wanted[2] * wanted[3] - shared
    hull = (max(right, right2) - min(left, left2)) * (max(bottom, bottom2) - min(top, top2))
    giou = shared / union - (hull - union) / hull
    return 2 * focal + 5 * sum(abs(a - b) for a, b in zip(box, wanted, strict=True)) - 2 * giou


def total(head: Predictions, targets: Targets, image: int, pairs) -> float:
    return sum(
        cost(
            head.logits[image, query, targets.labels[image, number]].item(),
            head.boxes[image, query].tolist(),
            targets.boxes[image, number].tolist(),
        )
        for query, number in pairs
    )


@pytest.mark.parametrize("queries", [1, 2, 5, 7])
@pytest.mark.parametrize("labels", [[0], [2, 1], [0, -1, 1], [-1, -1, 2, 2], [1, 0, 2, 1], [0, 0, 1, 1, 2, 2]])
def test_the_matching_is_the_best_of_all(queries, labels):
    head, targets = predictions(1, queries), objects(labels)
    (found,) = match([head], targets)
    real = [number for number, label in enumerate(labels) if label >= 0]
    pairs = [(found[0, number].item(), number) for number in real if found[0, number] < queries]
    assert len(pairs) == min(queries, len(real)) == len({query for query, _ in pairs})
    assert all(found[0, number] == queries for number in range(len(labels)) if number not in real)
    if queries >= len(real):
        options = (list(zip(chosen, real, strict=True)) for chosen in itertools.permutations(range(queries), len(real)))
    else:
        options = (list(zip(range(queries), chosen, strict=True)) for chosen in itertools.permutations(real, queries))
    best = min(total(head, targets, 0, pairs) for pairs in options)
    assert total(head, targets, 0, pairs) == pytest.approx(best, abs=1e-4)


def test_heads_and_images_are_matched_alone():
    heads = [predictions(3, 6), predictions(3, 4)]
    targets = objects([0, 1, -1], [-1, -1, -1], [2, -1, 0])
    found = match(heads, targets)
    assert [each.shape for each in found] == [(3, 3), (3, 3)]
    for head, together in zip(heads, found, strict=True):
        for image in range(3):
            own = Unrated(head.logits[image : image + 1], head.boxes[image : image + 1])
            (alone,) = match([own], Targets(targets.boxes[image : image + 1], targets.labels[image : image + 1]))
            assert torch.equal(together[image], alone[0])


def test_a_permutation_of_objects_or_queries_permutes_the_matching():
    head, targets = predictions(1, 8), objects([0, 1, 2, 0])
    (found,) = match([head], targets)
    order = torch.tensor([2, 0, 3, 1])
    (of_objects,) = match([head], Targets(targets.boxes[:, order], targets.labels[:, order]))
    assert torch.equal(of_objects, found[:, order])
    shuffled = torch.randperm(8)
    (of_queries,) = match([Unrated(head.logits[:, shuffled], head.boxes[:, shuffled])], targets)
    assert torch.equal(shuffled[of_queries], found)


def test_a_batch_without_objects_has_an_empty_matching():
    for count in (0, 2):
        targets = Targets(torch.zeros(2, count, 4), torch.full((2, count), -1))
        (found,) = match([predictions(2, 3)], targets)
        assert found.shape == (2, count) and found.dtype == torch.int64 and (found == 3).all()


def test_half_precision_is_matched_as_its_float32():
    head, targets = predictions(2, 5), objects([0, 1], [2, -1])
    half = Unrated(head.logits.bfloat16(), head.boxes)
    assert torch.equal(match([half], targets)[0], match([Unrated(half.logits.float(), head.boxes)], targets)[0])


def test_predictions_that_are_not_finite_are_refused():
    head = predictions(2, 5)
    head.boxes[1, 3, 0] = torch.nan
    with pytest.raises(ValueError, match="boxes and classes of image 1 of the batch are not finite"):
        match([head], objects([0, 1], [2, -1]))
