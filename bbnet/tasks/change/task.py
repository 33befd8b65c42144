"""Change detection between two aerial images: LEVIR-CD's layout, FC-Siam-conc, F1 and IoU."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from bbnet.data.packs import Pack
from bbnet.tasks.change import model as fc_siam_conc
from bbnet.tasks.change.data import Batch, Tiles, fetch, prepare
from bbnet.tasks.change.metrics import METRICS, SELECTION, metrics
from bbnet.tasks.change.model import slabs
from bbnet.tasks.change.settings import FCSiamConc as ModelSettings
from bbnet.tasks.change.settings import Settings
from bbnet.tasks.settings import SharedBatchTraining as TrainingSettings
from bbnet.tasks.task import Items

TILES_BY_PLANE = 256  # pixels of a side


def open_split(prepared: Path, index: Mapping[str, Any], split: str) -> Tiles:
    return Tiles(prepared, index, split)


def build_model(settings: ModelSettings, index: Mapping[str, Any], device: torch.device) -> nn.Module:
    model = fc_siam_conc.FCSiamConc(settings.widths, index["mean"], index["sd"])
    return model.to(device, memory_format=layout(index["tile"], device))


def layout(tile: int, device: torch.device) -> torch.memory_format:
    """Returns the faster memory layout for convolutions.

    The weight gradients of large maps take a CPU without AVX-512 up to four times as long in channels-last (oneDNN).
    """
    by_plane = device.type == "cpu" and tile >= TILES_BY_PLANE
    return torch.contiguous_format if by_plane else torch.channels_last


def example_inputs(index: Mapping[str, Any], device: torch.device) -> tuple[Tensor, ...]:
    return (torch.zeros(1, 2, 3, index["tile"], index["tile"], device=device),)


def random_batch(settings: Settings, pack: Pack | None, device: torch.device) -> tuple[dict[str, Any], Batch]:
    size, tile = settings.training.batch_size, settings.tile
    images = torch.randint(0, 256, (size, 2, 3, tile, tile), dtype=torch.uint8)
    labels = (torch.rand(size, tile, tile) < 0.1).to(torch.uint8)
    return {"mean": [127.0] * 3, "sd": [64.0] * 3, "tile": tile}, Batch(images.to(device), labels.to(device))


def augment(batch: Batch, training: TrainingSettings, generator: torch.Generator) -> Batch:
    """Mirrors each pair, turns it by quarters and swaps its dates at random."""
    images, labels = batch.images, batch.labels
    coins = torch.rand(4, len(labels), generator=generator, device=labels.device) < 0.5
    mirror, flip, transpose, swap = (coin.reshape(-1, 1, 1) for coin in coins)

    def turn(tiles: Tensor, *lead: int) -> Tensor:
        choose = [coin.reshape(-1, *lead, 1, 1) for coin in (mirror, flip, transpose)]
        tiles = torch.where(choose[0], tiles.flip(-1), tiles)
        tiles = torch.where(choose[1], tiles.flip(-2), tiles)
        return torch.where(choose[2], tiles.transpose(-2, -1), tiles)

    images = torch.where(swap.reshape(-1, 1, 1, 1, 1), images.flip(1), images)
    return Batch(turn(images, 1, 1), turn(labels))


def valid_positions(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """All positions are valid."""
    return {}


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """Returns binary cross-entropy plus Dice loss, the latter over the whole batch."""
    logits = model(batch.images.float()).float()
    labels = batch.labels.float()
    shares = logits.sigmoid()
    dice = (2 * (shares * labels).sum() + 1) / (shares.sum() + labels.sum() + 1)
    return functional.binary_cross_entropy_with_logits(logits, labels) + 1 - dice


@torch.no_grad()
def evaluate(model: nn.Module, split: Tiles, device: torch.device) -> tuple[Items, Items]:
    """Returns pixel counts per image (`image`, `tp`, `fp`, `fn`, `tn`), and `changed`, packed bits [tiles, bytes].

    A pixel is predicted changed if its probability is at least 1/2.
    """
    counts, packed = [], []
    for indices in split.in_order():
        batch = split.batch(indices, device)
        predicted = model(batch.images.float()) >= 0
        true = batch.labels.bool()
        cases = [predicted & true, predicted & ~true, ~predicted & true, ~predicted & ~true]
        counts.append(torch.stack([case.sum((1, 2)) for case in cases]).cpu())
        packed.append(np.packbits(predicted.flatten(1).cpu().numpy(), axis=1))
    per_tile = torch.cat(counts, dim=1).numpy()
    per_image = np.add.reduceat(per_tile, split.starts[:-1], axis=1)
    items = {"image": np.array(split.names)} | dict(zip(("tp", "fp", "fn", "tn"), per_image, strict=True))
    return items, {"changed": np.concatenate(packed)}
