"""Where samples lie changes no bit of a batch, and no step waits for the GPU."""

import threading
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from bbnet.tasks import batches
from bbnet.training.feed import RESIDENT_SHARE, Feed, moved, size

CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DEVICES = [CPU, pytest.param(torch.device("cuda"), marks=needs_gpu)]
ORDER = [torch.tensor(each) for each in ([4, 1], [0, 6], [5, 2], [3], [6, 6, 0])]


@dataclass(frozen=True)
class Batch(batches.Batch):
    samples: Tensor
    labels: Tensor
    names: tuple[str, ...] = ("not", "a tensor")


class Split:
    ARRAYS = ("samples", "labels")

    def __init__(self) -> None:
        self.samples = torch.arange(7 * 12, dtype=torch.uint8).reshape(7, 3, 4)
        self.labels = torch.arange(7)
        self.asked: list[list[int]] = []
        self.threads: set[str] = set()

    def batch(self, indices: Tensor, device: torch.device) -> Batch:
        self.asked.append(indices.tolist())
        self.threads.add(threading.current_thread().name)
        if indices.max() >= len(self.labels):
            raise IndexError(f"no sample {int(indices.max())}")
        rows = indices.to(self.labels.device)
        return Batch(self.samples[rows], self.labels[rows]).to(device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("resident", ["auto", "on", "off"])
def test_batches_are_the_same_and_in_order_wherever_samples_lie(resident, device):
    split = Split()
    fed = list(Feed(split, device, resident).batches(ORDER))
    assert [batch.labels.tolist() for batch in fed] == [each.tolist() for each in ORDER]
    for batch, indices in zip(fed, ORDER, strict=True):
        assert batch.samples.device.type == device.type
        assert torch.equal(batch.samples.cpu(), split.samples[indices])
        assert batch.names == ("not", "a tensor")


@pytest.mark.parametrize("resident", ["auto", "on", "off"])
def test_an_epoch_without_batches_is_empty(resident):
    assert list(Feed(Split(), CPU, resident).batches([])) == []


def test_a_thread_gathers_the_next_batch_while_one_is_used():
    split = Split()
    feed = Feed(split, CPU, "off").batches(ORDER)
    next(feed)
    next(feed)
    for thread in threading.enumerate():
        if thread.name.startswith("feed"):
            break
    else:
        pytest.fail("no thread fetches")
    feed.close()  # waits for what is under way
    assert split.asked == [each.tolist() for each in ORDER[:3]]
    assert all(name.startswith("feed") for name in split.threads)
    assert not any(thread.name.startswith("feed") for thread in threading.enumerate())


def test_what_goes_wrong_in_the_thread_ends_the_epoch_there():
    feed = Feed(Split(), CPU, "off").batches([ORDER[0], torch.tensor([7]), ORDER[1]])
    assert next(feed).labels.tolist() == [4, 1]
    with pytest.raises(IndexError, match="no sample 7"):
        next(feed)
    assert not any(thread.name.startswith("feed") for thread in threading.enumerate())


def test_resident_samples_are_a_copy_in_memory_and_the_split_keeps_its_own():
    split = Split()
    feed = Feed(split, CPU, "on")
    assert feed.split is not split
    assert feed.split.samples.data_ptr() != split.samples.data_ptr()
    split.samples.zero_()
    assert next(iter(feed.batches(ORDER))).samples.any()


def test_size_and_move_go_by_the_arrays_that_a_split_names():
    split = Split()
    assert size(split) == 7 * 12 + 7 * 8
    there = moved(split, torch.device("meta"))
    assert (there.samples.device.type, there.labels.device.type) == ("meta", "meta")
    assert split.samples.device.type == "cpu"


@pytest.mark.parametrize(("free", "shared_by", "lies_there"), [(1000, 1, True), (1000, 3, False), (300, 1, False)])
def test_auto_takes_samples_onto_a_gpu_where_they_fit(monkeypatch, free, shared_by, lies_there):
    assert RESIDENT_SHARE == 0.4  # of which 140 bytes are less than 400, and more than 133 or 120
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**9))
    monkeypatch.setattr("bbnet.training.feed.moved", lambda split, device: "moved")
    feed = Feed(Split(), torch.device("cuda"), "auto", shared_by)
    assert (feed.split == "moved", feed.fetches_ahead) == (lies_there, not lies_there)
