"""Draws formulas and inputs, computes their labels and serves both in batches."""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bbnet.data.packs import DOWNLOADS
from bbnet.data.store import open_array
from bbnet.data.synthetic.formulas import FILE, SPLITS, dnf_values, write, xor_values
from bbnet.tasks import batches
from bbnet.tasks.logic.settings import FORMULAS, LogicTraining
from bbnet.tasks.task import Trained

AT_ONCE = 4096


def fetch(
    data: Mapping[str, Any], target: Path, downloads: Path = DOWNLOADS, test_only: bool = False
) -> dict[str, Any]:
    """Draws the inputs and formulas into `target`, all of them in any case; returns their manifest."""
    counts = {split: data[split] for split in SPLITS}
    write(target, counts=counts, **{key: data[key] for key in ("seed", "bits", "xor_bits", "dnf_literals")})
    return {"pack": data["pack"]}


def prepare(
    manifest: Mapping[str, Any], settings: Mapping[str, Any], target: Path, trained: Trained | None = None
) -> dict[str, Any]:
    """Writes `{split}_inputs.npy`, uint8 [inputs, bits], and `{split}_labels.npy`, uint8 [inputs, formulas].

    Returns the index: number of bits, the formulas, and the share of inputs with which each is true, by split.
    Raises: ValueError if the formulas are not those that a network was trained on.
    """
    root = Path(manifest["root"])
    formulas = json.loads((root / FILE).read_text(encoding="utf-8"))
    if trained is not None and formulas != trained.index["formulas"]:
        raise ValueError(f"{root / FILE}: its formulas are not those that the run has learned")
    variables, wanted = (np.array(formulas["dnf"][name]) for name in ("variables", "wanted"))
    index: dict[str, Any] = {"formulas": formulas, "true": {}}
    for split in SPLITS if trained is None else ("test",):
        inputs = np.load(root / f"{split}.npy")
        values = {"xor": xor_values(inputs, formulas["xor"]), "dnf": dnf_values(inputs, variables, wanted)}
        labels = np.stack([values[name] for name in FORMULAS], axis=1).astype(np.uint8)
        np.save(target / f"{split}_inputs.npy", inputs)
        np.save(target / f"{split}_labels.npy", labels)
        index["true"][split] = dict(zip(FORMULAS, labels.mean(0).tolist(), strict=True))
    return index | {"bits": settings["data"]["bits"]}


@dataclass(frozen=True)
class Batch(batches.Batch):
    """Inputs uint8 [batch, bits], and labels uint8 [batch, formulas], in the order of `settings.FORMULAS`."""

    inputs: Tensor
    labels: Tensor


class Inputs:
    """The inputs of one split and their labels."""

    ARRAYS = ("inputs", "labels")

    def __init__(self, prepared: Path, split: str) -> None:
        self.inputs, self.labels = (
            torch.from_numpy(open_array(prepared / f"{split}_{name}.npy")) for name in self.ARRAYS
        )

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor, device: torch.device) -> Batch:
        indices = indices.to(self.labels.device, non_blocking=True)
        return Batch(self.inputs[indices], self.labels[indices]).to(device)

    def steps_per_epoch(self, training: LogicTraining) -> int:
        return training.epoch_steps

    def batches(self, training: LogicTraining, generator: torch.Generator) -> list[Tensor]:
        """Returns the indices of different inputs, drawn from all of them."""
        return batches.shuffled_batches(len(self), training, generator)[: training.epoch_steps]

    def part(self, number: int, count: int) -> "Inputs":
        part, rows = copy.copy(self), batches.rows_of_part(len(self), number, count)
        part.inputs, part.labels = self.inputs[rows], self.labels[rows]
        return part

    def in_order(self) -> list[Tensor]:
        return list(torch.arange(len(self)).split(AT_ONCE))
