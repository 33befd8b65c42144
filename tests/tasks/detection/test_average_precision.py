"""Average precision beside pycocotools, and images that count several times beside repeated images."""

import contextlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from bbnet.tasks.detection.data.classes import NUMBERED
from bbnet.tasks.detection.metrics import metrics
from bbnet.tasks.detection.scoring import SIZES, Detections, Objects, match_table, overlaps

SIDES = (5, 9)


def random_case(seed: int, images: int = 12, classes: int = 3, difficult: float = 0.2):
    """Objects and detections on a coarse grid, where scores, overlaps and areas are often equal."""
    rng = np.random.default_rng(seed)

    def boxes(count: int) -> np.ndarray:
        start = rng.integers(0, 20, (count, 2))
        return np.concatenate([start, start + rng.integers(1, 12, (count, 2))], axis=1).astype(float)

    objects, detections = [], []
    for _ in range(images):
        count = int(rng.integers(0, 7))
        there = Objects(boxes(count), rng.integers(0, classes, count), rng.random(count) < difficult)
        near = (
            there.boxes[rng.integers(0, count, 2 * count)] + rng.integers(-1, 2, (2 * count, 4)) if count else boxes(0)
        )
        near = near[(near[:, 2:] > near[:, :2]).all(1)]
        found = np.concatenate([near, boxes(int(rng.integers(0, 5)))])
        scores = np.sort(rng.integers(1, 40, len(found)) / 41)[::-1].astype(np.float32)
        objects.append(there)
        detections.append(Detections(found, rng.integers(0, classes, len(found)), scores))
    return detections, objects


class WithOrdinaryOverlap(COCOeval):
    """COCO's evaluation, but the overlap with a crowd is the intersection over union."""

    def computeIoU(self, image, category):  # noqa: N802
        ours, theirs = self._dts[image, category], self._gts[image, category]
        if not ours and not theirs:
            return []
        ours = [ours[place] for place in np.argsort([-one["score"] for one in ours], kind="mergesort")]
        found, there = (np.array([_corners(one["bbox"]) for one in some]).reshape(-1, 4) for some in (ours, theirs))
        return overlaps(found, there)


def _corners(box: list[float]) -> list[float]:
    return [box[0], box[1], box[0] + box[2], box[1] + box[3]]


def evaluated(detections, objects, evaluation=WithOrdinaryOverlap) -> COCOeval:
    """The evaluation by pycocotools, with difficult objects as crowds."""
    truths, found = [], []
    for image, (of_image, there) in enumerate(zip(detections, objects, strict=True), start=1):
        for box, label, crowd in zip(there.boxes, there.classes, there.difficult, strict=True):
            truths.append({"image_id": image, "category_id": int(label), "iscrowd": int(crowd)} | _box(box))
        for box, label, score in zip(of_image.boxes, of_image.classes, of_image.scores, strict=True):
            found.append(
                {"image_id": image, "category_id": int(label), "score": float(score), "iscrowd": 0} | _box(box)
            )
    categories = sorted({one["category_id"] for one in [*truths, *found]})
    with contextlib.redirect_stdout(io.StringIO()):
        both = []
        for annotations in (truths, found):
            coco = COCO()
            coco.dataset = {
                "images": [{"id": image} for image in range(1, len(detections) + 1)],
                "categories": [{"id": number} for number in categories],
                "annotations": [{"id": number} | one for number, one in enumerate(annotations, start=1)],
            }
            coco.createIndex()
            both.append(coco)
        result = evaluation(*both, "bbox")
        small, large = (side**2 for side in SIDES)
        result.params.areaRng = [[0, 1e10], [0, small], [small, large], [large, 1e10]]
        result.params.areaRngLbl = ["all", *SIZES]
        result.evaluate()
        result.accumulate()
    return result


def _box(box: np.ndarray) -> dict:
    left, top, right, bottom = box.tolist()
    return {"bbox": [left, top, right - left, bottom - top], "area": (right - left) * (bottom - top)}


def expected_metrics(result: COCOeval) -> dict[str, float]:
    """The metrics by pycocotools, which has -1 where there are no objects."""
    precision = result.eval["precision"][..., -1]  # [thresholds, recalls, classes, sizes]

    def mean(values: np.ndarray) -> float:
        return float(values[values > -1].mean()) if (values > -1).any() else np.nan

    found = {"map50": mean(precision[0, :, :, 0]), "map": mean(precision[..., 0])}
    found |= {f"map50_{size}": mean(precision[0, :, :, place]) for place, size in enumerate(SIZES, start=1)}
    of_classes = {
        f"ap50_{NUMBERED[number]}": mean(precision[0, :, place, 0]) for place, number in enumerate(result.params.catIds)
    }
    return found | {name: value for name, value in of_classes.items() if not np.isnan(value)}


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), difficult=st.sampled_from([0.0, 0.3]), images=st.integers(1, 25))
def test_it_is_that_of_pycocotools(seed, difficult, images):
    case = random_case(seed, images=images, difficult=difficult)
    found = metrics(match_table(*case, SIDES))
    expected = expected_metrics(evaluated(*case, COCOeval if not difficult else WithOrdinaryOverlap))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(value, abs=1e-12, nan_ok=True), name


@pytest.mark.parametrize("seed", range(4))
def test_an_image_of_integer_weight_counts_as_if_it_were_repeated(seed):
    detections, objects = random_case(seed, images=15)
    # Within an image, equal scores of a hit and a false alarm would alternate where the image is repeated.
    rng = np.random.default_rng(seed)
    detections = [
        Detections(one.boxes, one.classes, np.sort(rng.permutation(1000)[: len(one.scores)] / 1000)[::-1])
        for one in detections
    ]
    weights = rng.integers(0, 4, (5, 15))
    weights[0] = 0
    found = metrics(match_table(detections, objects, SIDES), weights)
    for place, counts in enumerate(weights):
        order = np.repeat(np.arange(15), counts).tolist()
        if not order:
            assert all(np.isnan(values[place]) for values in found.values())
            continue
        repeated = [[some[image] for image in order] for some in (detections, objects)]
        expected = metrics(match_table(*repeated, SIDES))
        by_coco = expected_metrics(evaluated(*repeated))
        for name, values in found.items():
            value = float(expected.get(name, np.nan))
            assert float(values[place]) == pytest.approx(value, abs=1e-12, nan_ok=True), name
            assert value == pytest.approx(by_coco.get(name, np.nan), abs=1e-12, nan_ok=True), name


def test_items_of_several_seeds_are_broadcast_with_the_weights_of_the_draws():
    tables = [match_table(*random_case(seed, images=10), SIDES) for seed in range(3)]
    weights = np.random.default_rng(0).multinomial(10, np.full(10, 0.1), size=4)
    stacked = {name: np.stack([table[name] for table in tables])[:, None] for name in tables[0]}
    found = metrics(stacked, weights[None])
    for seed, table in enumerate(tables):
        for name, values in metrics(table, weights).items():
            np.testing.assert_array_equal(found[name][seed], values)
    assert found["map"].shape == (3, 4)
