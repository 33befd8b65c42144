"""Training steps until models of different widths have learned a task, and their scaling with the width."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from bbnet.analysis.collect import KEYS
from bbnet.analysis.statistics import half_width

CELL = ["formula", "method", "side", "budget"]
Scaled = Callable[[Mapping[str, Any]], tuple[str, int]]


def steps_table(history: pd.DataFrame, metric: str, level: float) -> pd.DataFrame:
    """Returns one row per run: the training steps after which a metric on dev first was at least `level`.

    `steps` counts from the first step of the warm-up and is a multiple of the steps of an epoch, after which dev is
    scored; it is NaN if the level was never reached, in `last_step` steps. `density` is that of the slabs then.

    Args:
        history: `history.parquet`, with the column `dev_{metric}`.
    """
    ordered = history.sort_values("step")
    first = ordered[ordered[f"dev_{metric}"] >= level].groupby(KEYS, sort=False)[["step", "density"]].first()
    last = history.groupby(KEYS, sort=False)["step"].max()
    return last.rename("last_step").to_frame().join(first.rename(columns={"step": "steps"})).reset_index()


def placed(table: pd.DataFrame, models: Mapping[str, Mapping[str, Any]], scaled: Scaled) -> pd.DataFrame:
    """Returns a table with the columns `formula` and `width` of each row's model.

    Args:
        models: settings of the models by label.
        scaled: see `bbnet.tasks.logic.scaling`.
    """
    places = {label: scaled(model) for label, model in models.items()}
    return table.assign(
        formula=[places[label][0] for label in table["model"]], width=[places[label][1] for label in table["model"]]
    )


def steps_by_width(steps: pd.DataFrame) -> pd.DataFrame:
    """Returns one row per cell and width, by width: number of runs, how many never got there, and the median of steps.

    A run that never got there is later than all others in the median, which is NaN if it falls on such a run.

    Args:
        steps: `steps_table` with the columns of `placed`.
    """
    of_cells = steps.groupby([*CELL, "width"], sort=False)["steps"]
    rows = of_cells.agg(n_seeds="size", never=lambda values: values.isna().sum(), median=_median).reset_index()
    order = rows.groupby(CELL, sort=False).ngroup()
    rows = rows.assign(order=order).sort_values(["order", "width"], ignore_index=True).drop(columns="order")
    return rows.astype({"n_seeds": int, "never": int})


def _median(steps: pd.Series) -> float:
    middle = float(steps.fillna(np.inf).median())
    return middle if np.isfinite(middle) else np.nan


def exponents(steps: pd.DataFrame) -> pd.DataFrame:
    """Returns one row per cell with at least two widths at which every seed got there: the exponent of the scaling.

    The exponent is the slope of the least-squares line of log(steps) on log(width), fitted for each seed; `exponent` is
    the mean over seeds, and `low` to `high` its 95 % interval over seeds (t). Widths at which a run never got there are
    left out for all seeds, because what is known of that run is only that its steps are more than those it had:
    `widths` were used, `left_out` were not, with `never` of `n_runs` runs of the cell. Seeds that lack a run at some
    width, as in a study that is not finished, are left out as well.

    Args:
        steps: `steps_table` with the columns of `placed`.
    """
    rows = []
    for keys, cell in steps.groupby(CELL, sort=False):
        cell = cell[cell.groupby("seed")["width"].transform("nunique") == cell["width"].nunique()]
        by_width = cell.pivot(index="seed", columns="width", values="steps").sort_index(axis=1)
        complete = by_width.dropna(axis=1)
        if complete.shape[1] < 2 or complete.empty:
            continue
        x, y = np.log(complete.columns.to_numpy(float)), np.log(complete.to_numpy(float))
        x = x - x.mean()
        slopes = y @ x / (x @ x)
        half = half_width(slopes) if len(slopes) > 1 else np.nan
        rows.append(
            dict(zip(CELL, keys, strict=True))
            | {"exponent": slopes.mean(), "low": slopes.mean() - half, "high": slopes.mean() + half}
            | {"n_seeds": len(slopes), "widths": _listed(complete.columns)}
            | {"left_out": _listed(by_width.columns.difference(complete.columns))}
            | {"never": int(by_width.isna().to_numpy().sum()), "n_runs": by_width.size}
        )
    columns = [*CELL, "exponent", "low", "high", "n_seeds", "widths", "left_out", "never", "n_runs"]
    return pd.DataFrame(rows, columns=columns)


def _listed(widths: pd.Index) -> str:
    return " ".join(map(str, widths))
