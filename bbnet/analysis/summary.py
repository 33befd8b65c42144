"""Reads the tables of a summary on first use and caches them."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd


def read_csv(path: Path) -> pd.DataFrame:
    """Reads a table of the summary. Budgets are strings; only empty fields are NaN, so labels such as NA are kept."""
    return pd.read_csv(path, dtype={"budget": str}, keep_default_na=False, na_values=[""])


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
    def data(self) -> dict[str, Any]:
        """By task, what was left out or converted when its data were prepared, and its buckets."""
        return json.loads((self.folder / "data.json").read_text(encoding="utf-8"))

    @property
    def study(self) -> dict[str, Any]:
        """The study with all defaults filled in."""
        return json.loads((self.folder / "study.json").read_text(encoding="utf-8"))
