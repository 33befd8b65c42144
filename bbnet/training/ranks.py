"""Training on several devices: one process for each, a rank, all of which hold the same weights and the same state.

A rank computes the gradients of its share of a batch, and every rank makes the step of their mean. Rank 0 is the
process of the job. It alone loads and saves states, writes results and heeds signals. It starts the other ranks with
its own command, unless a launcher such as torchrun has started all of them.
"""

import io
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn

from bbnet.data.process import end_with_parent
from bbnet.sparsity.ranks import mean_over_ranks, rank_count
from bbnet.sparsity.slab import BATCH_NORMS
from bbnet.training.devices import choose_devices, gpu_names
from bbnet.training.resume import STOP_SIGNALS

logger = logging.getLogger(__name__)
LOOPBACK = "127.0.0.1"
POLL_SECONDS = 0.1
# Within which rank 0 notices by itself that another rank has failed, as it does under gloo but not under NCCL.
NOTICE_SECONDS = 10.0
LONGEST_WAIT = timedelta(hours=1)  # for another rank, such as while rank 0 saves a state


def device_count(config: Mapping[str, Any]) -> int:
    """Returns the number of devices that a run trains on: one if the task has no such key, or if it only prunes."""
    return 1 if "dense" in config else config["training"].get("devices", 1)


def is_launched(count: int) -> bool:
    """Returns whether this process is one of `count` > 1 ranks that were started together.

    Raises: ValueError if another number was started.
    """
    if count == 1 or "RANK" not in os.environ:
        return False
    started = os.environ.get("WORLD_SIZE")
    if started != str(count):
        raise ValueError(f"training.devices is {count}, but WORLD_SIZE, the number of ranks started, is {started}")
    return True


def is_follower(count: int) -> bool:
    """Returns whether this process is a rank above 0 of `count`, which writes nothing."""
    return is_launched(count) and os.environ["RANK"] != "0"


def devices_of_job(wanted: str, gpu_slots: int, count: int) -> list[torch.device]:
    """Returns the device of this process and, if it starts the other ranks, theirs; see `choose_devices`.

    A rank that was started uses the GPU of the number LOCAL_RANK.
    """
    if not is_launched(count):
        return choose_devices(wanted, gpu_slots, count)
    number = int(os.environ.get("LOCAL_RANK", os.environ["RANK"]))
    return choose_devices(wanted, gpu_slots, number=number)


@contextmanager
def together(devices: Sequence[torch.device], count: int) -> Iterator[None]:
    """Joins `count` ranks inside a `with`; does nothing for one.

    Args:
        devices: those of `devices_of_job`.
    Raises: ValueError in rank 0 with the message of another rank, if that fails.
    """
    if count == 1:
        yield
    elif is_launched(count):
        if is_follower(count):
            _ignore_stop_signals()
        store, rank, _ = next(distributed.rendezvous("env://"))
        store.set(_ready(rank), "")
        with _joined(store, rank, count, devices[0]):
            try:
                yield
            except RuntimeError:
                # Perhaps because of a rank that failed before, whose message rank 0 should find first.
                time.sleep(NOTICE_SECONDS if rank else 0)
                raise
    else:
        with _Followers(devices) as followers, _joined(followers.store, 0, count, devices[0]):
            yield


@contextmanager
def _joined(store: distributed.Store, rank: int, count: int, device: torch.device) -> Iterator[None]:
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=LONGEST_WAIT)
    yield
    # Not after an error: another rank may still wait for this one, and NCCL would wait for it here.
    distributed.destroy_process_group()


def _ready(rank: int) -> str:
    return f"rank {rank} is ready"


def _ignore_stop_signals() -> None:
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _begin_as_follower(first: int) -> None:
    """Makes this process end with rank 0, of process id `first`, which alone heeds signals to all of a job."""
    _ignore_stop_signals()
    end_with_parent(signal.SIGKILL, first)


class _Followers:
    """The ranks above 0, which this process, rank 0, starts on entry, watches, and ends on exit.

    Attributes:
        store: in which the ranks find each other, at a free port of this machine.
    """

    def __init__(self, devices: Sequence[torch.device]) -> None:
        self.devices = devices
        self.processes: dict[int, subprocess.Popen] = {}
        self._outputs = {rank: tempfile.TemporaryFile() for rank in range(1, len(devices))}  # noqa: SIM115
        self._over = threading.Event()

    def __enter__(self) -> "_Followers":
        self.store = distributed.TCPStore(LOOPBACK, 0, is_master=True, wait_for_workers=False)
        shared = {"WORLD_SIZE": str(len(self.devices)), "MASTER_ADDR": LOOPBACK, "MASTER_PORT": str(self.store.port)}
        if sys.platform == "linux":
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        if self.devices[0].type == "cuda":
            names = gpu_names()
            shared["CUDA_VISIBLE_DEVICES"] = ",".join(names[device.index] for device in self.devices)
        environment = {name: value for name, value in os.environ.items() if name != "BBNET_PARENT"}
        for rank, output in self._outputs.items():
            self.processes[rank] = subprocess.Popen(
                [sys.executable, *sys.orig_argv[1:]],
                env=environment | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                preexec_fn=partial(_begin_as_follower, os.getpid()),
            )
        try:
            while not self.store.check([_ready(rank) for rank in self.processes]):
                for rank, process in self.processes.items():
                    if process.poll() is not None:
                        raise ValueError(self._said(rank))
                time.sleep(POLL_SECONDS)
        except BaseException:
            self._end()
            raise
        logger.info("training on %d devices", len(self.devices))
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        failed = None
        if isinstance(error, RuntimeError):  # as torch raises for a rank that does not answer any more
            failed = self._failed(within=NOTICE_SECONDS)
        self._end()
        if failed is not None:
            raise ValueError(self._said(failed)) from None

    def _end(self) -> None:
        self._over.set()
        for process in self.processes.values():
            process.kill()
            process.wait()

    def _watch(self) -> None:
        """Ends this process if a follower has failed and rank 0 does not notice, since it waits for its GPU."""
        while not self._over.wait(POLL_SECONDS):
            failed = self._failed()
            if failed is not None and not self._over.wait(2 * NOTICE_SECONDS):
                logger.error("error: %s", self._said(failed))
                os._exit(1)

    def _failed(self, within: float = 0.0) -> int | None:
        """Returns the rank of a follower that has failed or does so within some seconds, if any."""
        last = time.monotonic() + within
        while True:
            for rank, process in self.processes.items():
                if process.poll():
                    return rank
            if time.monotonic() >= last:
                return None
            time.sleep(POLL_SECONDS)

    def _said(self, rank: int) -> str:
        """Returns how a follower ended: by a signal, or with its error, else with the last line that it wrote."""
        status = self.processes[rank].returncode
        if status < 0:
            return f"rank {rank} of {len(self.devices)} was ended by {signal.Signals(-status).name}"
        self._outputs[rank].seek(0)
        lines = self._outputs[rank].read().decode(errors="replace").strip().splitlines() or [f"exit status {status}"]
        errors = [line.partition("] error: ")[2] for line in lines if "] error: " in line]
        return f"rank {rank} of {len(self.devices)} failed: {(errors or lines)[-1]}"


def own_rank() -> int:
    """Returns the number of this process among the ranks of its training; 0 if it trains alone."""
    return distributed.get_rank() if rank_count() > 1 else 0


def share_of(indices: Tensor) -> Tensor:
    """Returns the samples of a batch that this rank computes; the shares of ranks differ by at most one sample."""
    return indices.tensor_split(rank_count())[own_rank()]


def backward(model: nn.Module, loss: Tensor, share: float) -> Tensor:
    """Accumulates the gradients of the mean loss of a batch, and returns that loss.

    Running statistics of batch norms, which each rank computes of its own samples, become their means over ranks.

    Args:
        loss: mean loss of the samples of this rank.
        share: their share of all samples of the batch.
    """
    if rank_count() == 1:
        loss.backward()
        return loss.detach()
    scaled = loss * (share * rank_count())  # the mean of these over ranks is the mean over samples
    scaled.backward()
    mean = scaled.detach().clone()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norms = [norm for norm in model.modules() if isinstance(norm, BATCH_NORMS) and norm.running_mean is not None]
    _average([mean, *gradients, *(each for norm in norms for each in (norm.running_mean, norm.running_var))])
    return mean


@torch.no_grad()
def _average(tensors: Sequence[Tensor]) -> None:
    """Replaces tensors of one dtype by their means over ranks, which are exchanged at once."""
    joined = torch.cat([tensor.flatten() for tensor in tensors])
    mean_over_ranks(joined)
    parts = joined.split([tensor.numel() for tensor in tensors])
    torch._foreach_copy_(list(tensors), [part.view_as(each) for part, each in zip(parts, tensors, strict=True)])


def from_first(state: Mapping[str, Any] | None, device: torch.device) -> Mapping[str, Any] | None:
    """Returns the state of rank 0, of tensors and plain values, on every rank; what others give is ignored."""
    if rank_count() == 1:
        return state
    content = [None]
    if own_rank() == 0:
        file = io.BytesIO()
        torch.save(state, file)
        content = [file.getvalue()]
    distributed.broadcast_object_list(content, src=0)
    return state if own_rank() == 0 else torch.load(io.BytesIO(content[0]), map_location=device, weights_only=True)


def joined_items(items: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """Returns the rows of all ranks, in the order of ranks; those of a rank without any have no columns."""
    if rank_count() == 1:
        return items
    parts: list[Any] = [None] * rank_count()
    distributed.all_gather_object(parts, dict(items))
    filled = [part for part in parts if part]
    return {name: np.concatenate([part[name] for part in filled]) for name in filled[0]}
