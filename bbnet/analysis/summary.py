"""Reads the tables of a summary on first use and caches them."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd


def read_csv(path: Path) -> pd.DataFrame:
    """Reads a table of the summary. Budgets, slabs and layers are text; only empty fields are NaN, not a label NA."""
    return pd.read_csv(
        path, dtype=dict.fromkeys(("budget", "slab", "layer"), str), keep_default_na=False, na_values=[""]
    )


def baselines_of(study: Mapping[str, Any]) -> dict[str, str]:
    """Returns the baseline of each task whose models are compared: those that name one and have another model.

    Args:
        study: `Summary.study`. Studies of older versions name no baselines.
    """
    return {
        task: settings["baseline"]
        for task, settings in study["tasks"].items()
        if settings.get("baseline") is not None and len(settings["models"]) > 1
    }


def beside_of(study: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Returns, by task and model, one more model with which it is compared; see `baselines_of`."""
    return {task: settings.get("beside", {}) for task, settings in study["tasks"].items()}


class Summary:
    """The tables of a summary, restricted to one task, or to one task and model, if given.

    Args:
        folder: the folder `summary` of a study.
    """

    def __init__(self, folder: Path, task: str | None = None, model: str | None = None) -> None:
        self.folder = folder
        self.task = task
        self.model = model
        self.read = cache(self._read)

    def _read(self, name: str) -> pd.DataFrame:
        """Reads `{name}.csv`, else `{name}.parquet`. Raises FileNotFoundError if neither exists."""
        path = self.folder / f"{name}.csv"
        table = read_csv(path) if path.exists() else pd.read_parquet(path.with_suffix(".parquet"))
        if self.task is None:
            return table
        of_task = table[table["task"] == self.task]
        return of_task if self.model is None else of_task[of_task["model"] == self.model]

    @property
    def baseline(self) -> str | None:
        """The model with which the others of the task are compared, if there is one."""
        return baselines_of(self.study).get(self.task)

    @property
    def data(self) -> dict[str, Any]:
        """By task, what was left out or converted when its data were prepared, and its buckets."""
        return json.loads((self.folder / "data.json").read_text(encoding="utf-8"))

    @property
    def study(self) -> dict[str, Any]:
        """The study with all defaults filled in."""
        return json.loads((self.folder / "study.json").read_text(encoding="utf-8"))
