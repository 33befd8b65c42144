"""Matches of detections with objects, worked by hand."""

import numpy as np
import pytest

from bbnet.tasks.detection.data.classes import NUMBERED, SCENES, VOC
from bbnet.tasks.detection.metrics import metrics, relative_metrics
from bbnet.tasks.detection.scoring import Detections, Objects, as_column, match_table, overlaps


def objects(*boxes, classes=None, difficult=()) -> Objects:
    of_class = np.zeros(len(boxes), int) if classes is None else np.array(classes, int)
    hard = np.isin(np.arange(len(boxes)), difficult)
    return Objects(np.array(boxes, float).reshape(-1, 4), of_class, hard)


def detections(*boxes, classes=None) -> Detections:
    """Detections with scores that fall from .9 in steps of .1."""
    of_class = np.zeros(len(boxes), int) if classes is None else np.array(classes, int)
    return Detections(np.array(boxes, float).reshape(-1, 4), of_class, 0.9 - 0.1 * np.arange(len(boxes)))


def outcomes(found: Detections, there: Objects) -> str:
    """The outcome of each detection at an overlap of .5: hit, false alarm or ignored."""
    table = match_table([found], [there], (32, 96))
    bits = zip(table["detection_hits"][0] & 1, table["detection_ignored"][0] & 1, strict=True)
    return "".join("h" if hit else "i" if ignored else "f" for hit, ignored in bits)


SQUARE, MOVED, ELSEWHERE = (0, 0, 10, 10), (1, 0, 11, 10), (40, 40, 50, 50)


def test_overlaps_of_two_boxes():
    found = overlaps(np.array([SQUARE, (0, 0, 0, 5)], float), np.array([MOVED, ELSEWHERE, (0, 0, 0, 5)], float))
    np.testing.assert_allclose(found, [[90 / 110, 0, 0], [0, 0, 0]])


def test_the_second_detection_of_an_object_is_a_false_alarm():
    assert outcomes(detections(SQUARE, MOVED, ELSEWHERE), objects(SQUARE)) == "hff"


def test_the_best_detection_takes_the_nearest_object_and_leaves_the_other():
    assert outcomes(detections(MOVED, SQUARE), objects(SQUARE, MOVED)) == "hh"


def test_a_detection_of_another_class_hits_nothing():
    assert outcomes(detections(SQUARE, SQUARE, classes=[1, 0]), objects(SQUARE)) == "fh"


def test_a_difficult_object_ignores_all_detections_that_hit_it():
    """VOC's rule. By COCO's rule for other ignored objects, the second and the third would be false alarms."""
    assert outcomes(detections(SQUARE, MOVED, SQUARE, ELSEWHERE), objects(SQUARE, difficult=[0])) == "iiif"


def test_a_small_detection_within_a_difficult_object_is_a_false_alarm():
    """As in VOC. In COCO, where the overlap with a crowd is a share of the detection, it would be ignored."""
    assert outcomes(detections((4, 4, 6, 6)), objects(SQUARE, difficult=[0])) == "f"


def test_an_ordinary_object_goes_before_a_difficult_one_that_is_nearer():
    assert outcomes(detections(SQUARE, SQUARE), objects(SQUARE, MOVED, difficult=[0])) == "hi"


def test_sizes_are_those_of_the_original_image_and_limits_belong_to_both():
    there = objects((0, 0, 20, 20), (40, 0, 72, 32), (0, 40, 96, 136))
    table = match_table([detections()], [there], (32, 96))
    assert table["object_sizes"][0].tolist() == [1, 3, 6]


def test_images_without_objects_and_without_detections():
    table = match_table(
        [detections(), detections(SQUARE), detections()], [objects(), objects(), objects(SQUARE)], (32, 96)
    )
    found = metrics(table)
    assert float(found["map50"]) == 0
    assert np.isnan(found["map50_large"])
    nothing = metrics(match_table([detections()], [objects()], (32, 96)))
    assert all(np.isnan(value) for value in nothing.values())


def test_average_precision_of_a_hand_worked_case():
    """Hit, false alarm, hit of three objects: precision 1 up to recall 1/3, 2/3 up to 2/3, then 0."""
    found = metrics(
        match_table(
            [detections(SQUARE, (60, 60, 70, 70), ELSEWHERE)], [objects(SQUARE, ELSEWHERE, (80, 0, 90, 9))], (32, 96)
        )
    )
    assert float(found["map50"]) == pytest.approx((34 * 1 + 33 * 2 / 3) / 101)


def test_metrics_by_bucket_are_means_over_its_classes_and_relative_to_dense():
    there = [objects(SQUARE, ELSEWHERE, classes=[0, 1])]
    both = match_table([detections(SQUARE, ELSEWHERE, classes=[0, 1])], there, (32, 96))
    first = match_table([detections(SQUARE, classes=[0])], there, (32, 96))
    for table in (both, first):
        table["object_bucket"] = as_column([np.array([0, 2])])
    found = {name: float(value) for name, value in metrics(first).items()}
    assert (found["map50_head"], found["map50_tail"], found["map50"]) == (1, 0, 0.5)
    assert np.isnan(found["map50_mid"])
    relative = relative_metrics(first, both)
    assert (float(relative["dmap50_head"]), float(relative["dmap50_tail"])) == (0, -1)


def test_classes_are_those_of_the_generator_and_have_one_number_each():
    from bbnet.data.synthetic import rendered_scenes

    assert rendered_scenes.CLASSES == SCENES
    assert len(set(NUMBERED)) == len(NUMBERED) == len({*VOC, *SCENES})
