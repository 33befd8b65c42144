"""Reads the tables of a summary when they are used."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd


def read_csv(path: Path) -> pd.DataFrame:
    """Reads a table of the summary. Budgets are text, and only empty fields are missing, whatever the labels."""
    return pd.read_csv(path, dtype={"budget": str}, keep_default_na=False, na_values=[""])


class Summary:
    """The folder of a summary, restricted to one task and model if they are given.

    Args:
        folder: the folder `summary`.
    """

    def __init__(self, folder: Path, task: str | None = None, model: str | None = None) -> None:
        self.folder = folder
        self.task = task
        self.model = model
        self.read = cache(self._read)

    def _read(self, name: str) -> pd.DataFrame:
        """Reads `{name}.csv` or `{name}.parquet`; raises FileNotFoundError."""
        path = self.folder / f"{name}.csv"
        table = read_csv(path) if path.exists() else pd.read_parquet(path.with_suffix(".parquet"))
        if self.task is None:
            return table
        return table[(table["task"] == self.task) & (table["model"] == self.model)]

    @property
    def study(self) -> dict[str, Any]:
        """The resolved study."""
        return json.loads((self.folder / "study.json").read_text())
