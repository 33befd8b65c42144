"""Batches on the device: from samples in its memory, or gathered one batch ahead by a thread."""

import copy
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import torch
from torch import Tensor

from bbnet.tasks.batches import Batch
from bbnet.tasks.task import Split

logger = logging.getLogger(__name__)
Resident = Literal["auto", "on", "off"]
RESIDENT_SHARE = 0.4  # of the free memory of a GPU, divided among the processes that share it


class Feed:
    """Provides the batches of one split on the device. Their content does not depend on where the samples are kept.

    Args:
        resident: `on` copies all samples to the device's memory at once. `off` leaves them in memory-mapped files, and
            a thread gathers the next batch while a step computes. `auto` is `on` on a GPU if they fit, else `off`; on a
            CPU they stay memory-mapped, which processes share, and are gathered on demand, without a thread.
        shared_by: number of processes that may share a GPU.
    """

    def __init__(self, split: Split, device: torch.device, resident: Resident = "auto", shared_by: int = 1) -> None:
        self.device = device
        on_gpu = device.type == "cuda"
        if resident == "auto" and on_gpu:
            fits = size(split) <= RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0] / shared_by
            resident = "on" if fits else "off"
            logger.info("%.0f MiB of samples %s on the GPU", size(split) / 2**20, "kept" if fits else "do not fit")
        self.split = moved(split, device) if resident == "on" else split
        self.fetches_ahead = resident == "off"

    def batches(self, indices: Sequence[Tensor]) -> Iterator[Batch]:
        """Yields one batch for each tensor of sample indices, int64 [batch]."""
        if self.fetches_ahead:
            return self._fetched_ahead(indices)
        return (self.split.batch(each, self.device) for each in indices)

    def _fetched_ahead(self, indices: Sequence[Tensor]) -> Iterator[Batch]:
        on_gpu = self.device.type == "cuda"
        copying = torch.cuda.Stream(self.device) if on_gpu else None

        def fetch(each: Tensor) -> tuple[Batch, Any]:
            batch = self.split.batch(each, torch.device("cpu"))
            if not on_gpu:
                return batch, None
            with torch.cuda.stream(copying):
                return batch.pin_memory().to(self.device), copying.record_event()

        with ThreadPoolExecutor(1, "feed") as thread:
            ahead = [thread.submit(fetch, each) for each in indices[:1]]
            for number in range(len(indices)):
                batch, copied = ahead.pop().result()
                ahead += [thread.submit(fetch, each) for each in indices[number + 1 : number + 2]]
                if on_gpu:
                    computing = torch.cuda.current_stream(self.device)
                    computing.wait_event(copied)
                    batch.record_stream(computing)
                yield batch


def size(split: Split) -> int:
    """Returns the number of bytes of all samples of a split."""
    return sum(getattr(split, name).nbytes for name in split.ARRAYS)


def moved(split: Split, device: torch.device) -> Split:
    """Returns a copy of a split whose samples are in the memory of the device."""
    copied = copy.copy(split)
    for name in split.ARRAYS:
        setattr(copied, name, getattr(split, name).to(device, copy=True))
    return copied
