"""Reads the folders of all runs and combines them into the tables of the summary."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from bbnet.analysis import weights
from bbnet.analysis.draws import mean_metrics, split_draws
from bbnet.analysis.metric import Metric
from bbnet.binary.settings import is_binary

KEYS = ["task", "model", "method", "side", "budget", "seed"]
COST_METRICS = {
    "density": Metric("density", "share", "lower", 0, 1),
    "net_density": Metric("net density", "share", "lower", 0, 1),
    "flops": Metric("FLOPs", "FLOPs", "lower", 0),
    "parameters": Metric("kept parameters", "parameters", "lower", 0),
    "bytes": Metric("stored bytes", "bytes", "lower", 0),
    "churn": Metric("churn", "share", "lower", 0, 1),
    "units_at_smallest": Metric("units at k_min", "share", "lower", 0, 1),
    "silent_units": Metric("silent units", "share", "lower", 0, 1),
}
COSTS = ("density", "net_density")
NO_LATENT = pd.DataFrame(columns=["weights", "statistics", "metric", "value"])

Metrics = Callable[[Mapping[str, np.ndarray]], Mapping[str, float]]


@dataclass(frozen=True)
class Cell:
    """A run of the study and its status.

    Args:
        keys: the values of `KEYS`.
        folder: the run's folder.
        status: `done`, `failed`, `stale` or `missing`.
        why: the reason for the status; empty if there is none.
        taken: whether the run is included in the summary.
    """

    keys: dict[str, Any]
    folder: Path
    status: str
    why: str
    taken: bool


@dataclass(frozen=True)
class Run:
    """The checked contents of the files of a run that is included in the summary."""

    keys: dict[str, Any]
    record: dict[str, Any]
    cost: dict[str, Any]
    metrics: dict[str, float]
    items: pd.DataFrame
    units: pd.DataFrame
    codes: pd.DataFrame
    history: pd.DataFrame
    refreshes: pd.DataFrame
    weights: pd.DataFrame
    latent: pd.DataFrame


def read_runs(
    cells: Sequence[Cell], metrics: Mapping[str, Metrics], selection: Mapping[str, str]
) -> tuple[list[Cell], list[Run]]:
    """Reads the runs of all taken cells. Returns the cells, now failed if a run's files are invalid, and the runs.

    Args:
        metrics: by task, the function that computes metrics from items. A stored NaN is valid only if it returns NaN.
        selection: by task, the selection metric, which must not be NaN.
    """
    found, runs = [], []
    for cell in cells:
        if cell.taken:
            task = cell.keys["task"]
            try:
                runs.append(_read_run(cell, metrics[task], selection[task]))
            except ValueError as error:
                cell = replace(cell, status="failed", why=f"{error}; delete the file to rerun the run", taken=False)
        found.append(cell)
    return found, runs


def _read_run(cell: Cell, metrics: Metrics, selection: str) -> Run:
    """Reads a run. Raises ValueError naming a file that is truncated, of another run, or with an invalid number."""
    folder = cell.folder
    record, cost, values = (_read(folder / f"{name}.json", _read_json) for name in ("record", "cost", "metrics"))
    if record.get("run") != cell.keys:
        raise ValueError(f"record.json: belongs to another run, {record.get('run')}")
    items = _read(folder / "items.parquet", pd.read_parquet)
    _check_metrics(values, items, metrics, selection)
    numbers = [
        *map(cost.get, (*COSTS, "weights")),
        cost.get("flops", {}).get("sparse"),
        cost.get("bytes", {}).get("stored"),
    ]
    if not all(map(_is_number, numbers)):
        raise ValueError("cost.json: density, net density, weights, FLOPs or bytes is missing or not a finite number")
    history = _read(folder / "history.csv", read_rows)
    history["selected"] = history["epoch"] == record["selected_epoch"]
    refreshes, units, codes = (_read(folder / f"{name}.csv", read_rows) for name in ("refreshes", "units", "codes"))
    recorded, method = record.get("half_ranges", {}), record.get("config", {}).get("method", {})
    of_layers = weights.weights_table(folder, recorded) if is_binary(method) else weights.NO_WEIGHTS
    latent = _read(folder / "latent.csv", read_rows) if is_binary(method) else NO_LATENT
    return Run(cell.keys, record, cost, values, items, units, codes, history, refreshes, of_layers, latent)


def read_rows(path: Path) -> pd.DataFrame:
    """Reads a table of a run. Budgets and slabs are text, also the slab 0 of an nn.Sequential."""
    return pd.read_csv(path, dtype={"budget": str, "slab": str})


def _read(path: Path, reader: Callable[[Path], Any]) -> Any:
    try:
        return reader(path)
    except (OSError, ValueError) as error:  # raised by json, pandas and pyarrow
        raise ValueError(f"{path.name}: cannot be read ({' '.join(str(error).split())})") from None


def _check_metrics(values: Mapping[str, Any], items: pd.DataFrame, metrics: Metrics, selection: str) -> None:
    for name, value in values.items():
        if not isinstance(value, int | float) or math.isinf(value):
            raise ValueError(f"metrics.json: {name} is {value!r}, not a finite number or NaN")
    undefined = [name for name, value in values.items() if math.isnan(value)]
    if selection not in values or selection in undefined:
        raise ValueError(f"metrics.json: {selection} is {values.get(selection, 'missing')}")
    if undefined:
        of_draws = [{name: each[name].to_numpy() for name in each} for each in split_draws(items)]
        recomputed = mean_metrics(metrics, of_draws)
        wrong = [name for name in undefined if not math.isnan(recomputed.get(name, 0.0))]
        if wrong:
            value = float(recomputed.get(wrong[0], 0.0))
            raise ValueError(f"metrics.json: {wrong[0]} is nan, but items.parquet gives {value:.6g}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def grid_table(cells: Sequence[Cell]) -> pd.DataFrame:
    """Returns one row per run of the study with its status and the reason for it."""
    return pd.DataFrame([cell.keys | {"status": cell.status, "why": cell.why} for cell in cells])


def runs_table(runs: Sequence[Run], relative_metrics: Mapping[str, Callable] = MappingProxyType({})) -> pd.DataFrame:
    """Returns one row per run and metric: metrics on test, metrics relative to dense, and `COST_METRICS`.

    Metrics of a run with several calibration draws are means over them.

    `flops` is per sample; `parameters` counts those of the network that are kept, of which a binary weight is one;
    `bytes` is what storing the network takes (`bbnet.sparsity.cost.stored_bytes`); `churn` is
    `steady_churn`; `units_at_smallest` (degree k_min or less) and `silent_units` (on dev) are shares of the units of
    all slabs.

    Args:
        relative_metrics: by task, a function of the items of a run and of the dense run of the same seed. Its metrics
            are omitted if that dense run is not taken.
    """
    dense = {_comparable(run): run for run in runs if run.keys["method"] == "dense"}
    rows = []
    for run in runs:
        values = dict(run.metrics)
        dense_run = dense.get(_comparable(run))
        if dense_run is not None and dense_run is not run and run.keys["task"] in relative_metrics:
            values |= mean_metrics(relative_metrics[run.keys["task"]], split_draws(run.items), dense_run.items)
        values |= {name: run.cost[name] for name in COSTS}
        values |= {"flops": run.cost["flops"]["sparse"], "bytes": run.cost["bytes"]["stored"]}
        values["parameters"] = round(run.cost["weights"] * run.cost["net_density"])
        values |= {
            "churn": steady_churn(run.refreshes),
            "units_at_smallest": run.units["at_smallest"].mean(),
            "silent_units": run.units["silent"].mean(),
        }
        rows += [run.keys | {"metric": metric, "value": value} for metric, value in values.items()]
    return pd.DataFrame(rows, columns=[*KEYS, "metric", "value"])


def data_summary(index: Mapping[str, Any], buckets: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the numbers of samples that were skipped or converted, by kind, what was divided, and the buckets.

    Args:
        index: index of the prepared data; empty if it is not there any more.
        buckets: `buckets.json` without or with `types`; empty if the task has none.
    """
    counts = {name: _count_by_kind(index[name]) for name in ("skipped", "resampled") if name in index}
    counts |= {"converted": _count_by_kind(index["converted"])} if index.get("converted") else {}
    divided = {"divided": list(index["divided"])} if "divided" in index else {}
    described = {"buckets": {name: value for name, value in buckets.items() if name != "types"}} if buckets else {}
    return counts | divided | described


def _count_by_kind(found: Mapping[str, Any]) -> dict[str, int]:
    """Counts lists of names by kind, in a map from kinds, or from folders to such maps."""
    counts: dict[str, int] = {}
    for kind, names in found.items():
        for inner, number in (_count_by_kind(names) if isinstance(names, Mapping) else {kind: len(names)}).items():
            counts[inner] = counts.get(inner, 0) + number
    return counts


def steady_churn(refreshes: pd.DataFrame) -> float:
    """Returns the share of connections that refreshes at the budget change: (pruned + regrown) / (before + after).

    The sums are over all refreshes at the final budget except the first, which still reduces the density. The share is
    0 if there are none.
    """
    at_budget = refreshes[refreshes["budget"] == refreshes["budget"].iloc[-1]] if len(refreshes) else refreshes
    steady = at_budget[at_budget["step"] > at_budget["step"].min()]
    if not len(steady):
        return 0.0
    after, pruned, regrown = (int(steady[column].sum()) for column in ("connections", "pruned", "regrown"))
    return (pruned + regrown) / (2 * after + pruned - regrown)


def _comparable(run: Run) -> tuple[str, str, int]:
    return run.keys["task"], run.keys["model"], run.keys["seed"]


def items_table(runs: Sequence[Run]) -> pd.DataFrame:
    """Returns one row per run and test item with the task's sufficient statistics."""
    return _join([(run.keys, run.items) for run in runs])


def history_table(runs: Sequence[Run]) -> pd.DataFrame:
    """Returns one row per run and epoch; `selected` is true for the epoch whose weights were scored."""
    return _join([(run.keys, run.history) for run in runs])


def refreshes_table(runs: Sequence[Run]) -> pd.DataFrame:
    """Returns one row per run, refresh and slab: step, `budget_then`, and connections kept, pruned and regrown."""
    return _join([(run.keys, run.refreshes.rename(columns={"budget": "budget_then"})) for run in runs])


def units_table(runs: Sequence[Run], warm_ups: Sequence[tuple[dict[str, Any], Path]]) -> pd.DataFrame:
    """Returns one row per slab and unit of every run (`phase` run) and every warm start (`phase` warm_up)."""
    found = [({"phase": "run"} | run.keys, _side_of_slab(run.units)) for run in runs]
    for keys, folder in warm_ups:
        if (folder / "units.csv").is_file():
            found.append(({"phase": "warm_up"} | keys, _side_of_slab(read_rows(folder / "units.csv"))))
    return _join(found, ["phase", *KEYS])


def codes_table(runs: Sequence[Run]) -> pd.DataFrame:
    """Returns one row per run and slab: joint statistics of its units (`bbnet.training.codes.MEASURES`), and costs.

    The costs are `fan`, kept `connections`, and the FLOPs of its layer, dense and as sparsified; of a dense run they
    are NaN for slabs of side `out` that are on side `in` no slabs.
    """
    return _join(
        [(run.keys, _side_of_slab(run.codes).merge(_costs_of_slabs(run), on="slab", how="left")) for run in runs]
    )


def _costs_of_slabs(run: Run) -> pd.DataFrame:
    rows = [
        (name, slab["fan"], slab["connections"], slab["flops"]["dense"], slab["flops"]["sparse"])
        for name, slab in run.record["slabs"].items()
    ]
    return pd.DataFrame(rows, columns=["slab", "fan", "connections", "flops_dense", "flops"])


def weights_table(runs: Sequence[Run]) -> pd.DataFrame:
    """Returns one row per run with binary weights, layer and kind: the columns of `weights.weights_table`."""
    binary = [(run.keys, run.weights) for run in runs if len(run.weights)]
    return _join(binary) if binary else pd.DataFrame(columns=[*KEYS, *weights.COLUMNS])


def latent_table(runs: Sequence[Run]) -> pd.DataFrame:
    """Returns the scores of runs with binary weights: one row per run, weights, statistics and metric.

    `weights` are binary or latent. `statistics` of batch norms are as trained, with the binary weights, or taken anew
    from training batches. The run's own scores are those of binary weights and trained statistics.
    """
    own = [
        pd.DataFrame(
            {"weights": "binary", "statistics": "trained", "metric": list(run.metrics), "value": run.metrics.values()}
        )
        for run in runs
    ]
    parts = [
        (run.keys, pd.concat([scores, run.latent])) for run, scores in zip(runs, own, strict=True) if len(run.latent)
    ]
    return _join(parts) if parts else pd.DataFrame(columns=[*KEYS, *NO_LATENT])


def _side_of_slab(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.rename(columns={"side": "slab_side"})


def timing_table(runs: Sequence[Run]) -> pd.DataFrame:
    """Returns date, time, memory and machine of each training, the only table that may differ between equal studies."""
    measured = ("began", "seconds", "peak_memory_mib", "device")
    rows = [
        run.keys | {key: run.record[key] for key in measured} | {"host": run.record["environment"]["host"]}
        for run in runs
    ]
    return pd.DataFrame(rows, columns=[*KEYS, *measured, "host"])


def _join(parts: Sequence[tuple[dict[str, Any], pd.DataFrame]], names: Sequence[str] = KEYS) -> pd.DataFrame:
    """Concatenates the frames of all parts, with the values of the keys `names` as the first columns."""
    if not parts:
        return pd.DataFrame(columns=list(names))
    lengths = [len(frame) for _, frame in parts]
    joined = pd.concat([frame for _, frame in parts if len(frame)] or [parts[0][1]], ignore_index=True)
    keys = {name: np.repeat(np.array([keys[name] for keys, _ in parts], dtype=object), lengths) for name in names}
    keys = {name: values.astype(np.int64) if name == "seed" else values for name, values in keys.items()}
    return pd.concat([pd.DataFrame(keys, index=joined.index), joined], axis=1)


def _read_json(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"must be a map, found {type(content).__name__}")
    return content
