"""Timing of training loops: bbnet's, its upper limit, one that decodes files, and one with torch's own pruning."""

import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from cases import Case
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.data import DataLoader, Dataset

import bbnet
from bbnet.sparsity.sparsifier import METHODS, Sparsifier, sparsify
from bbnet.tasks.asr.data.batches import Batch as Utterances
from bbnet.tasks.asr.data.features import log_mel, read_audio
from bbnet.tasks.asr.data.tokens import PAD
from bbnet.tasks.batches import Batch
from bbnet.tasks.change.data import Batch as Pairs
from bbnet.tasks.face.data.batches import Batch as Faces
from bbnet.training.seeding import stream
from bbnet.training.step import forward, optimiser_step
from bbnet.training.trainer import Trainer

ALGORITHMS: dict[str, Mapping[str, Any]] = {name: method for name, method in METHODS.items() if name != "dense"} | {
    "magnitude, global": {"algorithm": "magnitude", "distribution": "global"},
    "set": {"algorithm": "set"},
    "random": {"algorithm": "random"},
    "wanda": {"algorithm": "wanda"},
}
IN_DEFAULT_STUDY = ("sp_in", "sp_out", "magnitude", "rigl")
SECONDS = 10
WORKERS = 2  # as in the released notebooks


def now(device: torch.device) -> float:
    """Synchronises with the device and returns the time."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    began = now(device)
    work()
    return now(device) - began


def fastest_quartile(times: Sequence[float]) -> float:
    fastest = sorted(times)[: max(1, len(times) // 4)]
    return sum(fastest) / len(fastest)


def time_refreshes(sparsifier: Sparsifier, device: torch.device) -> list[float]:
    """Returns a list to which the seconds of every later refresh are appended."""
    times: list[float] = []
    refresh = sparsifier._refresh
    sparsifier._refresh = lambda: times.append(seconds(refresh, device))
    return times


class Arm:
    """A model that trains on one batch, which stays on the device and is not augmented.

    Args:
        method: one of `ALGORITHMS`, `dense`, or `torch.prune` for random masks of half of each slab by torch's pruning.
    """

    def __init__(self, case: Case, method: str) -> None:
        torch.manual_seed(0)
        self.case = case
        self.trainer = case.trainer()
        self.model = self.trainer.model.train()
        self.batch = case.batch(self.trainer)
        task = case.task
        self.task = SimpleNamespace(augment=_not_augmented, loss=task.loss, valid_positions=task.valid_positions)
        self.sparsifier: Sparsifier | None = None
        self.refreshes: list[float] = []
        self.times: list[float] = []
        if method == "torch.prune":
            for slab in case.slabs(self.model, "in"):
                layer = self.model.get_submodule(slab.name)
                prune.custom_from_mask(layer, "weight", (torch.rand_like(layer.weight) < 0.5).to(layer.weight))
            self.trainer.optimizer = type(self.trainer.optimizer)(self.model.parameters(), lr=1e-3, fused=True)
        elif method != "dense":
            settings = ALGORITHMS[method]
            self.sparsifier = sparsify(
                self.model,
                self.trainer.optimizer,
                case.slabs(self.model, settings.get("side", "in")),
                settings,
                0.5,
                total_steps=10**6,
                ramp_end=0.0,
                every=case.every,
            )
            self.refreshes = time_refreshes(self.sparsifier, case.device)

    def step(self) -> float:
        return seconds(self._step, self.case.device)

    def _step(self) -> None:
        optimiser_step(
            self.task,
            self.model,
            self.trainer.optimizer,
            self.case.settings.training,
            self.batch,
            torch.Generator(),
            self.case.precision,
            self.sparsifier,
        )


def _not_augmented(batch: Any, *_: Any) -> Any:
    return batch


def overheads(case: Case, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Returns, per method, `ratio`, the time of the steps between refreshes relative to dense steps, timed alternately,
    and `refresh_ms`; for dense also `step_ms` and `every`, the number of steps from one refresh to the next."""
    arms = {"reference": Arm(case, "dense")} | {name: Arm(case, name) for name in names}
    for _ in range(case.steps + case.every - 1):
        for arm in arms.values():
            arm.times.append(arm.step())
    # Whole intervals between refreshes, so that on-rates are sampled at their usual frequency; the first is warm-up.
    intervals = range(case.every, case.steps, case.every)
    time_of = {
        name: [sum(arm.times[first : first + case.every - 1]) for first in intervals] for name, arm in arms.items()
    }
    # Each interval is compared with dense at the same time, because a noisy machine can be slow for minutes.
    figures = {
        name: {"ratio": median(mine / dense for mine, dense in zip(time_of[name], time_of["reference"], strict=True))}
        for name in names
    }
    for name in names:
        if arms[name].refreshes:
            figures[name]["refresh_ms"] = 1e3 * fastest_quartile(arms[name].refreshes)
    figures["dense"] |= {"step_ms": 1e3 * median(time_of["reference"]) / (case.every - 1), "every": case.every}
    return figures


def watching(case: Case, every: int = 10) -> dict[str, float]:
    """Returns `ratio`, the time of dense steps of which bbnet.watch observes one in `every`, relative to dense steps.

    Every second step is observed here, so that observed steps alternate with others, on which the watch spends
    microseconds; the fastest quarters of both are compared. On a CPU it is the processor time, because other processes
    disturb it less.
    """
    arm = Arm(case, "dense")
    clock = time.process_time if case.device.type == "cpu" else partial(now, case.device)
    times = []
    with bbnet.watch(arm.model, arm.trainer.optimizer, every=2):
        for _ in range(6 + 2 * case.steps):
            began = clock()
            arm.step()
            times.append(clock() - began)
    observed, others = times[6::2], times[7::2]  # the first ones are warm-up
    return {"ratio": 1 + (fastest_quartile(observed) / fastest_quartile(others) - 1) / every, "every": every}


class _StepsDoneError(Exception):
    pass


def our_steps(case: Case, trainer: Trainer, after_step: Callable[[Tensor, float], None]) -> None:
    """Runs `trainer` for `case.steps` steps, and calls `after_step` with the sample indices and seconds of each.

    The first step of each epoch is left out, because its time would include the scoring of dev.
    """
    done, began = 0, now(case.device)

    def after() -> None:
        nonlocal done, began
        if trainer.position > 1:
            took = now(case.device) - began
            batches = trainer.feed.split.batches(trainer.training, stream("order", trainer.seed, trainer.epoch + 1))
            after_step(batches[trainer.position - 1], took)
            done += 1
        if done == case.steps:
            raise _StepsDoneError
        began = now(case.device)

    try:
        while True:
            trainer.run_epoch("warm_up", after_step=after)
    except _StepsDoneError:
        pass


def ours_and_limit(case: Case) -> dict[str, float]:
    """Returns `samples_per_second` of our dense training loop, and `of_limit`, its ratio to the throughput of the same
    steps on batches that are already on the device and not augmented, measured alternately."""
    trainer, limit = case.trainer(), Arm(case, "dense")
    samples, ours, at_limit = 0, 0.0, 0.0

    def after_step(indices: Tensor, took: float) -> None:
        nonlocal samples, ours, at_limit
        limit.batch = trainer.feed.split.batch(indices, case.device)
        at_limit += limit.step()
        samples, ours = samples + len(indices), ours + took

    our_steps(case, trainer, after_step)
    return {"samples_per_second": samples / ours, "of_limit": at_limit / ours}


def shares(case: Case, steps: int) -> dict[str, float]:
    """Returns the milliseconds of a dense step for `input` (gather and augment), `forward`, `backward`, `optimiser`."""
    trainer = case.trainer()
    model, training = trainer.model.train(), trainer.training
    generator = torch.Generator(case.device).manual_seed(0)
    took = dict.fromkeys(("input", "forward", "backward", "optimiser"), 0.0)

    @contextmanager
    def timed(part: str) -> Iterator[None]:
        began = now(case.device)
        yield
        took[part] += now(case.device) - began

    batches = trainer.feed.split.batches(training, torch.Generator().manual_seed(0))
    for number in range(steps + 2):
        if number == 2:
            took = dict.fromkeys(took, 0.0)
        with timed("input"):
            (batch,) = trainer.feed.batches([batches[number % len(batches)]])
            batch = case.task.augment(batch, training, generator)
        with timed("forward"):
            loss = forward(case.task, model, batch, case.precision)
        with timed("backward"):
            loss.backward()
        with timed("optimiser"):
            if training.clip_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), training.clip_norm)
            trainer.optimizer.step()
            trainer.optimizer.zero_grad()
    return {part: 1e3 * total / steps for part, total in took.items()}


class Files(Dataset):
    """The training samples of a case, decoded from their files at each access."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.read, self.samples, self.collate = {"asr": _speech, "change": _pairs, "face": _faces}[case.name](case)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, number: int) -> Any:
        return self.read(*self.samples[number])


def decoded(case: Case, batch_size: int) -> Iterator[Batch]:
    """Yields batches, on the device, from a DataLoader whose workers decode files; repeats epochs without end."""
    files = Files(case)
    workers = {"num_workers": WORKERS, "persistent_workers": True, "multiprocessing_context": "fork"}
    loader = DataLoader(files, batch_size, shuffle=True, drop_last=True, collate_fn=files.collate, **workers)
    while True:
        for batch in loader:
            yield batch.to(case.device)


def prepared(case: Case, trainer: Trainer) -> Iterator[Batch]:
    """Yields our batches, augmented; repeats epochs without end."""
    generator = torch.Generator(case.device).manual_seed(0)
    while True:
        for batch in trainer.feed.batches(trainer.feed.split.batches(trainer.training, torch.Generator())):
            yield case.task.augment(batch, trainer.training, generator)


def decoding_loop(case: Case, batch_size: int) -> Iterator[Batch]:
    """Trains in a plain loop on `decoded` batches, with torch's defaults, reading the loss at each step. Yields each
    batch after training on it."""
    trainer = case.trainer()
    model = trainer.model.to(memory_format=torch.contiguous_format).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=trainer.training.learning_rate)
    for batch in decoded(case, batch_size):
        optimizer.zero_grad()
        loss = case.task.loss(model, batch)
        loss.backward()
        optimizer.step()
        loss.item()
        yield batch


def against_decoding(case: Case) -> dict[str, dict[str, float]]:
    """Returns samples per second on all cores, `ours_per_second` and `decoding_per_second`, for `training`, which
    compares our loop with `decoding_loop`, and for the `input` of both alone."""
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    samples, took = 0, 0.0

    def after_step(indices: Tensor, seconds_of_step: float) -> None:
        nonlocal samples, took
        samples, took = samples + len(indices), took + seconds_of_step

    trainer = case.trainer()
    batch_size = round(len(trainer.feed.split) / trainer.steps_per_epoch)
    our_steps(case, trainer, after_step)
    found = {
        "training": {
            "ours_per_second": samples / took,
            "decoding_per_second": _rate_in_process(decoding_loop, case, batch_size),
        },
        "input": {
            "ours_per_second": _rate(prepared, case, trainer),
            "decoding_per_second": _rate_in_process(decoded, case, batch_size),
        },
    }
    torch.set_num_threads(threads)
    return found


def _rate_in_process(*arguments: Any) -> float:
    """Calls `_rate` in a new process, with default settings: those made by `choose_device` cannot be reverted."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_rate, *arguments).result()


def _rate(loop: Callable[..., Iterator[Batch]], case: Case, *arguments: Any) -> float:
    """Returns the samples per second of a loop or input, over `SECONDS` or 2 batches, whichever is longer."""
    batches = loop(case, *arguments)
    for _ in range(2):  # until the workers have started
        next(batches)
    samples, count, began = 0, 0, now(case.device)
    while count < 2 or now(case.device) - began < SECONDS:
        samples += len(next(iter(next(batches).tensors().values())))
        count += 1
    rate = samples / (now(case.device) - began)
    batches.close()
    return rate


def _pairs(case: Case) -> tuple[Callable, list, Callable]:
    size = case.settings.tile
    folders = [Path(case.manifest["root"], "train", part) for part in ("A", "B", "label")]
    pairs = case.manifest["splits"]["train"]
    paths = [tuple(folder / name for folder, name in zip(folders, names, strict=True)) for names in pairs]

    def read(*paths: Path) -> tuple[Tensor, Tensor]:
        pair = [Image.open(path).convert("RGB").resize((size, size), Image.Resampling.BILINEAR) for path in paths[:2]]
        label = Image.open(paths[2]).convert("L").resize((size, size), Image.Resampling.NEAREST)
        images = torch.from_numpy(np.stack([np.asarray(image).transpose(2, 0, 1) for image in pair]))
        changed = torch.from_numpy((np.asarray(label) > 127).astype(np.uint8))
        for axis in (-1, -2):
            if random.random() < 0.5:
                images, changed = images.flip(axis), changed.flip(axis)
        return images, changed

    def collate(samples: list) -> Pairs:
        return Pairs(*(torch.stack(each) for each in zip(*samples, strict=True)))

    repeated = -(-2 * case.settings.training.batch_size * WORKERS // len(paths))
    return read, paths * repeated, collate


def _faces(case: Case) -> tuple[Callable, list, Callable]:
    from torchvision import transforms

    size, how = case.settings.size, case.settings.training.augmentation
    change = transforms.Compose(
        [
            transforms.Resize((size, size)),
            transforms.RandomHorizontalFlip(),
            transforms.RandomRotation(how.rotation),
            transforms.ColorJitter(how.brightness, how.contrast, how.saturation, how.hue),
            transforms.PILToTensor(),
        ]
    )
    part = case.index["splits"]["train"]
    root = Path(case.manifest["root"])
    samples = [(root / file, label) for file, label in zip(part["files"], part["labels"], strict=True)]

    def read(path: Path, label: int) -> tuple[Tensor, int]:
        return change(Image.open(path).convert("RGB")), label

    def collate(samples: list) -> Faces:
        images, labels = zip(*samples, strict=True)
        return Faces(torch.stack(images), torch.tensor(labels))

    return read, samples, collate


def _speech(case: Case) -> tuple[Callable, list, Callable]:
    split = case.task.open_split(case.prepared, case.index, "train")
    files = {path.stem: path for path in Path(case.manifest["root"]).rglob("*.flac")}
    tokens = [split.tokens[first:last].long() for first, last in split.token_starts.unfold(0, 2, 1).tolist()]
    samples = [(files[key], own) for key, own in zip(split.keys, tokens, strict=True)]

    def read(path: Path, own: Tensor) -> tuple[Tensor, Tensor]:
        return log_mel(*read_audio(path)), own

    def collate(samples: list) -> Utterances:
        features, own = zip(*samples, strict=True)
        pad = nn.utils.rnn.pad_sequence
        lengths = [torch.tensor([len(each) for each in parts]) for parts in (features, own)]
        return Utterances(pad(features, True), lengths[0], pad(own, True, PAD), lengths[1])

    return read, samples, collate
