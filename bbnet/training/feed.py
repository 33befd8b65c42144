"""How samples reach the device: they lie there, or a thread fetches them one batch ahead."""

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
RESIDENT_SHARE = 0.4  # of the free memory of a GPU, which the processes on it divide


class Feed:
    """Batches of one split, on the device. Where they come from changes no bit of them.

    Args:
        resident: `on` takes the samples into the device's memory at once. `off` leaves them in mapped files, where a
            thread gathers the next batch while a step computes. `auto` is `on` on a GPU where they fit; on a CPU they
            stay mapped and are gathered when asked for, since mapped files are memory that processes share.
        shared_by: processes that may share a GPU.
    """

    def __init__(self, split: Split, device: torch.device, resident: Resident = "auto", shared_by: int = 1) -> None:
        self.device = device
        on_gpu = device.type == "cuda"
        if resident == "auto" and on_gpu:
            fits = size(split) <= RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0] / shared_by
            resident = "on" if fits else "off"
            logger.info("%.0f MiB of samples %s on the GPU", size(split) / 2**20, "lie" if fits else "do not fit")
        self.split = moved(split, device) if resident == "on" else split
        self.fetches_ahead = resident == "off"

    def batches(self, indices: Sequence[Tensor]) -> Iterator[Batch]:
        """The batches of the samples at each of `indices`, int64 [batch]."""
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
    """Bytes of its samples."""
    return sum(getattr(split, name).nbytes for name in split.ARRAYS)


def moved(split: Split, device: torch.device) -> Split:
    """The same samples in the memory of the device."""
    copied = copy.copy(split)
    for name in split.ARRAYS:
        setattr(copied, name, getattr(split, name).to(device, copy=True))
    return copied
