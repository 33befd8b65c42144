"""Detection of objects: VOC, rendered scenes; the hybrid detector; mean average precision."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bbnet.data.packs import Pack
from bbnet.models.hybrid_detector.detector import deployed, slabs, without_decay
from bbnet.models.hybrid_detector.outputs import Targets
from bbnet.tasks.buckets import bucket_numbers
from bbnet.tasks.detection.augmentation import augmented
from bbnet.tasks.detection.data.batches import Scenes, Split
from bbnet.tasks.detection.data.classes import NUMBERED
from bbnet.tasks.detection.data.pack import fetch
from bbnet.tasks.detection.data.prepare import prepare
from bbnet.tasks.detection.decoding import decode
from bbnet.tasks.detection.losses import detection_loss
from bbnet.tasks.detection.metrics import METRICS, SELECTION, metrics
from bbnet.tasks.detection.model import Detector
from bbnet.tasks.detection.panels import FALSE_ALARM, HIT, IGNORED
from bbnet.tasks.detection.scoring import Detections, Objects, as_column, match_table
from bbnet.tasks.detection.settings import LEAST_SCORE, MOST_DETECTIONS, OBJECT_SIDES, Settings
from bbnet.tasks.detection.settings import DetectionTraining as TrainingSettings
from bbnet.tasks.detection.settings import Model as ModelSettings
from bbnet.tasks.task import Items

OBJECTS_OF_A_RANDOM_IMAGE = 4


class ScoredSplit(Split):
    """The images of dev or test, with the settings of their scoring; of dev they are the defaults.

    Attributes:
        numbers: int64 [classes], the number of each class in tables of results.
        buckets: of test, int8 [classes], 0, 1 or 2 for Head, Mid or Tail, or -1 for none; of dev None.
    """

    def __init__(self, prepared: Path, index: Mapping[str, Any], part: str) -> None:
        super().__init__(prepared, index, part)
        self.detections: int = index.get("detections", MOST_DETECTIONS)
        self.least_score: float = index.get("least_score", LEAST_SCORE)
        self.object_sides = index.get("object_sides", OBJECT_SIDES)
        self.numbers = np.array([NUMBERED.index(name) for name in index["classes"]])
        self.buckets: np.ndarray | None = None
        if part == "test":
            self.buckets = bucket_numbers(index["buckets"], index["classes"]).astype(np.int8)


def open_split(prepared: Path, index: Mapping[str, Any], split: str) -> Split:
    return Split(prepared, index, split) if split == "train" else ScoredSplit(prepared, index, split)


def build_model(settings: ModelSettings, index: Mapping[str, Any], device: torch.device) -> nn.Module:
    model = Detector(settings, len(index["classes"]), index["mean"], index["sd"])
    return model.to(device, memory_format=torch.channels_last)


def example_inputs(index: Mapping[str, Any], device: torch.device) -> tuple[Tensor, ...]:
    return (torch.zeros(1, 3, index["size"], index["size"], device=device),)


def random_batch(settings: Settings, pack: Pack | None, device: torch.device) -> tuple[dict[str, Any], Scenes]:
    size, count, classes = settings.size, settings.training.batch_size, settings.data.classes
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)
    boxes = torch.rand(count, OBJECTS_OF_A_RANDOM_IMAGE, 4) * 0.4 + 0.2
    labels = torch.randint(len(classes), boxes.shape[:2])
    index = {"classes": list(classes), "mean": [127.0] * 3, "sd": [64.0] * 3, "size": size}
    return index, Scenes(images, boxes, labels).to(device)


def augment(batch: Scenes, training: TrainingSettings, generator: torch.Generator) -> Scenes:
    return augmented(batch, training.augmentation, generator)


def valid_positions(model: nn.Module, batch: Scenes) -> dict[str, Tensor]:
    """Queries for noised objects do not count, because evaluation has none. The grey around an image counts."""
    own = model.own_queries(batch.images, Targets(batch.boxes, batch.labels))
    return {} if own is None else {"decoder": own}


def loss(model: nn.Module, batch: Scenes) -> Tensor:
    """Returns the sum of the losses of all heads of the detector; see `detection_loss`."""
    targets = Targets(batch.boxes, batch.labels)
    return detection_loss(model(batch.images.float(), targets), targets)["total"]


@torch.no_grad()
def evaluate(model: nn.Module, split: ScoredSplit, device: torch.device) -> tuple[Items, Items]:
    """Returns a table with one row per image, and the predictions.

    A row has `image`, the file, and what `match_table` returns, with classes by their numbers in tables of results; on
    test also `object_bucket`, one element per object that is not difficult: 0 to 2 for Head, Mid and Tail, or -1.

    The predictions are, for all detections, best first, `boxes` float16 [images, detections, 4], left, top, right and
    bottom in shares of the letterboxed image; `scores` float16 and `labels` int16 [images, detections]; and `outcomes`
    int8, alike, at an overlap of .5: one of `HIT`, `FALSE_ALARM` and `IGNORED`, the last also of too low scores.
    """
    found: list[Detections] = []
    packed: dict[str, list[np.ndarray]] = {"boxes": [], "scores": [], "labels": []}
    for indices in split.in_order():
        output = model(split.batch(indices, device).images.float())
        scores, labels, boxes = (each.cpu().numpy() for each in decode(output, split.detections))
        in_pixels = split.in_pixels(slice(int(indices[0]), int(indices[-1]) + 1), boxes)
        for row in range(len(indices)):
            kept = scores[row] >= split.least_score
            found.append(Detections(in_pixels[row][kept], split.numbers[labels[row][kept]], scores[row][kept]))
        for name, values, kind in (("boxes", boxes, "f2"), ("scores", scores, "f2"), ("labels", labels, "i2")):
            packed[name].append(values.astype(kind))
    objects = [split.objects(image) for image in range(len(split))]
    numbered = [Objects(one.boxes, split.numbers[one.classes], one.difficult) for one in objects]
    items: dict[str, Any] = {"image": np.array(split.files)} | match_table(found, numbered, split.object_sides)
    if split.buckets is not None:
        items["object_bucket"] = as_column(split.buckets[one.classes[~one.difficult]] for one in objects)
    predictions = {name: np.concatenate(values) for name, values in packed.items()}
    return items, predictions | {"outcomes": _outcomes(items, predictions["labels"].shape)}


def _outcomes(items: Items, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the outcomes of the scored detections, which are the first ones of each image; see `evaluate`."""
    outcomes = np.full(shape, IGNORED, dtype=np.int8)
    for row, (hits, ignored) in enumerate(zip(items["detection_hits"], items["detection_ignored"], strict=True)):
        at_half = np.where(hits & 1, HIT, np.where(ignored & 1, IGNORED, FALSE_ALARM))
        outcomes[row, : len(at_half)] = at_half
    return outcomes
