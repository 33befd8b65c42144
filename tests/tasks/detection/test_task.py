"""From rendered scenes to scores and panels, with detectors whose answers are known and with a small real one."""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from bbnet.models.hybrid_detector.outputs import Unrated
from bbnet.plots.panels_detection import plot_panels
from bbnet.tasks.batches import EVALUATION_PIXELS
from bbnet.tasks.detection import panels, task
from bbnet.tasks.detection.buckets import make_buckets
from bbnet.tasks.detection.data import batches
from bbnet.tasks.detection.metrics import bucket_sizes, metrics, relative_metrics
from bbnet.tasks.detection.settings import Settings
from bbnet.training.trainer import Trainer

CPU = torch.device("cpu")
TINY = {
    "stem": [[8, 2], [8, 2]],
    "stages": [{"width": 16, "blocks": ["depthwise"]}, {"width": 16, "blocks": ["operator"]}],
    "width": 16,
    "decoder_layers": 1,
    "heads": 2,
    "points": 2,
    "hidden": 16,
    "queries": 12,
    "head_width": 8,
}
SETTINGS = {
    "data": {"pack": "rendered_scenes", "size": 64, "train": 30, "val": 6, "test": 24, "difficult": 0.2, "empty": 0.2},
    "size": 64,
    "models": {"tiny": {"sizes": TINY}},
    "training": {"epochs": 2, "warm_up_epochs": 1, "learning_rate": 0.002, "batch_size": 6},
}


def settings(**changed) -> Settings:
    return Settings.model_validate(SETTINGS | changed)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> tuple[Path, dict]:
    """The folder of the arrays, and their index with the buckets and settings that scoring on test has."""
    raw, target = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("prepared")
    manifest = task.fetch(settings().data.model_dump(), raw)
    manifest["root"] = str(raw / manifest["root"])
    index = json.loads(json.dumps(task.prepare(manifest, settings().model_dump(), target)))
    return target, index | {"buckets": make_buckets(index)["types"]} | settings(object_sides=(16, 24)).scoring()


@pytest.fixture
def model(prepared) -> nn.Module:
    return task.build_model(settings().models["tiny"], prepared[1], CPU).eval()


class Knowing(nn.Module):
    """A detector that finds all objects of known images but the difficult ones; `shift` changes their classes."""

    def __init__(self, split, shift: int = 0) -> None:
        super().__init__()
        self.split, self.shift = split, shift

    def forward(self, images: torch.Tensor) -> Unrated:
        known = self.split.images.float()
        rows = [int(torch.nonzero((known == image).flatten(1).all(1))[0]) for image in images]
        boxes, labels = self.split.boxes[rows], self.split.labels[rows]
        logits = torch.full((*labels.shape, 7), -9.0)
        logits.scatter_(2, ((labels.clamp(min=0) + self.shift) % 7)[..., None], 4.0)
        return Unrated(torch.where((labels >= 0)[..., None], logits, -9.0), boxes)


def test_a_detector_that_knows_all_is_right_everywhere_and_another_nowhere(prepared):
    split = task.open_split(*prepared, "test")
    items, predictions = task.evaluate(Knowing(split), split, CPU)
    assert items["image"].tolist() == split.files
    found = {name: float(value) for name, value in metrics(items).items()}
    assert {round(value, 6) for value in found.values() if not np.isnan(value)} == {1.0}
    assert {"map50", "map", "map50_head", "map50_tail", "map50_small", "ap50_house"} <= found.keys()
    wrong, _ = task.evaluate(Knowing(split, shift=1), split, CPU)
    assert float(metrics(wrong)["map50"]) < 0.1
    assert float(relative_metrics(wrong, items)["dmap50_head"]) < -0.9
    assert (predictions["outcomes"] == panels.HIT).sum() == sum(map(len, items["object_class"]))
    sizes = bucket_sizes(items)["test"]
    assert sum(sizes.values()) == sum(map(len, items["object_class"]))


def test_scoring_does_not_depend_on_the_size_of_batches_and_leaves_no_gradient(prepared, model, monkeypatch):
    expected, _ = task.evaluate(model, task.open_split(*prepared, "test"), CPU)
    monkeypatch.setattr(batches, "EVALUATION_PIXELS", 7 * 64 * 64)
    split = task.open_split(*prepared, "test")
    assert [len(each) for each in split.in_order()] == [7, 7, 7, 3]
    found, _ = task.evaluate(model, split, CPU)
    assert found.keys() == expected.keys()
    for own, others in zip(found["detection_score"], expected["detection_score"], strict=True):
        np.testing.assert_allclose(own, others, atol=1e-5)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert EVALUATION_PIXELS >= 64 * 64


def test_dev_has_no_buckets_and_its_metrics_are_known_without(prepared, model):
    items, _ = task.evaluate(model, task.open_split(*prepared, "val"), CPU)
    assert not [name for name in metrics(items) if name.endswith(("head", "mid", "tail"))]


def test_low_scores_and_what_exceeds_the_number_of_detections_are_not_scored(prepared, model):
    folder, index = prepared
    few, predictions = task.evaluate(model, task.open_split(folder, index | {"detections": 5}, "test"), CPU)
    assert {len(scores) for scores in few["detection_score"]} == {5}
    assert predictions["boxes"].shape == (24, 5, 4)
    none, predictions = task.evaluate(model, task.open_split(folder, index | {"least_score": 0.999}, "test"), CPU)
    assert {len(scores) for scores in none["detection_score"]} == {0}
    assert (predictions["outcomes"] == panels.IGNORED).all()
    assert float(metrics(none)["map50"]) == 0


def test_boxes_that_are_not_numbers_are_no_detections(prepared, model):
    nn.init.constant_(next(model.decoder.parameters()), torch.nan)
    items, _ = task.evaluate(model, task.open_split(*prepared, "test"), CPU)
    assert float(metrics(items)["map50"]) == 0


def test_losses_are_finite_also_without_objects(prepared, model):
    split = task.open_split(*prepared, "train")
    empty = torch.nonzero((split.labels < 0).all(1))[:3, 0]
    for indices in (torch.arange(6), empty):
        batch = task.augment(split.batch(indices, CPU), settings().training, torch.Generator().manual_seed(0))
        loss = task.loss(model.train(), batch)
        loss.backward()
        assert loss.isfinite()
        assert all(each.grad.isfinite().all() for each in model.parameters() if each.grad is not None)


@pytest.mark.thorough
def test_a_trainer_trains_it_and_decays_only_linear_layers_and_convolutions(prepared):
    trainer = Trainer(task, settings().models["tiny"], settings().training, *prepared, 0, CPU)
    decayed = {id(each) for each in trainer.optimizer.param_groups[0]["params"]}
    kept = {id(each) for each in task.without_decay(trainer.model)}
    assert decayed and not decayed & kept
    assert decayed | kept == {id(each) for each in trainer.model.parameters()}
    rows = [trainer.run_epoch("warm_up") for _ in range(2)]
    assert rows[1]["train_loss"] < rows[0]["train_loss"]
    assert 0 <= rows[1]["dev_map50"] <= 1


def test_a_random_batch_has_what_the_loss_reads():
    index, batch = task.random_batch(settings(), None, CPU)
    model = task.build_model(settings().models["tiny"], index, CPU)
    assert task.loss(model, batch).isfinite()
    assert task.example_inputs(index, CPU)[0].shape == batch.images[:1].shape


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"size": 100}, "multiple of 32"),
        ({"object_sides": (40, 20)}, "object_sides 40 must not exceed 20"),
        ({"training": SETTINGS["training"] | {"batch_size": 31}}, "batch_size 31 exceeds the 30 training images"),
        ({"training": SETTINGS["training"] | {"augmentation": {"zoom": (2, 1)}}}, "zoom 2 must not exceed 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changed, why):
    with pytest.raises(ValidationError, match=why):
        settings(**changed)


def test_panels_show_the_images_that_gain_most_and_least(prepared, tmp_path):
    folder, index = prepared
    split = task.open_split(*prepared, "test")
    runs = {name: task.evaluate(Knowing(split, shift), split, CPU) for name, shift in (("dense", 1), ("other", 0))}
    (dense, _), (other, _) = runs.values()
    chosen = panels.choose(dense, other)
    assert list(chosen) == ["best", "median", "worst"]
    counts = [len(classes) for classes in other["object_class"]]
    assert counts[chosen["best"]] == max(counts)
    assert counts[chosen["worst"]] == min(count for count in counts if count)
    arrays, described = {}, {}
    for rank, image in chosen.items():
        key = f"gatefuse/dense/b1.00/{rank}"
        for name, array in panels.case(folder, index, image, {name: one for name, (_, one) in runs.items()}).items():
            arrays[f"{key}/{name}"] = array
        rows = [{name: values[image] for name, values in items.items()} for items in (dense, other)]
        described[key] = panels.describe(*rows)
        assert described[key]["delta_hits"] == counts[image]
        boxes = arrays[f"{key}/true_boxes"][~arrays[f"{key}/true_difficult"]]
        np.testing.assert_allclose(sorted(arrays[f"{key}/other_boxes"].tolist()), sorted(boxes.tolist()), atol=2e-3)
    figure = plot_panels(arrays | {"cases": np.array(json.dumps(described))}, "gatefuse", "dense", "1.00")
    titles = [axis.get_title() for axis in figure.axes[:2]]
    assert titles == ["baseline", "gatefuse"]
    figure.savefig(tmp_path / "panels.png")
    plt.close(figure)
