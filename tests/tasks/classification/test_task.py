"""From rendered objects to scores, and the loss of images with one label and with two."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bbnet.tasks import batches
from bbnet.tasks.classification import task
from bbnet.tasks.classification.augmentation import MixedImages
from bbnet.tasks.classification.buckets import make_buckets
from bbnet.tasks.classification.metrics import metrics
from bbnet.tasks.classification.settings import Settings

CPU = torch.device("cpu")
SETTINGS = {
    "data": {"pack": "rendered_objects", "train": 200, "val": 20, "test": 40, "imbalance": 8, "difficulty": 0.1},
    "models": {"tiny": {"architecture": "cifar_resnet", "depth": 8, "width": 8, "stem_stride": 2}},
    "training": {"epochs": 2, "warm_up_epochs": 1, "learning_rate": 0.1, "batch_size": 25},
}


def settings(**changed) -> Settings:
    return Settings.model_validate(SETTINGS | changed)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> tuple[Path, dict]:
    """The folder of the arrays, and their index with the buckets that scoring on test has."""
    raw, target = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("prepared")
    manifest = {"root": str(raw)} | task.fetch(settings().data.model_dump(), raw)
    index = json.loads(json.dumps(task.prepare(manifest, settings().model_dump(), target)))
    return target, index | {"buckets": make_buckets(index)["types"]}


@pytest.fixture
def model(prepared) -> nn.Module:
    return task.build_model(settings().models["tiny"], prepared[1], CPU).eval()


class Fixed(nn.Module):
    """A model with these logits, whatever it sees."""

    def __init__(self, logits: torch.Tensor, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.logits = logits
        self.settings = settings(
            models={"it": {"architecture": "cifar_resnet", "label_smoothing": label_smoothing}}
        ).models["it"]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits[: len(images)]


# Scores.


def test_rows_are_what_the_logits_of_each_image_say(prepared, model):
    split = task.open_split(*prepared, "test")
    items, predictions = task.evaluate(model, split, CPU)
    assert items["image"].tolist() == split.files
    assert len(split) == 40
    for row in range(40):
        with torch.no_grad():
            logits = model(split.images[row : row + 1].float())[0].tolist()
        label = prepared[1]["splits"]["test"]["labels"][row]
        whole = sum(math.exp(each - max(logits)) for each in logits)
        assert items["label"][row] == label
        assert items["rank"][row] == sum(each > logits[label] for each in logits)
        assert predictions["class"][row] == logits.index(max(logits))
        assert items["confidence"][row] == pytest.approx(1 / whole, abs=1e-5)
        assert items["nll"][row] == pytest.approx(max(logits) + math.log(whole) - logits[label], abs=1e-5)
        bucket = prepared[1]["buckets"][prepared[1]["classes"][label]]
        assert ("head", "mid", "tail")[items["bucket"][row]] == bucket
    assert len(set(items["bucket"])) == 3


def test_scoring_does_not_depend_on_the_size_of_batches_and_leaves_no_gradient(prepared, model, monkeypatch):
    expected, answers = task.evaluate(model, task.open_split(*prepared, "test"), CPU)
    monkeypatch.setattr(batches, "EVALUATION_PIXELS", 7 * 32 * 32)
    split = task.open_split(*prepared, "test")
    assert [len(each) for each in split.in_order()] == [7, 7, 7, 7, 7, 5]
    found, others = task.evaluate(model, split, CPU)
    assert np.array_equal(others["class"], answers["class"])
    for name, values in expected.items():
        if values.dtype == np.float32:
            np.testing.assert_allclose(found[name], values, atol=1e-5)
        else:
            assert np.array_equal(found[name], values)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_dev_has_no_buckets_and_its_metrics_are_known_without(prepared, model):
    items, _ = task.evaluate(model, task.open_split(prepared[0], prepared[1], "val"), CPU)
    assert set(metrics(items)) == {"top1", "top5", "nll", "calibration_error"}


def test_a_class_in_no_bucket_is_scored_as_such(prepared, model):
    folder, index = prepared
    items, _ = task.evaluate(model, task.open_split(folder, index | {"buckets": {}}, "test"), CPU)
    assert set(items["bucket"]) == {-1}


def test_of_equal_logits_the_first_class_wins_and_no_number_is_no_hit(prepared):
    split = task.open_split(*prepared, "test")
    labels = split.labels.numpy()
    items, predictions = task.evaluate(Fixed(torch.zeros(40, 10)), split, CPU)
    assert np.array_equal(items["rank"], labels)
    assert not predictions["class"].any()
    np.testing.assert_allclose(items["nll"], math.log(10), rtol=1e-6)
    items, _ = task.evaluate(Fixed(torch.full((40, 10), torch.nan)), split, CPU)
    assert (items["rank"] > 0).all()


# Images that are prepared larger than the network sees them.


def test_of_larger_images_training_cuts_a_part_and_scoring_the_centre(prepared, model):
    folder, index = prepared
    index = index | {"input_size": 24, "large_size": 32}
    whole = np.load(folder / "test.npy")
    train, dev, test = (task.open_split(folder, index, split) for split in ("train", "val", "test"))
    training = settings(**cut(24)).training
    batch = task.augment(train.batch(torch.arange(5), CPU), training, torch.Generator().manual_seed(0))
    assert (train.images.shape[-1], batch.images.shape) == (32, (5, 3, 24, 24))
    assert dev.batch(torch.arange(3), CPU).images.shape == (3, 3, 24, 24)
    assert np.array_equal(test.images.numpy(), whole[..., 4:28, 4:28])
    assert task.example_inputs(index, CPU)[0].shape == (1, 3, 24, 24)
    items, _ = task.evaluate(model, test, CPU)
    centre, _ = task.evaluate(model, task.open_split(folder, index | {"large_size": None}, "test"), CPU)
    large, _ = task.evaluate(model, task.open_split(*prepared, "test"), CPU)
    assert items.keys() - {"rank_large"} == centre.keys() == large.keys()
    assert all(np.array_equal(items[name], centre[name]) for name in centre)
    assert np.array_equal(items["rank_large"], large["rank"])
    assert metrics(items)["top1_large"] == metrics(large)["top1"]
    assert not np.array_equal(items["rank"], items["rank_large"])
    assert settings(large_size=32, **cut(24)).scoring() == {"large_size": 32}


def cut(input_size: int) -> dict:
    return {
        "input_size": input_size,
        "training": SETTINGS["training"] | {"augmentation": {"crop": {"kind": "resized"}}},
    }


# Loss.


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_the_cross_entropy_with_the_smoothed_and_mixed_target(smoothing):
    logits, images = torch.randn(6, 4), torch.zeros(6, 3, 8, 8)
    labels, others, shares = torch.tensor([0, 1, 2, 3, 0, 1]), torch.tensor([3, 1, 0, 2, 2, 0]), torch.rand(6)
    model = Fixed(logits, smoothing)

    def loss_of(targets: np.ndarray) -> float:
        values = logits.double().numpy()
        logs = values - np.log(np.exp(values).sum(1, keepdims=True))
        return -(((1 - smoothing) * targets + smoothing / 4) * logs).sum(1).mean()

    one, two = np.eye(4)[labels], np.eye(4)[others]
    share = shares.double().numpy()[:, None]
    assert task.loss(model, task.Batch(images, labels)).item() == pytest.approx(loss_of(one), rel=1e-5)
    mixed = MixedImages(images, labels, others, shares)
    assert task.loss(model, mixed).item() == pytest.approx(loss_of(share * one + (1 - share) * two), rel=1e-5)


@pytest.mark.parametrize("augmentation", [{}, {"crop": {"kind": "resized", "smallest": 0.5}, "mixup": 0.2}])
def test_a_few_steps_lower_the_loss(prepared, augmentation):
    network = task.build_model(settings().models["tiny"], prepared[1], CPU).train()
    split = task.open_split(*prepared, "train")
    training = settings(training=SETTINGS["training"] | {"augmentation": augmentation}).training
    optimizer, drawing = torch.optim.Adam(network.parameters(), lr=0.01), torch.Generator().manual_seed(0)
    losses = []
    for _ in range(6):
        order = split.batches(training, drawing)
        assert len(order) == split.steps_per_epoch(training) == 8
        for indices in order:
            loss = task.loss(network, task.augment(split.batch(indices, CPU), training, drawing))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    assert np.mean(losses[-8:]) < 0.9 * np.mean(losses[:8])


def test_a_random_batch_is_one_of_training():
    chosen = settings(training=SETTINGS["training"] | {"augmentation": {"mixup": 1.0}})
    index, batch = task.random_batch(chosen, None, CPU)
    model = task.build_model(chosen.models["tiny"], index, CPU)
    drawing = torch.Generator().manual_seed(0)
    assert batch.images.shape == (25, 3, 32, 32)
    assert task.loss(model, task.augment(batch, chosen.training, drawing)).isfinite()
    index, batch = task.random_batch(settings(**cut(24)), None, CPU)
    seen = task.augment(batch, settings(**cut(24)).training, drawing)
    assert (batch.images.shape[-1], seen.images.shape[-1]) == (32, 24)
    assert task.example_inputs(index, CPU)[0].shape == (1, 3, 24, 24)


# Settings.


def test_the_estimate_of_the_data_is_what_is_prepared(prepared):
    folder, index = prepared
    steps, size = settings().estimate(None)
    assert steps == settings().prepared_steps(folder, index) == settings().steps_per_epoch() == 8
    headers = 3 * 128
    assert sum(path.stat().st_size for path in folder.iterdir()) == size + headers


def with_augmentation(**options) -> dict:
    return {"size": 16, "training": SETTINGS["training"] | {"augmentation": options}}


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"models": {"it": {"architecture": "cifar_resnet", "depth": 21}}}, "depth 21 is not 6n"),
        (
            {"models": {"it": {"architecture": "bottleneck_resnet", "widths": [8, 8], "blocks": [1]}}},
            "blocks has 1 stages, but widths has 2",
        ),
        ({"training": SETTINGS["training"] | {"batch_size": 201}}, "batch_size 201 exceeds the 200 training images"),
        (with_augmentation(crop={"kind": "pad", "pixels": 16}), "crop.pixels 16 must be below size 16"),
        (cut(40), "input_size 40 must not exceed size 32"),
        ({"input_size": 24}, "input_size 24 below size 32 needs training.augmentation.crop: {kind: resized}"),
        (cut(24) | {"large_size": 40}, "large_size 40 must be above input_size 24 and at most size 32"),
        ({"large_size": 32}, "large_size 32 must be above input_size 32"),
        (with_augmentation(erasing={"smallest": 0.3}), "smallest 0.3 must not exceed largest 0.2"),
        (with_augmentation(crop={"kind": "resized", "largest": 0.05}), "smallest 0.08 must not exceed largest 0.05"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changed, problem):
    with pytest.raises(ValueError, match=problem):
        settings(**changed)
