"""From rendered faces of a few identities to scores."""

import gc
import importlib.util
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from bbnet.analysis.statistics import CELL_KEYS, curves_table
from bbnet.tasks.face import task, verification
from bbnet.tasks.face.buckets import make_buckets
from bbnet.tasks.face.metrics import metrics, roc_points
from bbnet.tasks.face.settings import FaceTraining, Faults, RenderedFaces, ResNet

CPU = torch.device("cpu")
PACK = {"pack": "rendered_faces", "size": 24, "identities": 5, "train": 22, "val": 2, "test": 3}
PACK |= {"gallery": 4, "gallery_images": 2, "probes": 3, "strangers": 4}
OF_PROBES = ("identified", "own_first", "own_count", "pair_threshold")
COMMON = Path(__file__).parents[3] / "workflow_scripts" / "common.py"


@pytest.fixture(scope="module")
def write_parquet():
    spec = importlib.util.spec_from_file_location("common_of_workflow_scripts", COMMON)
    common = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(common)
    gc.enable()  # which scripts do in `run`
    return common.write_parquet


@pytest.fixture(scope="module")
def make_faces(tmp_path_factory):
    """Renders and prepares a pack: the folder, and its index with the buckets that scoring on test has."""

    def make(**changed: int) -> tuple[Path, dict]:
        raw, target = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("prepared")
        manifest = {"root": str(raw)} | task.fetch(RenderedFaces(**PACK | changed).model_dump(), raw)
        settings = {"size": 24, "resize": "crop", "faults": Faults().model_dump()}
        index = json.loads(json.dumps(task.prepare(manifest, settings, target), sort_keys=True))
        return target, index | {"buckets": make_buckets(index)["types"]}

    return make


@pytest.fixture(scope="module")
def faces(make_faces):
    return make_faces()


@pytest.fixture(scope="module")
def model(faces):
    """After some steps of training, in evaluation mode."""
    torch.manual_seed(2)
    network = task.build_model(ResNet(architecture="small", widths=[8, 12], blocks=[1, 1]), faces[1], CPU)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    split = task.open_split(*faces, "train")
    for _ in range(20):
        optimizer.zero_grad()
        task.loss(network.train(), split.batch(torch.arange(22), CPU)).backward()
        optimizer.step()
    return network.eval()


@pytest.fixture
def to_score(faces):
    return task.open_split(*faces, "test")


@torch.no_grad()
def one_by_one(function, faces) -> np.ndarray:
    """A function of each image alone, float64."""
    rows = [function(image[None].float())[0].double().numpy() for image in faces.images]
    return np.stack(rows)


def cosines(model, probes, gallery) -> np.ndarray:
    left, right = one_by_one(model.features, probes), one_by_one(model.features, gallery)
    return left @ right.T / np.linalg.norm(left, axis=1)[:, None] / np.linalg.norm(right, axis=1)


def midpoints(values) -> list[float]:
    values = sorted(set(np.ravel(values).tolist()))
    return [-np.inf, *((one + other) / 2 for one, other in zip(values, values[1:], strict=False)), np.inf]


# Rows.


def test_the_pack_is_split_as_asked(faces, to_score):
    assert {split: len(task.open_split(*faces, split)) for split in ("train", "val", "test")} == {
        "train": 22,
        "val": 10,
        "test": 15,
    }
    assert len(to_score.known) == 8
    assert {name: len(probes) for name, probes in to_score.probes.items()} == {"dev": 16, "test": 16}


def test_there_is_a_row_per_image_then_per_probe(faces, to_score, model):
    items, predictions = task.evaluate(model, to_score, CPU)
    probes = to_score.probes["test"]
    assert set(items) == {"image", "probe", "rank", "bucket", "scores", *OF_PROBES}
    assert {name: np.shape(values) for name, values in items.items()} == dict.fromkeys(items, (31,))
    assert items["image"].tolist() == [*to_score.files, *probes.files]
    assert len(set(items["image"].tolist())) == 31
    assert items["probe"].tolist() == [0] * 15 + [1] * 16
    types = [faces[1]["buckets"][faces[1]["identities"][label]] for label in to_score.labels]
    assert [("head", "mid", "tail")[number] for number in items["bucket"][:15]] == types
    assert len(set(types)) > 1
    assert (items["rank"][15:] == -1).all()
    assert (items["bucket"][15:] == -1).all()
    assert [len(scores) for scores in items["scores"]] == [0] * 15 + [8] * 16
    assert all((items[name][:15] == 0).all() for name in OF_PROBES)
    assert {name: (values.shape, values.dtype) for name, values in predictions.items()} == {
        "identity": ((15,), np.dtype(np.int32)),
        "answer": ((16,), np.dtype(np.int32)),
    }


def test_own_images_are_those_of_the_probes_identity(to_score, model):
    items, _ = task.evaluate(model, to_score, CPU)
    of_image = to_score.known.labels.tolist()
    for row, label in enumerate(to_score.probes["test"].labels.tolist(), start=15):
        first, count = items["own_first"][row], items["own_count"][row]
        assert list(range(first, first + count)) == [place for place, own in enumerate(of_image) if own == label]
    assert sorted(set(items["own_count"][15:].tolist())) == [0, 2]


@torch.no_grad()
def test_ranks_are_those_of_topk(to_score, model):
    items, predictions = task.evaluate(model, to_score, CPU)
    logits = model(to_score.images.float())
    order = logits.topk(5, dim=1).indices.tolist()
    expected = [own.index(label) for own, label in zip(order, to_score.labels.tolist(), strict=True)]
    assert items["rank"][:15].tolist() == expected
    assert predictions["identity"].tolist() == [own[0] for own in order]
    assert len(set(expected)) > 1
    for count, name in ((1, "top1"), (5, "top5")):
        hits = [label in own[:count] for own, label in zip(order, to_score.labels.tolist(), strict=True)]
        assert metrics(items)[name] == pytest.approx(np.mean(hits))


def constant(faces, bias: float) -> nn.Module:
    network = task.build_model(ResNet(architecture="small", widths=[8], blocks=[1]), faces[1], CPU).eval()
    nn.init.zeros_(network.head.weight)
    nn.init.constant_(network.head.bias, bias)
    return network


def test_of_equal_logits_the_first_comes_first(faces, to_score):
    items, predictions = task.evaluate(constant(faces, 0.3), to_score, CPU)
    assert items["rank"][:15].tolist() == to_score.labels.tolist()
    assert (predictions["identity"] == 0).all()


def test_logits_that_are_no_numbers_are_no_hits(faces, to_score):
    items, _ = task.evaluate(constant(faces, float("nan")), to_score, CPU)
    assert metrics(items)["top1"] <= 0.2


def test_dev_is_scored_without_probes_and_buckets(faces, model):
    without = {name: part for name, part in faces[1].items() if name != "buckets"}
    split = task.open_split(faces[0], without, "val")
    items, predictions = task.evaluate(model, split, CPU)
    assert set(items) == {"image", "probe", "rank"}
    assert (items["probe"] == 0).all()
    assert set(predictions) == {"identity"}
    assert set(metrics(items)) == {"top1", "top5"}


# Verification.


def test_scores_are_cosines_of_pooled_features(to_score, model):
    items, _ = task.evaluate(model, to_score, CPU)
    expected = cosines(model, to_score.probes["test"], to_score.known)
    np.testing.assert_allclose(np.stack(items["scores"][15:].tolist()), expected, atol=1e-5)
    assert items["scores"][15].dtype == np.float32
    assert expected.std() > 1e-3


def test_the_pair_threshold_is_the_best_on_dev(to_score, model):
    items, _ = task.evaluate(model, to_score, CPU)
    dev = to_score.probes["dev"]
    scores = cosines(model, dev, to_score.known)
    genuine = dev.labels.numpy()[:, None] == to_score.known.labels.numpy()

    def balanced(threshold: float) -> float:
        return ((scores[genuine] >= threshold).mean() + (scores[~genuine] < threshold).mean()) / 2

    (found,) = set(items["pair_threshold"][15:].tolist())
    assert balanced(found) == pytest.approx(max(map(balanced, midpoints(scores))))


def test_probes_are_identified_as_by_a_loop(to_score, model):
    """The nearest image's identity or, below the threshold that answers most probes of dev rightly, nobody."""
    items, predictions = task.evaluate(model, to_score, CPU)
    of_image = to_score.known.labels.tolist()

    def answers(name: str, threshold: float) -> list[int]:
        found = []
        for scores in cosines(model, to_score.probes[name], to_score.known).tolist():
            nearest = max(range(len(scores)), key=scores.__getitem__)
            found.append(of_image[nearest] if scores[nearest] >= threshold else -1)
        return found

    def right(threshold: float) -> int:
        own = zip(answers("dev", threshold), to_score.probes["dev"].labels.tolist(), strict=True)
        return sum(answer == label for answer, label in own)

    nearest = cosines(model, to_score.probes["dev"], to_score.known).max(1)
    threshold = max(midpoints(nearest), key=lambda at: (right(at), -at))
    expected = answers("test", threshold)
    labels = to_score.probes["test"].labels.tolist()
    assert predictions["answer"].tolist() == expected
    assert items["identified"][15:].tolist() == [
        int(answer == label) for answer, label in zip(expected, labels, strict=True)
    ]
    found = metrics(items)
    assert found["identification"] == pytest.approx(
        np.mean([one == two for one, two in zip(expected, labels, strict=True)])
    )
    assert found["identification_floor"] == pytest.approx(labels.count(-1) / 16) == 0.25


@pytest.fixture
def thresholds(monkeypatch):
    """Those chosen so far."""
    chosen = []
    for name in ("best_pair_threshold", "best_identification_threshold"):
        choose = getattr(verification, name)
        monkeypatch.setattr(
            verification, name, lambda *given, choose=choose: chosen.append(choose(*given)) or chosen[-1]
        )
    return chosen


def test_thresholds_are_chosen_on_dev_alone(to_score, model, thresholds):
    task.evaluate(model, to_score, CPU)
    test, dev = to_score.probes["test"], to_score.probes["dev"]
    test.images, test.labels = torch.randint(0, 256, test.images.shape, dtype=torch.uint8), test.labels.flip(0)
    task.evaluate(model, to_score, CPU)
    assert len(thresholds) == 4
    assert thresholds[:2] == thresholds[2:]
    dev.images, dev.labels = 255 - dev.images, dev.labels.roll(5)
    task.evaluate(model, to_score, CPU)
    assert thresholds[4:] != thresholds[:2]


def test_scoring_does_not_depend_on_the_size_of_batches(to_score, model, monkeypatch):
    expected, answers = task.evaluate(model, to_score, CPU)
    monkeypatch.setattr("bbnet.tasks.batches.EVALUATION_PIXELS", 4 * 24 * 24)
    found, others = task.evaluate(model, to_score, CPU)
    for name in ("rank", "identified", "own_first", "image"):
        assert found[name].tolist() == expected[name].tolist()
    assert all(np.array_equal(others[name], values) for name, values in answers.items())
    np.testing.assert_allclose(
        np.stack(found["scores"][15:].tolist()), np.stack(expected["scores"][15:].tolist()), atol=1e-5
    )


def test_scoring_leaves_no_gradient(to_score, model):
    model.zero_grad()
    task.evaluate(model, to_score, CPU)
    assert all(parameter.grad is None for parameter in model.parameters())


# Through a file.


def assert_survives(items, path, write_parquet) -> pd.DataFrame:
    write_parquet(path, items)
    back = pd.read_parquet(path)
    assert list(back.columns) == list(items)
    expected, found = metrics(items), metrics(back)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    weights = np.random.default_rng(0).integers(0, 3, (4, len(back)))
    for level, values in roc_points(items, weights).items():
        np.testing.assert_array_equal(roc_points(back, weights)[level], values)
    return back


def test_items_survive_their_file(to_score, model, tmp_path, write_parquet):
    items, _ = task.evaluate(model, to_score, CPU)
    back = assert_survives(items, tmp_path / "items.parquet", write_parquet)
    assert all(np.array_equal(one, other) for one, other in zip(back["scores"], items["scores"], strict=True))
    assert back["scores"].iloc[-1].dtype == np.float32


def test_seeds_have_a_curve_from_their_files(to_score, model, tmp_path, write_parquet):
    runs, draw = [], torch.Generator().manual_seed(0)
    for seed in range(2):
        for probes in to_score.probes.values():
            noise = torch.randint(-40, 41, probes.images.shape, generator=draw)
            probes.images = (probes.images + noise).clamp(0, 255).to(torch.uint8)
        runs.append(task.evaluate(model, to_score, CPU)[0])
        write_parquet(tmp_path / f"{seed}.parquet", runs[-1])
    tables = [pd.read_parquet(tmp_path / f"{seed}.parquet").assign(seed=seed) for seed in range(2)]
    found = curves_table(pd.concat(tables).assign(**dict.fromkeys(CELL_KEYS, "any")), roc_points)
    singles = [roc_points(items, np.ones(31)) for items in runs]
    assert found["point"].tolist() == list(singles[0])
    assert found["seeds"].tolist() == [[float(of_run[point]) for of_run in singles] for point in singles[0]]
    assert (found["low"] <= found["mean"]).all()
    assert found["high"].notna().all()


@pytest.mark.parametrize(("gallery", "gallery_images"), [(0, 1), (1, 2)])
def test_galleries_of_nobody_and_of_one(make_faces, model, tmp_path, write_parquet, gallery, gallery_images):
    target, index = make_faces(gallery=gallery, gallery_images=gallery_images)
    items, predictions = task.evaluate(model, task.open_split(target, index, "test"), CPU)
    probes = 3 * gallery + 4
    assert len(items["image"]) == 15 + probes
    assert [len(scores) for scores in items["scores"][15:]] == [gallery * gallery_images] * probes
    found = metrics(items)
    assert found["identification_floor"] == pytest.approx(4 / probes)
    if not gallery:
        assert (predictions["answer"] == -1).all()
        assert found["identification"] == 1
    assert set(predictions["answer"].tolist()) <= {-1, 0}
    assert np.isnan(found["auroc"]) == (gallery == 0)
    assert_survives(items, tmp_path / "items.parquet", write_parquet)


def test_without_any_probe_images_alone_are_scored(make_faces, model, tmp_path, write_parquet):
    target, index = make_faces(gallery=0, strangers=0)
    items, predictions = task.evaluate(model, task.open_split(target, index, "test"), CPU)
    assert len(items["image"]) == 15
    assert len(predictions["answer"]) == 0
    assert {"identification", "auroc"}.isdisjoint(metrics(items))
    write_parquet(tmp_path / "items.parquet", items)
    assert metrics(pd.read_parquet(tmp_path / "items.parquet")) == metrics(items)


# Training.


@pytest.mark.parametrize("head", ["arcface", pytest.param("linear", marks=pytest.mark.thorough)])
def test_a_few_steps_lower_the_loss(faces, head):
    settings = ResNet(architecture="small", widths=[8, 12], blocks=[1, 1], head=head)
    network = task.build_model(settings, faces[1], CPU).train()
    split = task.open_split(*faces, "train")
    training = FaceTraining(epochs=2, warm_up_epochs=1, learning_rate=0.1, batch_size=11)
    optimizer, drawing = torch.optim.Adam(network.parameters(), lr=0.01), torch.Generator().manual_seed(0)
    losses = []
    for _ in range(12):
        total = 0.0
        batches = split.batches(training, drawing)
        assert len(batches) == split.steps_per_epoch(training) == 2
        for indices in batches:
            optimizer.zero_grad()
            loss = task.loss(network, task.augment(split.batch(indices, CPU), training, drawing))
            loss.backward()
            optimizer.step()
            total += loss.item()
        losses.append(total)
    assert losses[-1] < 0.8 * losses[0]
