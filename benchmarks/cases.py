"""Benchmark cases: each task at the size of the default study and of the paper, on synthetic data."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from pydantic import BaseModel
from torch import nn

from bbnet.sparsity.slab import Slab, choose_slabs
from bbnet.study.config import read_study
from bbnet.tasks import task as tasks
from bbnet.tasks.batches import Batch
from bbnet.training.step import resolve_precision
from bbnet.training.trainer import Trainer

ROOT = Path(__file__).parent.parent
# Data with the paper's image size and utterance length. CPU batches are small, so that a step takes seconds.
PAPER: dict[str, dict[str, Any]] = {
    "asr": {"data": {"pack": "spoken_words", "train": 48, "val": 2, "test": 2, "shortest": 20, "longest": 20}},
    "change": {"data": {"pack": "aerial_scenes", "size": 1024, "train": 4, "val": 1, "test": 1}},
    "face": {
        "data": {
            "pack": "rendered_faces",
            "size": 224,
            "identities": 16,
            "train": 96,
            "val": 1,
            "test": 1,
            "gallery": 4,
            "probes": 1,
            "strangers": 4,
        }
    },
}
CPU_BATCHES = {"asr": {"batch_seconds": 12}, "change": {"batch_size": 2}, "face": {"batch_size": 2}}


@dataclass
class Case:
    """A task with its settings, and with data once `make` has been called.

    Args:
        steps: number of steps to time in each kind of loop.
        every: number of steps from one refresh to the next.
    """

    title: str
    name: str
    settings: BaseModel
    steps: int
    every: int
    device: torch.device
    folder: Path

    def make(self) -> "Case":
        """Generates and prepares the data."""
        raw = self.folder / "raw"
        raw.mkdir(parents=True)
        self.prepared.mkdir()
        manifest = self.task.fetch(self.settings.data.model_dump(), raw) | {"root": str(raw)}
        index = self.task.prepare(manifest, self.settings.model_dump(), self.prepared)
        (self.folder / "made.json").write_text(json.dumps({"manifest": manifest, "index": index}), encoding="utf-8")
        return self

    @property
    def task(self) -> ModuleType:
        return tasks.load(self.name)

    @property
    def prepared(self) -> Path:
        return self.folder / "prepared"

    @property
    def precision(self) -> torch.dtype:
        return resolve_precision("auto", self.device)

    @cached_property
    def manifest(self) -> dict[str, Any]:
        return json.loads((self.folder / "made.json").read_text(encoding="utf-8"))["manifest"]

    @cached_property
    def index(self) -> dict[str, Any]:
        return json.loads((self.folder / "made.json").read_text(encoding="utf-8"))["index"]

    def trainer(self) -> Trainer:
        (model,) = self.settings.models.values()
        return Trainer(
            self.task,
            model,
            self.settings.training,
            self.prepared,
            self.index,
            0,
            self.device,
            precision=self.precision,
        )

    def slabs(self, model: nn.Module, side: str, budget: str = "0.50") -> list[Slab]:
        return choose_slabs(model, self.task.slabs(model, self.settings.slabs, side), Decimal(budget))[0]

    def batch(self, trainer: Trainer) -> Batch:
        """Returns the batch of median size."""
        split = trainer.feed.split
        batches = split.batches(self.settings.training, torch.Generator().manual_seed(0))
        return split.batch(sorted(batches, key=len)[len(batches) // 2], self.device)


def default_case(name: str, device: torch.device, folder: Path) -> Case:
    settings = read_study("demo", ROOT / "studies").task_settings()[name]
    return Case(f"{name}, default", name, settings, 200, 10, device, folder).make()


def paper_case(name: str, device: torch.device, folder: Path) -> Case:
    return Case(f"{name}, paper", name, _paper_settings(name, device), 20, 4, device, folder).make()


def small_model_case(name: str, device: torch.device, folder: Path) -> Case:
    """Returns a case with the default study's model on images of the paper's size."""
    small = read_study("demo", ROOT / "studies").task_settings()[name]
    settings = _paper_settings(name, device, models=small.models, slabs=small.slabs)
    return Case(f"{name}, default model at paper image size", name, settings, 12, 6, device, folder).make()


def _paper_settings(name: str, device: torch.device, **changes: Any) -> BaseModel:
    paper = read_study("paper", ROOT / "studies").task_settings()[name]
    content: dict[str, Any] = paper.model_dump(exclude_unset=True) | PAPER[name]
    content |= {key: _dumped(value) for key, value in changes.items()}
    for model in content["models"].values():
        model.pop("weights", None)
    if device.type == "cpu":
        content["training"] |= CPU_BATCHES[name]
    return type(paper).model_validate(content)


def _dumped(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(exclude_unset=True)
    return {key: _dumped(each) for key, each in value.items()} if isinstance(value, Mapping) else value
