"""The tables of a summary, read when they are asked for."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd


def read_csv(path: Path) -> pd.DataFrame:
    """A table of the summary: budgets are text, and only what is empty is missing, whatever methods are called."""
    return pd.read_csv(path, dtype={"budget": str}, keep_default_na=False, na_values=[""])


class Summary:
    """A summary's folder, seen by one task and model, or whole where these are absent.

    Args:
        folder: of the summary.
    """

    def __init__(self, folder: Path, task: str | None = None, model: str | None = None) -> None:
        self.folder = folder
        self.task = task
        self.model = model
        self.read = cache(self._read)

    def _read(self, name: str) -> pd.DataFrame:
        """The table `{name}.csv` or `{name}.parquet`; raises FileNotFoundError."""
        path = self.folder / f"{name}.csv"
        table = read_csv(path) if path.exists() else pd.read_parquet(path.with_suffix(".parquet"))
        if self.task is None:
            return table
        return table[(table["task"] == self.task) & (table["model"] == self.model)]

    @property
    def study(self) -> dict[str, Any]:
        """The study as it was resolved."""
        return json.loads((self.folder / "study.json").read_text())
