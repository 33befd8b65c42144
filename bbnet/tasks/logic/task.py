"""The didactic task: XOR and random DNF of bits, multilayer perceptrons, accuracy and steps to reach it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from bbnet.data.packs import Pack
from bbnet.tasks.logic.data import Batch, Inputs, fetch, prepare
from bbnet.tasks.logic.metrics import METRICS, SELECTION, metrics
from bbnet.tasks.logic.model import MultilayerPerceptron, slabs
from bbnet.tasks.logic.settings import FORMULAS, Settings
from bbnet.tasks.logic.settings import LogicTraining as TrainingSettings
from bbnet.tasks.logic.settings import Perceptron as ModelSettings
from bbnet.tasks.task import Items


def open_split(prepared: Path, index: Mapping[str, Any], split: str) -> Inputs:
    return Inputs(prepared, split)


def build_model(settings: ModelSettings, index: Mapping[str, Any], device: torch.device) -> nn.Module:
    return MultilayerPerceptron(settings, index["bits"]).to(device)


def example_inputs(index: Mapping[str, Any], device: torch.device) -> tuple[Tensor, ...]:
    return (torch.zeros(1, index["bits"], device=device),)


def random_batch(settings: Settings, pack: Pack | None, device: torch.device) -> tuple[dict[str, Any], Batch]:
    inputs, labels = (
        torch.randint(2, (settings.training.batch_size, columns), dtype=torch.uint8)
        for columns in (settings.data.bits, len(FORMULAS))
    )
    return {"bits": settings.data.bits}, Batch(inputs.to(device), labels.to(device))


def augment(batch: Batch, training: TrainingSettings, generator: torch.Generator) -> Batch:
    """There are no variants of an input."""
    return batch


def valid_positions(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """There is no padding."""
    return {}


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """Returns the binary cross-entropy of the model's formula."""
    return functional.binary_cross_entropy_with_logits(model(batch.inputs), batch.labels[:, model.label].float())


@torch.no_grad()
def evaluate(model: nn.Module, split: Inputs, device: torch.device) -> tuple[Items, Items]:
    """Returns one row per input, `input`, its number, and `right`, 0 or 1; and the predictions, `true` uint8 [inputs].

    A logit that is not a number is wrong.
    """
    right, predicted = [], []
    for indices in split.in_order():
        batch = split.batch(indices, device)
        logits, label = model(batch.inputs), batch.labels[:, model.label].bool()
        right.append(torch.where(label, logits > 0, logits <= 0))
        predicted.append(logits > 0)
    names = np.array([str(number) for number in range(len(split))])
    rows, answers = (torch.cat(parts).cpu().numpy().astype(np.uint8) for parts in (right, predicted))
    return {"input": names, "right": rows}, {"true": answers}
