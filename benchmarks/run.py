"""Benchmarks of the sparsifier, as ratios within one run: `make bench`, `make bench DEVICE=cuda`.

Writes one section per machine into docs/benchmarks.md; a second run on the same machine replaces it.
"""

import argparse
import gc
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

import bbnet
from bbnet.sparsity.degrees import allocate_degrees
from bbnet.sparsity.masks import keep_largest
from bbnet.sparsity.slab import Slab, choose_slabs
from bbnet.sparsity.sparsifier import METHODS, Sparsifier, sparsify
from bbnet.study.config import Knobs, read_study
from bbnet.study.machine import name_of
from bbnet.study.recipe import Recipes
from bbnet.tasks import task as tasks
from bbnet.tasks.change.data import Batch
from bbnet.tasks.change.model import FCSiamConc
from bbnet.tasks.settings import FixedBatchTraining
from bbnet.training.devices import choose_device
from bbnet.training.step_time import measure
from bbnet.training.trainer import Trainer, make_optimizer

ROOT = Path(__file__).parent.parent
ALGORITHMS: dict[str, Mapping[str, Any]] = {name: method for name, method in METHODS.items() if name != "dense"} | {
    "magnitude, global": {"algorithm": "magnitude", "distribution": "global"},
    "set": {"algorithm": "set"},
    "random": {"algorithm": "random"},
    "wanda": {"algorithm": "wanda"},
}
IN_DEFAULT_STUDY = ("sp_in", "sp_out", "magnitude", "rigl")


@dataclass(frozen=True)
class Case:
    """A training step to measure.

    Args:
        steps: how many, one in `every` a refresh; those before the first refresh are not measured.
        at_once: whether all algorithms take turns, or each with dense alone, to spare memory.
        threads: of the CPU.
    """

    title: str
    build: Callable[[], nn.Module]
    loss: Callable[[nn.Module], torch.Tensor]
    slabs: Callable[[nn.Module, str], list[Slab]]
    steps: int
    every: int
    at_once: bool = False
    threads: int = 1


def seconds(work: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def time_refreshes(sparsifier: Sparsifier, device: torch.device) -> list[float]:
    """A list that takes up the seconds of every refresh from now on."""
    times: list[float] = []
    refresh = sparsifier._refresh
    sparsifier._refresh = lambda: times.append(seconds(refresh, device))
    return times


def fastest_quartile(times: list[float]) -> float:
    fastest = sorted(times)[: max(1, len(times) // 4)]
    return sum(fastest) / len(fastest)


def cases(device: torch.device) -> list[Case]:
    return [
        _change(device, "default study", [8, 16, 32, 64], 64, 8, steps=125, every=25),
        _change(device, "paper", [32, 64, 128, 256], 128, 2, steps=15, every=5),
        _resnet(device, 4 if device.type == "cpu" else 64),
        _mlp(device, 512),
    ]


def _change(device: torch.device, name: str, widths: list[int], size: int, batch_size: int, **options: Any) -> Case:
    task = tasks.load("change")
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch_size, 2, 3, size, size), generator=generator, dtype=torch.uint8)
    labels = (torch.rand(batch_size, size, size, generator=generator) < 0.1).to(torch.uint8)
    batch = Batch(images.to(device), labels.to(device))
    return Case(
        f"change model, {name}: widths {widths}, {size} px, batch {batch_size}",
        lambda: FCSiamConc(widths, [100.0] * 3, [50.0] * 3).to(device, memory_format=torch.channels_last),
        lambda model: task.loss(model, batch),
        lambda model, side: choose_slabs(model, task.slabs(model, "wide", side), Decimal("0.20"))[0],
        at_once=True,
        **options,
    )


def _resnet(device: torch.device, batch_size: int) -> Case:
    from torchvision.models import resnet50  # here, for it takes 5 s to import

    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch_size, 3, 224, 224, generator=generator).to(device, memory_format=torch.channels_last)
    labels = torch.randint(1000, (batch_size,), generator=generator).to(device)
    return Case(
        f"ResNet-50: 224 px, batch {batch_size}",
        lambda: resnet50(weights=None).to(device, memory_format=torch.channels_last),
        lambda model: nn.functional.cross_entropy(model(images), labels),
        bbnet.find_slabs,
        steps=15,
        every=5,
        at_once=True,
    )


def _mlp(device: torch.device, batch_size: int) -> Case:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(batch_size, 4096, generator=generator).to(device)
    sides = {"in": [Slab("0", "in", "0")], "out": [Slab("2", "out", "0")]}
    return Case(
        f"MLP 4096-16384-4096: batch {batch_size}",
        lambda: nn.Sequential(nn.Linear(4096, 16384), nn.ReLU(), nn.Linear(16384, 4096)).to(device),
        lambda model: (model(inputs) - inputs).square().mean(),
        lambda model, side: sides[side],
        steps=3,
        every=2,
        threads=os.cpu_count() or 1,
    )


class Arm:
    """One algorithm's training; `dense` has none."""

    def __init__(self, case: Case, name: str, device: torch.device) -> None:
        torch.manual_seed(0)
        self.case = case
        self.device = device
        self.model = case.build()
        training = FixedBatchTraining(epochs=2, warm_up_epochs=1, batch_size=2, learning_rate=1e-3)
        self.optimizer = make_optimizer(self.model, training)
        self.step_times: list[float] = []
        self.refresh_times: list[float] = []
        if name == "dense":
            return
        method = ALGORITHMS[name]
        slabs = case.slabs(self.model, method.get("side", "in"))
        sparsifier = sparsify(
            self.model, self.optimizer, slabs, method, 0.5, total_steps=10**6, ramp_end=0.0, every=case.every
        )
        self.refresh_times = time_refreshes(sparsifier, device)

    def step(self) -> float:
        return seconds(self._step, self.device)

    def _step(self) -> None:
        self.case.loss(self.model).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def step_figures(case: Case, device: torch.device) -> dict[str, dict[str, float]]:
    """Per algorithm `ratio`, the time of a step between refreshes over that of the same step dense, interleaved, and
    `refresh_ms`; `dense` is dense against dense, with `step_ms`."""
    torch.set_num_threads(case.threads)
    names = ["dense", *ALGORITHMS]
    figures: dict[str, dict[str, float]] = {}
    for group in [names] if case.at_once else [[name] for name in names]:
        # Hooks hold weights in cycles, and two of these networks do not fit beside each other everywhere.
        gc.collect()
        print(f"{case.title}: {', '.join(group)}", file=sys.stderr, flush=True)
        reference = Arm(case, "dense", device)
        arms = {name: Arm(case, name, device) for name in group}
        for step in range(1, case.steps + case.every):
            measured = step > case.every and step % case.every != 0
            for arm in arms.values():
                elapsed = arm.step()
                if measured:
                    arm.step_times.append(elapsed)
            if measured or step < 3:
                elapsed = reference.step()
                reference.step_times += [elapsed] if measured else []
        dense = fastest_quartile(reference.step_times)
        for name, arm in arms.items():
            figures[name] = {"ratio": fastest_quartile(arm.step_times) / dense}
            if arm.refresh_times:
                figures[name]["refresh_ms"] = 1e3 * fastest_quartile(arm.refresh_times)
        figures.setdefault("dense", {})["step_ms"] = 1e3 * dense
        del reference, arms, arm
    torch.set_num_threads(1)
    return figures


def mask_ratio(device: torch.device) -> dict[str, float]:
    """Time of the mask of a 1536 x 6144 slab (degrees included) over that of a torch.sort of the slab."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(1536, 6144, generator=generator).abs().to(device)
    rates = torch.rand(1536, generator=generator).to(device)
    sort, mask = [], []
    for _ in range(9):
        sort.append(seconds(lambda: torch.sort(scores), device))
        mask.append(seconds(lambda: keep_largest(scores, allocate_degrees(rates, 6144, 0.3)), device))
    return {"ms_sort": 1e3 * fastest_quartile(sort), "ratio": fastest_quartile(mask) / fastest_quartile(sort)}


def refresh_share(device: torch.device) -> dict[str, float]:
    """Share of the sparse phase that refreshes take, for runs of the default study at its smallest budget."""
    study = yaml.safe_load((ROOT / "studies" / "demo.yaml").read_text())
    task, settings = tasks.load("change"), study["tasks"]["change"]
    shares = {}
    with tempfile.TemporaryDirectory() as folder:
        raw, prepared = Path(folder, "raw"), Path(folder, "prepared")
        prepared.mkdir()
        manifest = task.fetch(settings["data"], raw) | {"root": str(raw)}
        index = task.prepare(manifest, settings, prepared)
        for method in IN_DEFAULT_STUDY:
            shares[method] = _refresh_share(task, study, prepared, index, method, device)
    return shares


def _refresh_share(task, study: dict, prepared: Path, index: dict, method: str, device: torch.device) -> float:
    settings, budget = study["tasks"]["change"], min(study["budgets"])
    (model_settings,) = settings["models"].values()
    trainer = Trainer(
        task,
        task.ModelSettings(**model_settings),
        task.TrainingSettings(**settings["training"]),
        prepared,
        index,
        0,
        device,
    )
    trainer.epoch = trainer.training.warm_up_epochs
    candidates = task.slabs(trainer.model, settings["slabs"], METHODS[method]["side"])
    slabs, _ = choose_slabs(trainer.model, candidates, Decimal(str(budget)))
    sparsifier = sparsify(
        trainer.model, trainer.optimizer, slabs, method, budget, total_steps=trainer.sparse_steps, **study["sparsity"]
    )
    refreshing = time_refreshes(sparsifier, device)
    epochs = range(trainer.epoch, trainer.training.epochs)
    training = seconds(lambda: [trainer.run_epoch("sparse", sparsifier) for _ in epochs], device)
    return sum(refreshing) / training


def throughput(device: torch.device) -> dict[str, dict[str, Any]]:
    """How long a dense step of each model of two studies takes, by what that depends on; `bbnet plan` reads it."""
    figures = {}
    for name in ("demo", "paper"):
        study = read_study(name, ROOT / "studies")
        recipes = Recipes(study, Knobs(study=name, device=device.type))
        for task, settings in study.task_settings().items():
            for model in settings.models:
                title = f"{name}: {task} {model}"
                figures[recipes.step_key(task, model)] = {"title": title, **measure(study, task, model, device)}
    return figures


def section(device: torch.device) -> str:
    """The results as Markdown; the numbers again as JSON in a comment."""
    steps = {case.title: step_figures(case, device) for case in cases(device)}
    masks, refreshes, speeds = mask_ratio(device), refresh_share(device), throughput(device)
    lines = [
        f"## {name_of(device.type)}",
        "",
        f"Run on `{device.type}`, Python {platform.python_version()}, torch {torch.__version__}. Training steps "
        "between refreshes over the same step dense, interleaved in one run, fastest quartile; fused AdamW, b = 0.5. "
        "`dense` is dense against dense. In brackets one refresh of all slabs, in steps of dense.",
        "",
        "| algorithm | " + " | ".join(steps) + " |",
        "|---|" + "---|" * len(steps),
        "| *a dense step* | " + " | ".join(f"*{case['dense']['step_ms']:.1f} ms*" for case in steps.values()) + " |",
    ]
    for name in ("dense", *ALGORITHMS):
        lines.append(f"| {name} | " + " | ".join(_entry(case, name) for case in steps.values()) + " |")
    shares = ", ".join(f"{method} {100 * share:.2f} %" for method, share in refreshes.items())
    lines += [
        "",
        f"- Degrees and mask of a 1536 x 6144 slab: {masks['ratio']:.3f} of a torch.sort ({masks['ms_sort']:.0f} ms).",
        f"- All refreshes together, of the training time of a default run at its smallest budget: {shares}.",
        "",
        "| a dense training step | time | weights |",
        "|---|---|---|",
        *(f"| {one['title']} | {1e3 * one['step_seconds']:.4g} ms | {one['weights']:,} |" for one in speeds.values()),
        "",
        f"<!-- {json.dumps({'steps': steps, 'mask': masks, 'refresh_share': refreshes, 'throughput': speeds})} -->",
        "",
    ]
    return "\n".join(lines)


def _entry(figures: Mapping[str, Mapping[str, float]], name: str) -> str:
    refresh = figures[name].get("refresh_ms")
    in_steps = "" if refresh is None else f" ({refresh / figures['dense']['step_ms']:.2f})"
    return f"{figures[name]['ratio']:.3f}{in_steps}"


def replace_section(page: str, new: str) -> str:
    heading = new.splitlines()[0]
    intro, *sections = page.split("\n## ")
    kept = [part for part in sections if f"## {part.splitlines()[0]}" != heading]
    return "\n".join([intro.rstrip() + "\n", *(f"## {part.rstrip()}\n" for part in kept), new])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "benchmarks.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    new = section(choose_device(options.device))
    print(new)
    options.page.write_text(replace_section(options.page.read_text(), new))


if __name__ == "__main__":
    main()
