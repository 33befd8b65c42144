"""Classification of images: CIFAR-10, folders of classes, rendered objects; ResNets; top-1, likelihood, calibration."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from bbnet.data.packs import Pack
from bbnet.tasks.buckets import bucket_numbers
from bbnet.tasks.classification.augmentation import MixedImages, augmented
from bbnet.tasks.classification.data.batches import Batch, Images
from bbnet.tasks.classification.data.pack import fetch
from bbnet.tasks.classification.data.prepare import prepare
from bbnet.tasks.classification.metrics import METRICS, SELECTION, metrics
from bbnet.tasks.classification.model import Classifier, slabs, without_decay
from bbnet.tasks.classification.settings import ClassificationTraining as TrainingSettings
from bbnet.tasks.classification.settings import Model as ModelSettings
from bbnet.tasks.classification.settings import Settings
from bbnet.tasks.task import Items


class ImagesToScore(Images):
    """The images of test.

    Attributes:
        buckets: bucket of each class: 0, 1 or 2 for Head, Mid or Tail, or -1 for none.
        large: the same images at `large_size`, if that is set.
    """

    def __init__(self, prepared: Path, index: Mapping[str, Any]) -> None:
        super().__init__(prepared, index, "test")
        self.large: Images | None = None
        if index.get("large_size") is not None:
            self.large = Images(prepared, {**index, "input_size": index["large_size"]}, "test")
        self.buckets = bucket_numbers(index["buckets"], index["classes"])


def open_split(prepared: Path, index: Mapping[str, Any], split: str) -> Images:
    return ImagesToScore(prepared, index) if split == "test" else Images(prepared, index, split)


def build_model(settings: ModelSettings, index: Mapping[str, Any], device: torch.device) -> nn.Module:
    model = Classifier(settings, len(index["classes"]), index["mean"], index["sd"])
    return model.to(device, memory_format=torch.channels_last)


def example_inputs(index: Mapping[str, Any], device: torch.device) -> tuple[Tensor, ...]:
    return (torch.zeros(1, 3, index["input_size"], index["input_size"], device=device),)


def random_batch(settings: Settings, pack: Pack | None, device: torch.device) -> tuple[dict[str, Any], Batch]:
    classes = settings.data.class_count(pack)
    images = torch.randint(0, 256, (settings.training.batch_size, 3, settings.size, settings.size), dtype=torch.uint8)
    labels = torch.randint(classes, (len(images),))
    index = {"classes": [""] * classes, "mean": [127.0] * 3, "sd": [64.0] * 3, "input_size": settings.seen_size}
    return index, Batch(images.to(device), labels.to(device), settings.seen_size)


def augment(batch: Batch, training: TrainingSettings, generator: torch.Generator) -> Batch | MixedImages:
    return augmented(batch, training.augmentation, generator)


def valid_positions(model: nn.Module, batch: Batch | MixedImages) -> dict[str, Tensor]:
    """All positions are valid."""
    return {}


def loss(model: nn.Module, batch: Batch | MixedImages) -> Tensor:
    """Returns the cross-entropy with label smoothing; of mixed images, with the target mixed by the same shares."""
    logits, smoothing = model(batch.images.float()), model.settings.label_smoothing
    if not isinstance(batch, MixedImages):
        return functional.cross_entropy(logits, batch.labels, label_smoothing=smoothing)
    own, other = (
        functional.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
        for labels in (batch.labels, batch.others)
    )
    return (batch.shares * own + (1 - batch.shares) * other).mean()


@torch.no_grad()
def evaluate(model: nn.Module, split: Images, device: torch.device) -> tuple[Items, Items]:
    """Returns a table with one row per image, and the predictions.

    A row has `image`, the file; `label`; `rank`, the number of classes that rank before the right one; `confidence`,
    the probability of the predicted class; `nll`, the negative log-likelihood of the right class in nats; and on test
    `bucket`, 0 to 2 for Head, Mid and Tail, or -1 for a class in no bucket, and, if test is also scored at a larger
    size, `rank_large`. The predictions are `class` int32 [images].
    """
    rows, predicted = _scores(model, split, device)
    items: dict[str, Any] = {"image": np.array(split.files), "label": split.labels.cpu().numpy()} | rows
    if isinstance(split, ImagesToScore):
        items["bucket"] = split.buckets[items["label"]]
        if split.large is not None:
            items["rank_large"] = _scores(model, split.large, device)[0]["rank"]
    return items, {"class": predicted.astype(np.int32)}


def _scores(model: nn.Module, split: Images, device: torch.device) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Returns rank, confidence and likelihood of each image, and its predicted class."""
    rows: dict[str, list[Tensor]] = {"rank": [], "confidence": [], "nll": []}
    predicted = []
    for indices in split.in_order():
        batch = split.batch(indices, device)
        logs = model(batch.images.float()).float().log_softmax(1)
        own = logs.gather(1, batch.labels[:, None])
        before = torch.arange(logs.shape[1], device=device) < batch.labels[:, None]
        # Written with a negation, so that a NaN among the logits does not count as a hit.
        rows["rank"].append((~(logs < own) & ((logs != own) | before)).sum(1))
        best, of_best = logs.max(1)
        rows["confidence"].append(best.exp())
        rows["nll"].append(-own[:, 0])
        predicted.append(of_best)
    found = {name: torch.cat(values).cpu().numpy() for name, values in rows.items()}
    return found, torch.cat(predicted).cpu().numpy()
