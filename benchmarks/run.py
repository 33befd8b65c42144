"""Benchmarks of training, as ratios within one run: `make bench`, `make bench DEVICE=cuda`.

Writes one section per machine into docs/benchmarks.md; a second run on the same machine replaces it.
"""

import argparse
import gc
import json
import platform
import sys
import tempfile
from collections.abc import Iterable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import torch
from cases import ROOT, Case, default_case, paper_case, small_model_case
from growth import growth
from loops import (
    ALGORITHMS,
    IN_DEFAULT_STUDY,
    Arm,
    against_decoding,
    fastest_quartile,
    ours_and_limit,
    overheads,
    seconds,
    shares,
    time_refreshes,
)

from bbnet.sparsity.degrees import allocate_degrees
from bbnet.sparsity.masks import keep_largest
from bbnet.sparsity.sparsifier import METHODS, sparsify
from bbnet.study.config import Knobs, read_study
from bbnet.study.machine import name_of
from bbnet.study.recipe import Recipes
from bbnet.training.devices import choose_device
from bbnet.training.step_time import measure

TASKS = ("asr", "change", "face")
WITH_IMAGES = ("change", "face")


def measured(case: Case, names: Iterable[str], trace: Path | None) -> dict[str, Any]:
    """What the page says of one case."""
    _say(case.title)
    if trace is not None:
        _trace(case, trace / f"{case.title.replace(', ', '-')}.json")
    figures = {"loop": ours_and_limit(case), "shares": shares(case, min(case.steps, 20))}
    figures["overheads"] = overheads(case, ["dense", *names, "torch.prune"])
    gc.collect()  # hooks hold weights in cycles
    return figures | {"decoding": against_decoding(case)}


def _trace(case: Case, path: Path) -> None:
    """A profile of three steps of sp_in, for chrome://tracing."""
    arm = Arm(case, "sp_in")
    arm.step()
    path.parent.mkdir(parents=True, exist_ok=True)
    with torch.profiler.profile() as profile:
        for _ in range(3):
            arm.step()
    profile.export_chrome_trace(str(path))


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


def refresh_share(case: Case) -> dict[str, float]:
    """Share of the sparse phase that refreshes take, for runs of a study at its smallest budget."""
    study = read_study("demo", ROOT / "studies")
    budget = min(study.budgets, key=Decimal)
    shares_of = {}
    for method in IN_DEFAULT_STUDY:
        trainer = case.trainer()
        trainer.epoch = trainer.training.warm_up_epochs
        sparsifier = sparsify(
            trainer.model,
            trainer.optimizer,
            case.slabs(trainer.model, METHODS[method]["side"], budget),
            method,
            budget,
            total_steps=trainer.sparse_steps,
            **study.sparsity.model_dump(),
        )
        refreshing = time_refreshes(sparsifier, case.device)
        epochs = range(trainer.epoch, trainer.training.epochs)

        def train(trainer=trainer, sparsifier=sparsifier, epochs=epochs) -> None:
            for _ in epochs:
                trainer.run_epoch("sparse", sparsifier)

        training = seconds(train, case.device)
        shares_of[method] = sum(refreshing) / training
    return shares_of


def throughput(device: torch.device) -> dict[str, dict[str, Any]]:
    """How long a dense step of each model of two studies takes, by what that depends on; `bbnet plan` reads it."""
    figures = {}
    for name in ("demo", "paper"):
        study = read_study(name, ROOT / "studies")
        recipes = Recipes(study, Knobs(study=name, device=device.type))
        for task, settings in study.task_settings().items():
            for model in settings.models:
                title = f"{name}: {task} {model}"
                _say(title)
                figures[recipes.step_key(task, model)] = {"title": title, **measure(study, task, model, device)}
    return figures


def _say(what: str) -> None:
    print(f"{what} ...", file=sys.stderr, flush=True)


def all_figures(device: torch.device, trace: Path | None) -> dict[str, Any]:
    cases: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in TASKS:
            case = default_case(name, device, Path(folder, name))
            cases[case.title] = measured(case, ALGORITHMS, trace)
            if name == "change":
                refreshes = refresh_share(case)
        for name in TASKS:
            case = paper_case(name, device, Path(folder, f"{name}-paper"))
            cases[case.title] = measured(case, IN_DEFAULT_STUDY, trace)
        for name in WITH_IMAGES:
            case = small_model_case(name, device, Path(folder, f"{name}-small"))
            _say(case.title)
            cases[case.title] = {"decoding": against_decoding(case)}
    _say("growth")
    return {
        "cases": cases,
        "growth": growth(device),
        "mask": mask_ratio(device),
        "refresh_share": refreshes,
        "throughput": throughput(device),
    }


def section(device: torch.device, figures: Mapping[str, Any]) -> str:
    """The results as Markdown; the numbers again as JSON in a comment."""
    cases = figures["cases"]
    whole = {title: case for title, case in cases.items() if "loop" in case}
    refreshes = ", ".join(f"{method} {100 * share:.2f} %" for method, share in figures["refresh_share"].items())
    lines = [
        f"## {name_of(device.type)}",
        "",
        f"Run on `{device.type}`, Python {platform.python_version()}, torch {torch.__version__}, one thread where "
        "nothing else is said. Paper: the paper's model, image size and length of utterances; "
        + ("in batches that fit a CPU." if device.type == "cpu" else "in the paper's batches."),
        "",
        "**Our training loop**, dense: samples per second; as a share of its limit, the same steps on batches that "
        "lie on the device and are not augmented, in turns; where a step's time goes, the sparsifier's by sp_in, "
        "refreshes included.",
        "",
        "| | samples/s | of the limit | input | forward | backward | optimiser | sparsifier |",
        "|---|---|---|---|---|---|---|---|",
        *(_loop_row(title, case) for title, case in whole.items()),
        "",
        "**The sparsifier**: the steps between two refreshes over the same steps dense, in turns, median of all such "
        "stretches; b = 0.5. `dense` is dense against dense, `torch.prune` are masks by "
        "torch.nn.utils.prune. In brackets one refresh of all slabs, in steps of dense.",
        "",
        "| | a dense step | dense | " + " | ".join(ALGORITHMS) + " | torch.prune |",
        "|---|---|---|" + "---|" * len(ALGORITHMS) + "---|",
        *(_overhead_row(title, case["overheads"]) for title, case in whole.items()),
        "",
        "**Against a loop that decodes files**: a DataLoader of two workers and torch's defaults, dense, both loops on "
        "all cores; samples per second with the model, and of the input alone: what a device would get that computes "
        "faster.",
        "",
        "| | ours | decoding | ratio | input, ours | decoding | ratio |",
        "|---|---|---|---|---|---|---|",
        *(_decoding_row(title, case["decoding"]) for title, case in cases.items()),
        "",
        "**How it grows**: an epoch with its scoring on dev, and the peak memory of its process, from the default "
        "study's settings with more data or wider layers.",
        "",
        "| | data x1 | x2 | x4 | width x1 | x2 | x4 |",
        "|---|---|---|---|---|---|---|",
        *(_growth_row(task, points) for task, points in figures["growth"].items()),
        "",
        f"- Degrees and mask of a 1536 x 6144 slab: {figures['mask']['ratio']:.3f} of a torch.sort "
        f"({figures['mask']['ms_sort']:.0f} ms).",
        f"- All refreshes together, of the training time of a default run of change at b = .2: {refreshes}.",
        "",
        "| a dense training step | time | weights |",
        "|---|---|---|",
        *(
            f"| {one['title']} | {1e3 * one['step_seconds']:.4g} ms | {one['weights']:,} |"
            for one in figures["throughput"].values()
        ),
        "",
        f"<!-- {json.dumps(figures)} -->",
        "",
    ]
    return "\n".join(lines)


def _loop_row(title: str, case: Mapping[str, Any]) -> str:
    loop, parts, sparse = case["loop"], dict(case["shares"]), case["overheads"]
    step = sum(parts.values())
    refreshes = sparse["sp_in"]["refresh_ms"] / sparse["dense"]["step_ms"] / sparse["dense"]["every"]
    parts["sparsifier"] = max(0.0, sparse["sp_in"]["ratio"] - 1 + refreshes) * step
    whole = sum(parts.values())
    columns = " | ".join(f"{100 * part / whole:.1f} %" for part in parts.values())
    return f"| {title} | {loop['samples_per_second']:.4g} | {loop['of_limit']:.3f} | {columns} |"


def _overhead_row(title: str, figures: Mapping[str, Mapping[str, float]]) -> str:
    entries = []
    for name in ("dense", *ALGORITHMS, "torch.prune"):
        found = figures.get(name, {})
        refresh = found.get("refresh_ms")
        in_steps = "" if refresh is None else f" ({refresh / figures['dense']['step_ms']:.2f})"
        entries.append(f"{found['ratio']:.3f}{in_steps}" if found else "")
    return f"| {title} | {figures['dense']['step_ms']:.1f} ms | {' | '.join(entries)} |"


def _decoding_row(title: str, figures: Mapping[str, Mapping[str, float]]) -> str:
    parts = [
        f"{figures[part]['ours_per_second']:.4g} | {figures[part]['decoding_per_second']:.4g} | "
        f"{figures[part]['ours_per_second'] / figures[part]['decoding_per_second']:.2f}"
        for part in ("training", "input")
    ]
    return f"| {title} | {' | '.join(parts)} |"


def _growth_row(task: str, points: Mapping[str, list[Mapping[str, float]]]) -> str:
    entries = [f"{point['seconds']:.2f} s, {point['peak_mib']:.0f} MiB" for kind in points for point in points[kind]]
    return f"| {task} | {' | '.join(entries)} |"


def replace_section(page: str, new: str) -> str:
    heading = new.splitlines()[0]
    intro, *sections = page.split("\n## ")
    kept = [part for part in sections if f"## {part.splitlines()[0]}" != heading]
    return "\n".join([intro.rstrip() + "\n", *(f"## {part.rstrip()}\n" for part in kept), new])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "benchmarks.md")
    parser.add_argument("--trace", type=Path, help="folder for a profile of each case, for chrome://tracing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = choose_device(options.device)
    new = section(device, all_figures(device, options.trace))
    print(new)
    options.page.write_text(replace_section(options.page.read_text(), new))


if __name__ == "__main__":
    main()
