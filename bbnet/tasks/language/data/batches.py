"""Serves windows of tokens: for training from a random start, for scoring so that each token is scored once."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bbnet.data.store import open_array
from bbnet.tasks import batches
from bbnet.tasks.language.metrics import PARTS
from bbnet.tasks.language.settings import windows_per_epoch
from bbnet.tasks.settings import FixedBatchTraining

TOKENS_AT_ONCE, LOGITS_AT_ONCE = 2**14, 2**25  # of a batch in scoring


@dataclass(frozen=True)
class Batch(batches.Batch):
    """Windows of tokens, int64 [batch, length + 1], of which the first `length` are read and the last ones predicted.

    Of windows to score, `places` int64 [batch, length] is the place of each predicted token among those of the split,
    or -1 for one that another window scores, or that is padding. Training windows have none: all are predicted.
    """

    tokens: Tensor
    places: Tensor | None = None

    @property
    def inputs(self) -> Tensor:
        return self.tokens[:, :-1]

    @property
    def targets(self) -> Tensor:
        return self.tokens[:, 1:]

    @property
    def scored(self) -> Tensor | None:
        return None if self.places is None else self.places >= 0


class TrainingText:
    """The training tokens, int [tokens], of which a sample is the window that begins at its index, wherever that is.

    An epoch takes as many windows as fit one after another, the `windows`.
    """

    ARRAYS = ("tokens",)

    def __init__(self, prepared: Path, index: Mapping[str, Any]) -> None:
        self.context: int = index["context"]
        self.tokens = torch.from_numpy(open_array(prepared / "train.npy"))
        self.windows = windows_per_epoch(len(self.tokens) - 1, self.context)

    def __len__(self) -> int:
        return max(0, len(self.tokens) - self.context)

    def batch(self, indices: Tensor, device: torch.device) -> Batch:
        starts = indices.to(self.tokens.device, non_blocking=True)
        places = starts[:, None] + torch.arange(self.context + 1, device=starts.device)
        return Batch(self.tokens[places].long()).to(device)

    def steps_per_epoch(self, training: FixedBatchTraining) -> int:
        if self.windows < training.batch_size:
            raise ValueError(
                f"training.batch_size {training.batch_size} exceeds the {self.windows} windows of {self.context} "
                "tokens of the training text"
            )
        return self.windows // training.batch_size

    def batches(self, training: FixedBatchTraining, generator: torch.Generator) -> list[Tensor]:
        """Returns the starts of windows that follow each other without overlap, in random order.

        The first one begins at one of the first `context` tokens, drawn anew for each epoch.
        """
        first = torch.randint(self.context, (1,), generator=generator)
        order = torch.randperm(self.windows, generator=generator)
        return list((first + self.context * order).split(training.batch_size))[: self.steps_per_epoch(training)]

    def in_order(self) -> list[Tensor]:
        """Returns the starts of all windows of an epoch, from the first token."""
        return list((self.context * torch.arange(self.windows)).split(max(1, TOKENS_AT_ONCE // self.context)))


@dataclass(frozen=True)
class Windows:
    """Windows that score each token of documents once: `start`, the place of the first token that each reads.

    `length` is how many tokens it reads, and `skipped` how many of its predictions another window scores. All are
    int64 [windows], ordered by length, so that windows of a batch need little padding.
    """

    start: Tensor
    length: Tensor
    skipped: Tensor


def windows_of(starts: np.ndarray, context: int) -> Windows:
    """Returns the windows of documents.

    Each document is read from the token `END` before it, in windows that begin every context // 2 tokens until one
    reaches its end. The first window scores all of its predictions and a later one those that those before it did not
    reach, so that each of them has at least half of a context before it.

    Args:
        starts: int64 [documents + 1], the place of the first token of each document, and the end of the last.
    """
    stride = context // 2
    tokens = np.diff(starts)
    counts = 1 + np.maximum(0, -(-(tokens - context) // stride))
    document = np.repeat(np.arange(len(tokens)), counts)
    offset = stride * (np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts))
    length = np.minimum(context, tokens[document] - offset)
    skipped = np.where(offset > 0, context - stride, 0)
    order = np.argsort(-length, kind="stable")
    found = (starts[:-1][document] - 1 + offset, length, skipped)
    return Windows(*(torch.from_numpy(each[order]) for each in found))


class TextToScore:
    """The tokens of dev or test, of which a sample is a window.

    Attributes:
        documents: their names.
        bytes: int64 [documents], the bytes of their texts.
        starts: int64 [documents + 1], see `prepare`.
    """

    ARRAYS = ("tokens",)

    def __init__(self, prepared: Path, index: Mapping[str, Any], split: str) -> None:
        self.documents: list[str] = index["splits"][split]["documents"]
        self.bytes = np.array(index["splits"][split]["bytes"])
        self.starts = np.load(prepared / f"{split}_starts.npy")
        self.tokens = torch.from_numpy(open_array(prepared / f"{split}.npy"))
        self.windows = windows_of(self.starts, index["context"])
        self.tokens_at_once = min(TOKENS_AT_ONCE, LOGITS_AT_ONCE // index["tokens"]["vocabulary"])

    def __len__(self) -> int:
        return len(self.windows.start)

    def batch(self, indices: Tensor, device: torch.device) -> Batch:
        start, length, skipped = (
            each[indices.cpu()][:, None] for each in (self.windows.start, self.windows.length, self.windows.skipped)
        )
        place = torch.arange(int(length.max()) + 1)
        tokens = self.tokens[torch.where(place <= length, start + place, 0).to(self.tokens.device)].long()
        predicted = place[:-1]
        of_window = (predicted >= skipped) & (predicted < length)
        return Batch(tokens, torch.where(of_window, start + predicted, -1)).to(device)

    def in_order(self) -> list[Tensor]:
        longest = int(self.windows.length.max())
        return list(torch.arange(len(self)).split(max(1, self.tokens_at_once // longest)))

    def by_document(self, values: np.ndarray) -> np.ndarray:
        """Returns the sum over each document of values of predicted tokens, [tokens of the split - 1]."""
        return np.add.reduceat(values, self.starts[:-1] - 1)


class TestText(TextToScore):
    """The tokens of test.

    Attributes:
        buckets: the number of the bucket of each predicted token, [tokens - 1].
        floor: its negative log-likelihood by the n-gram model, float64 [tokens - 1]; None if there is no such model.
    """

    def __init__(self, prepared: Path, index: Mapping[str, Any]) -> None:
        super().__init__(prepared, index, "test")
        buckets = [PARTS.index(index["buckets"].get(name, "unseen")) for name in index["names"]]
        self.buckets = np.array(buckets)[self.tokens[1:].numpy()]
        floor = prepared / "floor.npy"
        self.floor = np.load(floor).astype(np.float64) if floor.is_file() else None
