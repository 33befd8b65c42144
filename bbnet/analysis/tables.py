"""Tables of a paper: from cells to rows that a reader compares."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

COSTS = {
    "net_density": "net density",
    "flops": "MFLOPs",
    "churn": "churn",
    "units_at_smallest": "units at k_min",
    "silent_units": "silent units",
}


def results_table(cells: pd.DataFrame, metrics: Mapping[str, str]) -> pd.DataFrame:
    """One row per method and budget: seeds, costs, and of each metric `mean` and the interval `low`, `high`, unrounded.

    Args:
        cells: `statistics.cells_table` of one task and model.
        metrics: names and units, in the order of the columns; NaN where a cell has none, as dense of what is relative
            to dense.
    """
    rows = []
    for (method, side, budget), cell in cells.groupby(["method", "side", "budget"], sort=False):
        by_metric = cell.set_index("metric")
        row = {"method": method, "side": side, "budget": budget, "seeds": int(by_metric["n_seeds"].iloc[0])}
        row |= {name: by_metric.loc[name, "mean"] for name in COSTS}
        for name in metrics:
            bounds = by_metric.loc[name] if name in by_metric.index else {}
            row |= {f"{name}_{bound}": bounds.get(bound, np.nan) for bound in ("mean", "sd", "low", "high")}
        rows.append(row)
    return pd.DataFrame(rows)


def shown_table(table: pd.DataFrame, metrics: Mapping[str, str]) -> pd.DataFrame:
    """`results_table` as text to read: `mean [low, high]` with the unit in the heading."""
    shown = table[["method", "side", "budget", "seeds"]].astype(str)
    for name, heading in COSTS.items():
        shown[heading] = [f"{value / 1e6:.4g}" if name == "flops" else f"{value:.3f}" for value in table[name]]
    for name, unit in metrics.items():
        columns = (table[f"{name}_{bound}"] for bound in ("mean", "low", "high"))
        shown[f"{name} ({unit})"] = [
            "–" if np.isnan(mean) else f"{mean:.3f} [{low:.3f}, {high:.3f}]"
            for mean, low, high in zip(*columns, strict=True)
        ]
    return shown


def incomplete_note(grid: pd.DataFrame) -> str:
    """What a figure or table says of runs that are failed, missing or stale; empty if all are done."""
    counts = grid["status"].value_counts().drop("done", errors="ignore").sort_index()
    kinds = ", ".join(f"{count} {status}" for status, count in counts.items())
    return f"incomplete: {kinds} of {len(grid)} runs" if kinds else ""


def markdown(shown: pd.DataFrame, caption: str) -> str:
    return f"{shown.to_markdown(index=False, disable_numparse=True)}\n\n{caption}\n"


def latex(shown: pd.DataFrame, caption: str) -> str:
    """A table environment with booktabs rules."""
    escaped = shown.rename(columns=_escape).map(_escape)
    text = escaped.style.hide(axis="index").to_latex(
        hrules=True, column_format="l" * len(shown.columns), caption=_escape(caption), position_float="centering"
    )
    return f"% needs \\usepackage{{booktabs}}\n{text}"


def _escape(text: str) -> str:
    for character in "&%$#_{}":
        text = text.replace(character, f"\\{character}")
    return text
