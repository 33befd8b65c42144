"""From the folders of runs to the tidy tables of the summary."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd

KEYS = ["task", "model", "method", "side", "budget", "seed"]
COST_METRICS = {
    "density": "share",
    "net_density": "share",
    "flops": "FLOPs",
    "churn": "share",
    "units_at_smallest": "share",
    "silent_units": "share",
}


@dataclass(frozen=True)
class Cell:
    """One run asked for, and what became of it.

    Args:
        keys: its `KEYS`.
        folder: of its files.
        status: `done`, `failed`, `stale` or `missing`; `why` says more.
        taken: whether its numbers enter the summary.
    """

    keys: dict[str, Any]
    folder: Path
    status: str
    why: str
    taken: bool


def grid_table(cells: Sequence[Cell]) -> pd.DataFrame:
    """Every cell asked for, with `status` and `why`."""
    return pd.DataFrame([cell.keys | {"status": cell.status, "why": cell.why} for cell in cells])


def runs_table(cells: Sequence[Cell], relative_metrics: Mapping[str, Callable] = MappingProxyType({})) -> pd.DataFrame:
    """Tidy: run keys, metric, value; the task's metrics on test, those relative to dense, then `COST_METRICS`.

    `flops` are those of one sample; `churn` is that of `steady_churn`; `units_at_smallest` (degree k_min or less) and
    `silent_units` (on dev) are shares of the units of all slabs.

    Args:
        relative_metrics: by task, of the items of a run and of the dense run of the same seed; where that run is not
            taken there are none.
    """
    dense = {_comparable(cell): cell for cell in cells if cell.taken and cell.keys["method"] == "dense"}
    rows = []
    for cell in cells:
        if not cell.taken:
            continue
        cost = _read_json(cell.folder / "cost.json")
        values = _read_json(cell.folder / "metrics.json")
        beside = dense.get(_comparable(cell))
        if beside not in (None, cell) and cell.keys["task"] in relative_metrics:
            relative = relative_metrics[cell.keys["task"]](_items(cell.folder), _items(beside.folder))
            values |= {name: float(value) for name, value in relative.items()}
        values |= {"density": cost["density"], "net_density": cost["net_density"], "flops": cost["flops"]["sparse"]}
        units = pd.read_csv(cell.folder / "units.csv")
        values |= {
            "churn": steady_churn(pd.read_csv(cell.folder / "refreshes.csv", dtype={"budget": str})),
            "units_at_smallest": units["at_smallest"].mean(),
            "silent_units": units["silent"].mean(),
        }
        rows += [cell.keys | {"metric": metric, "value": value} for metric, value in values.items()]
    return pd.DataFrame(rows, columns=[*KEYS, "metric", "value"])


def steady_churn(refreshes: pd.DataFrame) -> float:
    """Share of the connections that a refresh changes once the budget is reached: pruned and regrown over old and new.

    Over all refreshes at the last budget but the first, which still comes down to it; 0 without any.
    """
    at_budget = refreshes[refreshes["budget"] == refreshes["budget"].iloc[-1]] if len(refreshes) else refreshes
    steady = at_budget[at_budget["step"] > at_budget["step"].min()]
    if not len(steady):
        return 0.0
    after, pruned, regrown = (int(steady[column].sum()) for column in ("connections", "pruned", "regrown"))
    return (pruned + regrown) / (2 * after + pruned - regrown)


def _comparable(cell: Cell) -> tuple[str, str, int]:
    return cell.keys["task"], cell.keys["model"], cell.keys["seed"]


def items_table(cells: Sequence[Cell]) -> pd.DataFrame:
    """One row per run and item: run keys and the task's sufficient statistics."""
    return _join(cells, _items)


def _items(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "items.parquet")


def history_table(cells: Sequence[Cell]) -> pd.DataFrame:
    """One row per run and epoch; `selected` marks the one whose weights were scored."""

    def read(folder: Path) -> pd.DataFrame:
        record = _read_json(folder / "record.json")
        history = pd.read_csv(folder / "history.csv")
        history["selected"] = history["epoch"] == record["selected_epoch"]
        return history

    return _join(cells, read)


def units_table(cells: Sequence[Cell], warm_ups: Sequence[tuple[dict[str, Any], Path]]) -> pd.DataFrame:
    """One row per slab and unit, of every run (`phase` run) and every warm start (`phase` warm_up)."""

    def read(folder: Path) -> pd.DataFrame:
        return pd.read_csv(folder / "units.csv").rename(columns={"side": "slab_side"})

    frames = [_join(cells, read)]
    frames[0].insert(0, "phase", "run")
    for keys, folder in warm_ups:
        if (folder / "units.csv").is_file():
            frames.append(_with_keys(read(folder), {"phase": "warm_up"} | keys))
    return pd.concat([frame for frame in frames if len(frame)] or frames, ignore_index=True)


def timing_table(cells: Sequence[Cell]) -> pd.DataFrame:
    """Wall time, memory, machine and date of each training: the only table that may differ between equal studies."""
    rows = []
    for cell in cells:
        if cell.taken:
            record = _read_json(cell.folder / "record.json")
            measured = {key: record[key] for key in ("began", "seconds", "peak_memory_mib", "device")}
            rows.append(cell.keys | measured | {"host": record["environment"]["host"]})
    return pd.DataFrame(rows, columns=[*KEYS, "began", "seconds", "peak_memory_mib", "device", "host"])


def _join(cells: Sequence[Cell], read: Any) -> pd.DataFrame:
    frames = [_with_keys(read(cell.folder), cell.keys) for cell in cells if cell.taken]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=KEYS)


def _with_keys(frame: pd.DataFrame, keys: dict[str, Any]) -> pd.DataFrame:
    return pd.concat([pd.DataFrame([keys] * len(frame), index=frame.index), frame], axis=1)


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())
