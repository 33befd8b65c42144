"""Renders the tables of docs/benchmarks.md from benchmarks/results/*.json: `python benchmarks/page.py`.

The text above the line `MARKER` is written by hand and kept.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bbnet.data.store import whole_file

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
RESULTS = ROOT / "benchmarks" / "results"
MARKER = "<!-- The sections below are rendered by benchmarks/page.py from benchmarks/results/*.json. -->\n"


def write_page() -> None:
    """Rewrites the part of the page below the marker, with one section per file of results."""
    text = PAGE.read_text(encoding="utf-8").partition(MARKER)[0]
    sections = [section(json.loads(path.read_text(encoding="utf-8"))) for path in sorted(RESULTS.glob("*.json"))]
    with whole_file(PAGE) as partial:
        partial.write_text("\n".join([text + MARKER, *sections]), encoding="utf-8")


def section(results: Mapping[str, Any]) -> str:
    """Returns the results of one machine as Markdown."""
    blocks = [
        f"## Training on {results['machine']}",
        f"Device `{results['device']}`, Python {results['python']}, torch {results['torch']}.",
    ]
    if "binary" in results:
        blocks += _binary(results["binary"])
    if "operators" in results:
        blocks += _operators(results["operators"])
    if "transformers" in results:
        blocks += _transformers(results["transformers"])
    if "cases" in results:
        blocks += _tasks(results)
    return "\n\n".join(blocks) + "\n"


def _operators(found: Mapping[str, Any]) -> list[str]:
    """Returns the blocks on the operators of the hybrid detector."""
    blocks = [
        "### Operators of the hybrid detector, forward and backward",
        f"A step of the small detector on 8 images of 96 pixels, without optimiser, takes {found['step_ms']:.0f} ms.",
    ]
    for name, cases in (("neighbourhood attention", found["neighbourhood"]), ("sampling", found["sampling"])):
        forms = list(next(iter(cases.values())))
        rows = [[title, *(f"{times[form]:.2f} ms" for form in forms)] for title, times in cases.items()]
        blocks.append(_table([name, *forms], rows))
    return blocks


def _binary(models: Mapping[str, Any]) -> list[str]:
    """Returns the blocks on binary weights."""
    kinds = list(next(iter(models.values()))["ratios"])
    rows = [
        [title, f"{one['step_ms']:.1f} ms", *(f"{one['ratios'][kind]:.3f}" for kind in kinds)]
        for title, one in models.items()
    ]
    return [
        "### Time of a step with binary weights relative to float weights",
        _table(["", "float step", *kinds], rows),
    ]


def _transformers(models: Mapping[str, Any]) -> list[str]:
    """Returns the blocks on the training of Transformers, by our methods and other libraries."""
    rows = []
    for model, figures in models.items():
        for method, one in figures["methods"].items():
            refresh = f"{one['refresh_ms'] / figures['step_ms']:.2f}" if "refresh_ms" in one else ""
            memory = [f"{one[name]:.1f}" if name in one else "" for name in ("bytes_per_weight", "refresh_bytes")]
            rows.append([f"{model} ({figures['step_ms']:.0f} ms)", method, f"{one['ratio']:.3f}", refresh, *memory])
    headers = ["model (dense step)", "method", "step / dense step", "refresh, in steps", "bytes per slab weight"]
    return [
        "### Transformers: time and memory of a sparse step, with other libraries",
        _table([*headers, "more at a refresh"], rows),
    ]


def _tasks(results: Mapping[str, Any]) -> list[str]:
    """Returns the blocks on the study's tasks."""
    cases, mask = results["cases"], results["mask"]
    full = {title: case for title, case in cases.items() if "loop" in case}
    methods = list(next(iter(full.values()))["overheads"])
    refreshes = ", ".join(f"{method} {100 * share:.2f} %" for method, share in results["refresh_share"].items())
    throughput = results["throughput"].values()
    return [
        "### Training throughput and share of time per part of a step",
        _table(
            ["", "samples/s", "share of limit", "input", "forward", "backward", "optimiser", "sparsifier"],
            [_loop_row(*pair) for pair in full.items()],
        ),
        "### Time of a sparse step relative to a dense step",
        _table(["", "dense step", *methods], [_overhead_row(*pair, methods) for pair in full.items()]),
        *_watching(full),
        "### Throughput compared with a loop that decodes files",
        _table(
            ["", "bbnet", "decoding", "ratio", "input, bbnet", "input, decoding", "ratio"],
            [_decoding_row(title, case["decoding"]) for title, case in cases.items()],
        ),
        "### Time and memory of an epoch for more data and wider layers",
        _table(
            ["", *(f"{kind} x{factor}" for kind in ("data", "width") for factor in (1, 2, 4))],
            [_growth_row(task, points) for task, points in results["growth"].items()],
        ),
        "### Time of masks and refreshes",
        f"- Degrees and mask of a 1536 x 6144 slab: {mask['ratio']:.3f} of the time of a torch.sort "
        f"({mask['ms_sort']:.0f} ms).\n"
        f"- All refreshes of a default run of change at budget 0.2, as a share of the training time: {refreshes}.",
        "### Time of a dense training step per model",
        _table(
            ["study, task and model", "time of a step", "weights"],
            [[one["title"], f"{1e3 * one['step_seconds']:.4g} ms", f"{one['weights']:,}"] for one in throughput],
        ),
    ]


def _watching(cases: Mapping[str, Any]) -> list[str]:
    """Returns the block on bbnet.watch, if it was measured."""
    rows = [[title, f"{case['watch']['ratio']:.3f}"] for title, case in cases.items() if "watch" in case]
    if not rows:
        return []
    return [
        "### Time of a step that is watched, one in ten observed, relative to a dense step",
        _table(["", "ratio"], rows),
    ]


def _table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [headers, ["---"] * len(headers), *rows])


def _loop_row(title: str, case: Mapping[str, Any]) -> list[str]:
    loop, parts, sparse = case["loop"], dict(case["shares"]), case["overheads"]
    step = sum(parts.values())
    refreshes = sparse["sp_in"]["refresh_ms"] / sparse["dense"]["step_ms"] / sparse["dense"]["every"]
    parts["sparsifier"] = max(0.0, sparse["sp_in"]["ratio"] - 1 + refreshes) * step
    columns = [f"{100 * part / sum(parts.values()):.1f} %" for part in parts.values()]
    return [title, f"{loop['samples_per_second']:.4g}", f"{loop['of_limit']:.3f}", *columns]


def _overhead_row(title: str, case: Mapping[str, Any], methods: list[str]) -> list[str]:
    overheads, step = case["overheads"], case["overheads"]["dense"]["step_ms"]
    row = [title, f"{step:.1f} ms"]
    for method in methods:
        found = overheads.get(method, {})
        refresh = f" ({found['refresh_ms'] / step:.2f})" if "refresh_ms" in found else ""
        row.append(f"{found['ratio']:.3f}{refresh}" if found else "")
    return row


def _decoding_row(title: str, figures: Mapping[str, Mapping[str, float]]) -> list[str]:
    row = [title]
    for part in ("training", "input"):
        ours, decoding = figures[part]["ours_per_second"], figures[part]["decoding_per_second"]
        row += [f"{ours:.4g}", f"{decoding:.4g}", f"{ours / decoding:.2f}"]
    return row


def _growth_row(task: str, points: Mapping[str, list[Mapping[str, float]]]) -> list[str]:
    return [task, *(f"{one['seconds']:.2f} s, {one['peak_mib']:.0f} MiB" for kind in points for one in points[kind])]


if __name__ == "__main__":
    write_page()
