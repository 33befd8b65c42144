"""Face identification and verification: the face pack's layout, bottleneck ResNets, top-1, AUROC, EER."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from bbnet.data.packs import Pack
from bbnet.tasks.face import verification
from bbnet.tasks.face.augmentation import augmented
from bbnet.tasks.face.data.batches import Batch, Faces, FacesToScore
from bbnet.tasks.face.data.pack import fetch
from bbnet.tasks.face.data.prepare import prepare
from bbnet.tasks.face.metrics import METRICS, SELECTION, metrics
from bbnet.tasks.face.model import FaceNetwork, load_pretrained, slabs
from bbnet.tasks.face.settings import FaceTraining as TrainingSettings
from bbnet.tasks.face.settings import ResNet as ModelSettings
from bbnet.tasks.face.settings import Settings
from bbnet.tasks.task import Items


def open_split(prepared: Path, index: Mapping[str, Any], split: str) -> Faces:
    return FacesToScore(prepared, index) if split == "test" else Faces(prepared, index, split)


def build_model(settings: ModelSettings, index: Mapping[str, Any], device: torch.device) -> nn.Module:
    model = FaceNetwork(settings, len(index["identities"]), index["mean"], index["sd"])
    return model.to(device, memory_format=torch.channels_last)


def example_inputs(index: Mapping[str, Any], device: torch.device) -> tuple[Tensor, ...]:
    return (torch.zeros(1, 3, index["size"], index["size"], device=device),)


def random_batch(settings: Settings, pack: Pack | None, device: torch.device) -> tuple[dict[str, Any], Batch]:
    people = pack.counts["identities"] if pack else settings.data.identities
    images = torch.randint(0, 256, (settings.training.batch_size, 3, settings.size, settings.size), dtype=torch.uint8)
    labels = torch.randint(people, (len(images),))
    index = {"identities": [""] * people, "mean": [127.0] * 3, "sd": [64.0] * 3, "size": settings.size}
    return index, Batch(images.to(device), labels.to(device))


def augment(batch: Batch, training: TrainingSettings, generator: torch.Generator) -> Batch:
    return Batch(augmented(batch.images, training.augmentation, generator), batch.labels)


def valid_positions(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """All positions are valid."""
    return {}


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """Returns the cross-entropy with label smoothing and, with an ArcFace head in training mode, with its margin."""
    margin_of = batch.labels if model.settings.head == "arcface" and model.training else None
    logits = model(batch.images.float(), margin_of)
    return functional.cross_entropy(logits, batch.labels, label_smoothing=model.settings.label_smoothing)


@torch.no_grad()
def evaluate(model: nn.Module, split: Faces, device: torch.device) -> tuple[Items, Items]:
    """Returns a table with one row per image to classify and, on test, per probe; and the predictions.

    All rows have `image`, the file, and `probe`, 0 or 1. Images to classify have `rank`, the number of identities that
    rank before the right one, and `bucket`, 0 to 2 for Head, Mid and Tail. Probes have `identified`, whether the
    answer is right; `scores`, the cosines with every image of the gallery; `own_first` and `own_count`, the position
    and number of those of the probe's identity; and `pair_threshold`, chosen on dev. Other columns are -1, 0 or empty.

    The predictions are `identity` int32 [images], the predicted label, and `answer` int32 [probes], the predicted
    person of the gallery or -1 for nobody.
    """
    ranks, predicted = ([torch.zeros(0, dtype=torch.int64)] for _ in range(2))  # there may be no images to classify
    for indices in split.in_order():
        batch = split.batch(indices, device)
        logits = model(batch.images.float())
        own = logits.gather(1, batch.labels[:, None])
        before = torch.arange(logits.shape[1], device=device) < batch.labels[:, None]
        # Written with a negation, so that a NaN among the logits does not count as a hit.
        ranks.append((~(logits < own) & ((logits != own) | before)).sum(1).cpu())
        predicted.append(logits.argmax(1).cpu())
    probe = np.zeros(len(split), dtype=np.int64)
    items: dict[str, Any] = {"image": np.array(split.files), "probe": probe, "rank": torch.cat(ranks).numpy()}
    predictions = {"identity": torch.cat(predicted).numpy().astype(np.int32)}
    if not isinstance(split, FacesToScore):
        return items, predictions
    items["bucket"] = split.buckets[split.labels.numpy()]
    of_probes, predictions["answer"] = _identify(model, split, device)
    return _joined(items, of_probes), predictions


def _identify(model: nn.Module, split: FacesToScore, device: torch.device) -> tuple[dict[str, Any], np.ndarray]:
    """Returns the rows of the probes of test, with thresholds chosen on the probes of dev, and the answers."""
    gallery, of_image = _embedded(model, split.known, device), split.known.labels.numpy()
    scores = {name: (_embedded(model, each, device) @ gallery.T).cpu().numpy() for name, each in split.probes.items()}
    labels = {name: each.labels.numpy() for name, each in split.probes.items()}
    nearest = {name: _nearest(scores[name], of_image) for name in scores}
    found, top = nearest["dev"]
    dev = labels["dev"]
    threshold = verification.best_identification_threshold(top, found == dev, dev == -1)
    pair_threshold = verification.best_pair_threshold(scores["dev"].ravel(), (of_image == dev[:, None]).ravel())
    found, top = nearest["test"]
    answers = np.where(top >= threshold, found, -1).astype(np.int32)
    probes = len(answers)
    rows = {
        "image": np.array(split.probes["test"].files),
        "probe": np.ones(probes, dtype=np.int64),
        "rank": np.full(probes, -1),
        "bucket": np.full(probes, -1),
        "identified": (answers == labels["test"]).astype(np.int64),
        "own_first": np.searchsorted(of_image, labels["test"]),
        "own_count": (of_image == labels["test"][:, None]).sum(1),
        "pair_threshold": np.full(probes, pair_threshold),
        "scores": scores["test"],
    }
    return rows, answers


def _embedded(model: nn.Module, faces: Faces, device: torch.device) -> Tensor:
    """Returns the features scaled to unit length, float32 [images, features], on the device."""
    found = [torch.zeros(0, model.head.weight.shape[1], device=device)]
    for indices in faces.in_order():
        images = faces.batch(indices, device).images.float()
        found.append(functional.normalize(model.features(images)))
    return torch.cat(found)


def _nearest(scores: np.ndarray, of_image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns label and score of each probe's nearest image in the gallery; -1 and -inf if the gallery is empty."""
    if not scores.shape[1]:
        return np.full(len(scores), -1), np.full(len(scores), -np.inf)
    place = scores.argmax(1)
    return of_image[place], scores[np.arange(len(scores)), place]


def _joined(items: Mapping[str, np.ndarray], of_probes: Mapping[str, Any]) -> dict[str, Any]:
    """Concatenates the rows of images and probes into one table."""
    images, probes = len(items["image"]), len(of_probes["image"])
    joined: dict[str, Any] = {name: np.concatenate([values, of_probes[name]]) for name, values in items.items()}
    for name in ("identified", "own_first", "own_count", "pair_threshold"):
        joined[name] = np.concatenate([np.zeros(images, dtype=of_probes[name].dtype), of_probes[name]])
    scores = np.empty(images + probes, dtype=object)
    scores[:images] = [np.zeros(0, dtype=np.float32)] * images
    scores[images:] = list(of_probes["scores"])
    return joined | {"scores": scores}
