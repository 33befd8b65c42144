"""The interface of a task. A task is the module `bbnet.tasks.{name}.task`, which provides these functions."""

import importlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from pydantic import BaseModel

from bbnet.analysis.metric import Metric
from bbnet.tasks.settings import Training

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from bbnet.data.packs import Pack
    from bbnet.sparsity.slab import Slab

Items = Mapping[str, np.ndarray]


class Trained(NamedTuple):
    """The prepared data that a network was trained on: their folder and index."""

    folder: Path
    index: Mapping[str, Any]


class Split(Protocol):
    """A split of the prepared data. `ARRAYS` names the attributes that hold its samples, at first memory-mapped."""

    ARRAYS: tuple[str, ...]

    def __len__(self) -> int: ...

    def batch(self, indices: "Tensor", device: "torch.device") -> Any:
        """Returns the samples at `indices`, int64 [batch] on the CPU, as a `batches.Batch` on the device."""

    def steps_per_epoch(self, training: Training) -> int:
        """Returns the number of batches of an epoch, which is the same for every epoch."""

    def batches(self, training: Training, generator: "torch.Generator") -> list["Tensor"]:
        """Returns the indices of each batch of an epoch, drawn with `generator`."""

    def in_order(self) -> list["Tensor"]:
        """Returns the indices of batches for evaluation, with every sample once."""

    def part(self, number: int, count: int) -> "Split":
        """Returns the items of one of `count` contiguous parts, from 0, as a split; for trainings on several devices.

        Not needed by tasks whose training settings have no `devices`.
        """


class Task(Protocol):
    """The functions and constants of `bbnet.tasks.{name}.task`."""

    METRICS: Mapping[str, Metric]
    SELECTION: str  # the dev metric that selects weights, one of METRICS
    ModelSettings: Any  # settings of one entry of `models`: a pydantic class, or a union of several
    TrainingSettings: type[Training]

    def fetch(self, data: Mapping[str, Any], target: Path, downloads: Path, test_only: bool = False) -> dict[str, Any]:
        """Creates or downloads the pack of the settings' `data` in `target`, or finds it elsewhere, and checks it.

        Downloads are kept in `downloads`. If `test_only`, the pack may lack what only training needs. Returns the
        manifest of the pack.
        """

    def prepare(
        self, manifest: Mapping[str, Any], settings: Mapping[str, Any], target: Path, trained: Trained | None = None
    ) -> dict[str, Any]:
        """Decodes the pack once into arrays in `target`, and returns their index.

        With `trained`, for `bbnet score`, only what scoring on test needs is prepared, with the labels, statistics and
        vocabulary of these data in place of the pack's own. Raises ValueError if the labels do not agree.
        """

    def open_split(self, prepared: Path, index: Mapping[str, Any], split: str) -> Split:
        """Returns the split `train`, `val` or `test`.

        For scoring on test `index` also contains `Settings.scoring`, and `buckets` if the task has them.
        """

    def build_model(self, settings: BaseModel, index: Mapping[str, Any], device: "torch.device") -> "nn.Module":
        """Returns the network on the device, with weights drawn from torch's global CPU generator."""

    def example_inputs(self, index: Mapping[str, Any], device: "torch.device") -> tuple["Tensor", ...]:
        """Returns the inputs of one sample, for counting FLOPs."""

    def slabs(self, model: "nn.Module", which: str, side: str) -> list["Slab"]:
        """Returns the candidates for sparsification on a side (`in`, `out` or `both`)."""

    def random_batch(self, settings: BaseModel, pack: "Pack | None", device: "torch.device") -> tuple[dict, Any]:
        """Returns a random batch of the size used in training, and the index as far as a network needs it.

        That is as far as `build_model` and `example_inputs` need it.

        `pack` is the published pack that `settings` (the task's `Settings`) name, if any.
        """

    def augment(self, batch: Any, training: Training, generator: "torch.Generator") -> Any:
        """Returns random variants of a training batch, on its device, which is also that of `generator`."""

    def valid_positions(self, model: "nn.Module", batch: Any) -> Mapping[str, "Tensor"]:
        """Returns masks of the positions that count for on-rates, by part of the model; of other parts all count.

        Padding does not count, nor what the model computes in training alone.
        """

    def loss(self, model: "nn.Module", batch: Any) -> "Tensor":
        """Returns the mean loss of a batch."""

    def evaluate(self, model: "nn.Module", split: Split, device: "torch.device") -> tuple[Items, Items]:
        """Returns one row of sufficient statistics per item, and the packed predictions."""

    def metrics(self, items: Items, weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Returns the metrics of items [..., n]. `weights` [..., n], such as bootstrap counts, are broadcast."""


# Optional parts of a task:
# - `without_decay(model)`, the parameters on which weight decay does not act, besides biases and norms;
# - `deployed(model)`, the network without what training alone calls, whose parameters and bytes are counted;
# - `load_pretrained(model, path)`, for models whose settings have `weights`, a pack of one file;
# - `metrics.relative_metrics(items, dense, weights)`, metrics relative to the dense run of the same seed;
# - `buckets.make_buckets(index)`, Head, Mid and Tail of the training data, with `metrics.BY_BUCKET` (test set -> bucket
#   -> relative metric), `metrics.bucket_sizes(items)` and `metrics.COUNTED`;
# - `verification` and `metrics.roc_points(items, weights)`, for an ROC curve;
# - `metrics.item_counts(items)`, how many items each metric counts, where not all of them;
# - `metrics.NOTE`, a remark on the models in the report;
# - `scaling`, `metrics.LEVEL` and `metrics.scaled(model)`, to count training steps to a level by the width of models;
# - `panels`, selected test cases, with `bbnet.plots.panels_{task}`.


def load(name: str) -> ModuleType:
    """Returns the task of that name."""
    return importlib.import_module(f"bbnet.tasks.{name}.task")


def relative_metrics(names: Iterable[str]) -> dict[str, Callable[..., dict[str, np.ndarray]]]:
    """Returns the functions `relative_metrics` of the tasks that have one."""
    return optional(names, "relative_metrics")


def optional(names: Iterable[str], function: str) -> dict[str, Callable]:
    """Returns an optional function of the metrics of each task that has it."""
    found = {name: getattr(load_metrics(name), function, None) for name in names}
    return {name: each for name, each in found.items() if each is not None}


def load_metrics(name: str) -> ModuleType:
    """Returns the torch-free module of a task's metrics.

    It has `METRICS`, `SELECTION`, `metrics`, and `PRIMARY`, the metrics that Pareto plots show and contrasts compare.
    """
    return importlib.import_module(f"bbnet.tasks.{name}.metrics")
