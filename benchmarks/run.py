"""Benchmarks of the sparsifier, as ratios within one run: `make bench`, `make bench DEVICE=cuda`.

Writes one section per machine into docs/benchmarks.md; a second run on the same machine replaces it.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import torch
import yaml

from bbnet.sparsity.degrees import allocate_degrees
from bbnet.sparsity.masks import keep_largest
from bbnet.sparsity.slab import choose_slabs
from bbnet.sparsity.sparsifier import METHODS, Sparsifier, sparsify
from bbnet.tasks import task as tasks
from bbnet.tasks.change.data import Batch
from bbnet.tasks.change.model import FCSiamConc
from bbnet.tasks.settings import Training
from bbnet.training.devices import choose_device
from bbnet.training.trainer import Trainer, make_optimizer

ROOT = Path(__file__).parent.parent
MASKED = ("sp_in", "sp_out", "magnitude")
# Widths, pixels, batch, steps, steps between refreshes.
SIZES = {"default study": ([8, 16, 32, 64], 64, 8, 150, 25), "paper": ([32, 64, 128, 256], 128, 2, 20, 5)}


def machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":")[1].strip() for line in lines if "model name" in line]
    name = models[0] if models else platform.processor()
    return f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} used"


def seconds(work: Callable[[], None], device: torch.device) -> float:
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def fastest_quartile(times: list[float]) -> float:
    fastest = sorted(times)[: max(1, len(times) // 4)]
    return sum(fastest) / len(fastest)


def step_ratios(
    device: torch.device, widths: list[int], size: int, batch_size: int, steps: int, every: int
) -> dict[str, float]:
    """Time of a step between refreshes over that of the same step dense, interleaved; `dense` is the control."""
    task = tasks.load("change")
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch_size, 2, 3, size, size), generator=generator, dtype=torch.uint8)
    labels = (torch.rand(batch_size, size, size, generator=generator) < 0.1).to(torch.uint8)
    batch = Batch(images.to(device), labels.to(device))
    arms = {name: _arm(task, name, batch, widths, every, device) for name in ("reference", "dense", *MASKED)}
    times: dict[str, list[float]] = {name: [] for name in arms}
    for step in range(1, steps + every):
        for name, work in arms.items():
            elapsed = seconds(work, device)
            if step > every and step % every:
                times[name].append(elapsed)
    reference = fastest_quartile(times["reference"])
    return {"ms_dense": 1e3 * reference} | {
        name: fastest_quartile(times[name]) / reference for name in ("dense", *MASKED)
    }


def _arm(task, name: str, batch: Batch, widths: list[int], every: int, device: torch.device) -> Callable[[], None]:
    torch.manual_seed(0)
    model = FCSiamConc(widths, [100.0] * 3, [50.0] * 3).to(device, memory_format=torch.channels_last)
    optimizer = make_optimizer(model, Training(epochs=2, warm_up_epochs=1, batch_size=2, learning_rate=1e-3))
    if name in MASKED:
        slabs, _ = choose_slabs(model, task.slabs(model, "wide", METHODS[name]["side"]), Decimal("0.20"))
        sparsify(model, optimizer, slabs, name, 0.5, total_steps=10**6, ramp_end=0.0, every=every)

    def step() -> None:
        task.loss(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


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
        for method in MASKED:
            shares[method] = _refresh_share(task, study, prepared, index, method, device)
    return shares


def _refresh_share(task, study: dict, prepared: Path, index: dict, method: str, device: torch.device) -> float:
    settings, budget = study["tasks"]["change"], min(study["budgets"])
    (model_settings,) = settings["models"].values()
    trainer = Trainer(
        task, task.ModelSettings(**model_settings), Training(**settings["training"]), prepared, index, 0, device
    )
    trainer.epoch = trainer.training.warm_up_epochs
    candidates = task.slabs(trainer.model, settings["slabs"], METHODS[method]["side"])
    slabs, _ = choose_slabs(trainer.model, candidates, Decimal(str(budget)))
    sparsifier = sparsify(
        trainer.model, trainer.optimizer, slabs, method, budget, total_steps=trainer.sparse_steps, **study["sparsity"]
    )
    refreshing = []
    refresh = Sparsifier._refresh

    def timed(self: Sparsifier) -> None:
        refreshing.append(seconds(lambda: refresh(self), device))

    Sparsifier._refresh = timed
    try:
        epochs = range(trainer.epoch, trainer.training.epochs)
        training = seconds(lambda: [trainer.run_epoch("sparse", sparsifier) for _ in epochs], device)
    finally:
        Sparsifier._refresh = refresh
    return sum(refreshing) / training


def section(device: torch.device) -> str:
    """The results as Markdown; the numbers again as JSON in a comment."""
    steps = {name: step_ratios(device, *size) for name, size in SIZES.items()}
    masks, refreshes = mask_ratio(device), refresh_share(device)
    lines = [
        f"## {machine(device)}",
        "",
        f"Python {platform.python_version()}, torch {torch.__version__}. Training steps of the change model between "
        "refreshes over the same step dense, interleaved in one run, fastest quartile; `dense` is dense against dense.",
        "",
        "| model | dense step | dense | " + " | ".join(MASKED) + " |",
        "|---|---|---|" + "---|" * len(MASKED),
    ]
    for name, (widths, size, batch, *_) in SIZES.items():
        ratios = " | ".join(f"{steps[name][arm]:.3f}" for arm in ("dense", *MASKED))
        of = f"{name}: widths {widths}, {size} px, batch {batch}"
        lines.append(f"| {of} | {steps[name]['ms_dense']:.1f} ms | {ratios} |")
    shares = ", ".join(f"{method} {100 * share:.2f} %" for method, share in refreshes.items())
    lines += [
        "",
        f"- Degrees and mask of a 1536 x 6144 slab: {masks['ratio']:.3f} of a torch.sort ({masks['ms_sort']:.0f} ms).",
        f"- All refreshes together, of the training time of a default run at its smallest budget: {shares}.",
        "",
        f"<!-- {json.dumps({'steps': steps, 'mask': masks, 'refresh_share': refreshes})} -->",
        "",
    ]
    return "\n".join(lines)


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
