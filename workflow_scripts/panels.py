"""Selects the test cases that figures show side by side, for each pair of a run and its reference."""

import importlib

from common import JSON, TEXT, arguments, read_json, run, to_json

import numpy as np
import pandas as pd

from bbnet.analysis.draws import split_draws
from bbnet.data.store import whole_file


def main(options) -> None:
    panels = importlib.import_module(f"bbnet.tasks.{options.task}.panels")
    prepared, index = options.prepared.with_suffix(""), read_json(options.prepared)
    arrays, described = {}, {}
    for model, pairs in options.shown.items():
        for dense, other in pairs:
            items = {
                name: split_draws(pd.read_parquet(options.results / "runs" / name / "items.parquet"))[0]
                for name in (dense, other)
            }
            predictions = {
                name: dict(np.load(options.results / "runs" / folder / "predictions.npz"))
                for name, folder in (("dense", dense), ("other", other))
            }
            _, _, method, budget, _ = other.split("/")
            for rank, item in panels.choose(items[dense], items[other]).items():
                key = f"{model}/{method}/{budget}/{rank}"
                for name, array in panels.case(prepared, index, item, predictions).items():
                    arrays[f"{key}/{name}"] = array
                described[key] = panels.describe(items[dense].loc[item], items[other].loc[item])
    with whole_file(options.panels) as partial:
        np.savez_compressed(partial, cases=np.array(to_json(described)), **arrays)


run(main, arguments(__doc__, task=TEXT, shown=JSON, results={}, prepared={}, panels={}))
