"""What a task provides. A task is the module `bbnet.tasks.{name}.task`, found by name; its functions are these."""

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from pydantic import BaseModel

from bbnet.tasks.settings import Training

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from bbnet.data.packs import Pack
    from bbnet.sparsity.slab import Slab

Items = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Metric:
    """Unit as printed ("share", "%"), which direction is better, and whether the table of results shows it."""

    unit: str
    better: Literal["higher", "lower"]
    shown: bool = True


class Split(Protocol):
    """One split of the prepared data; `ARRAYS` are the attributes that hold its samples, mapped files at first."""

    ARRAYS: tuple[str, ...]

    def __len__(self) -> int: ...

    def batch(self, indices: "Tensor", device: "torch.device") -> Any:
        """The samples at `indices` (int64 [batch], on the CPU), on the device: a `bbnet.tasks.batches.Batch`."""

    def steps_per_epoch(self, training: Training) -> int:
        """How many batches an epoch has, the same in each."""

    def batches(self, training: Training, generator: "torch.Generator") -> list["Tensor"]:
        """The indices of each batch of an epoch, drawn with `generator`."""

    def in_order(self) -> list["Tensor"]:
        """Every sample once, as indices of batches for evaluation."""


class Task(Protocol):
    """The functions and constants of `bbnet.tasks.{name}.task`."""

    METRICS: Mapping[str, Metric]
    SELECTION: str  # the dev metric that selects weights, one of METRICS
    ModelSettings: type[BaseModel]  # of one entry of `models`
    TrainingSettings: type[Training]

    def fetch(self, data: Mapping[str, Any], target: Path, downloads: Path) -> dict[str, Any]:
        """Makes the pack of the settings' `data` in `target`, or finds it; checks it and returns its manifest.

        What is downloaded for it stays in `downloads`.
        """

    def prepare(self, manifest: Mapping[str, Any], settings: Mapping[str, Any], target: Path) -> dict[str, Any]:
        """Decodes the pack once into arrays in `target`, and returns their index."""

    def open_split(self, prepared: Path, index: Mapping[str, Any], split: str) -> Split:
        """`train`, `val` or `test`.

        For scoring on test `index` has also what `Settings.scoring` says, and `buckets` where the task makes such.
        """

    def build_model(self, settings: BaseModel, index: Mapping[str, Any], device: "torch.device") -> "nn.Module":
        """The network on the device, its weights drawn from torch's global generator of the CPU."""

    def example_inputs(self, index: Mapping[str, Any], device: "torch.device") -> tuple["Tensor", ...]:
        """Inputs of one sample, for counting FLOPs."""

    def slabs(self, model: "nn.Module", which: str, side: str) -> list["Slab"]:
        """The candidates for sparsification on a side (`in`, `out` or `both`)."""

    def random_batch(self, settings: BaseModel, pack: "Pack | None", device: "torch.device") -> tuple[dict, Any]:
        """As much of an index as `build_model` needs, and a batch of the size that training uses, of random content.

        `pack` is the published one that `settings` (the task's `Settings`) name, if any.
        """

    def augment(self, batch: Any, training: Training, generator: "torch.Generator") -> Any:
        """Random variants of a training batch, on its device; `generator` is of that device."""

    def valid_positions(self, batch: Any) -> Mapping[str, "Tensor"]:
        """By name of a part of the model, which positions of its layers' outputs are no padding; all, where unnamed."""

    def loss(self, model: "nn.Module", batch: Any) -> "Tensor":
        """Mean loss of a batch."""

    def evaluate(self, model: "nn.Module", split: Split, device: "torch.device") -> tuple[Items, Items]:
        """One row of sufficient statistics per item, and the packed predictions."""

    def metrics(self, items: Items, weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Metrics of items [..., n]; `weights` [..., n], such as bootstrap counts, broadcast against them."""


# A task may have more: `load_pretrained(model, path)`, for models whose settings have `weights`, a pack of one file;
# `metrics.relative_metrics(items, dense, weights)`, those of METRICS that compare with the dense run of the same seed;
# `buckets.make_buckets(index)`, Head, Mid and Tail of the training data, written as JSON before anything is scored on
# test, with `metrics.BY_BUCKET` (test set -> bucket -> relative metric), `metrics.bucket_sizes(items)` and
# `metrics.COUNTED`; `verification` and
# `metrics.roc_points(items, weights)`, an ROC curve; `panels`, cases to look at, with `bbnet.plots.panels_{task}`.


def load(name: str) -> ModuleType:
    """The task of that name."""
    return importlib.import_module(f"bbnet.tasks.{name}.task")


def relative_metrics(names: Iterable[str]) -> dict[str, Callable[..., dict[str, np.ndarray]]]:
    """The functions of that name of the tasks that have one."""
    found = {name: getattr(load_metrics(name), "relative_metrics", None) for name in names}
    return {name: function for name, function in found.items() if function is not None}


def load_metrics(name: str) -> ModuleType:
    """The torch-free part of a task that knows its metrics: `METRICS`, `SELECTION`, `metrics`, and `PRIMARY`,
    those that Pareto plots show and contrasts are drawn of."""
    return importlib.import_module(f"bbnet.tasks.{name}.metrics")
