"""`bbnet weights`: statistics of the weights of each layer of a run, and whether binary weights are binary."""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from tabulate import tabulate

from bbnet.analysis.weights import BINS, weights_table
from bbnet.binary.settings import is_binary
from bbnet.cli.runs import method_of, naming, record_of
from bbnet.data.store import whole_file

HEADINGS = {
    "layer": "layer",
    "kind": "weights",
    "weights": "number",
    "h": "h",
    "minimum": "minimum",
    "maximum": "maximum",
    "mean": "mean",
    "sd": "sd",
    "at_minus": "at -h",
    "at_plus": "at h",
    "between": "between",
    "outside": "outside",
    "zero": "at 0",
    "distance": "distance",
}


def add_to(commands: Any) -> None:
    parser = commands.add_parser(
        "weights",
        help="statistics of the weights of each layer, and whether binary weights are binary",
        description="Shows for each layer of a run where its weights lie, in units of h, the magnitude of a binary "
        "weight: latent and binary weights of binary layers, and the weights of all other layers, for which h would be "
        "sqrt(1.5 / (fan_in + fan_out)). Shares at -h, at h, between them, outside and at 0 (pruned) sum to 1; the "
        "distance is that of the weights that are not 0 to the nearer one of -h and h. Exit status 1 if the weights "
        "of a run that should be binary by its record are not.",
    )
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="the folder of a run, with its record.json")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes the table and histograms as JSON")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="writes the table and histograms as CSV")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draws the histograms (.png or .pdf)")
    parser.set_defaults(run=show_weights)


def show_weights(options: argparse.Namespace) -> None:
    """Shows and writes the table. Raises ValueError if the folder is not that of a run, or a file is not valid."""
    folder, figure = options.run_folder, options.figure
    if figure is not None and figure.suffix not in (".png", ".pdf"):
        raise ValueError(f"--figure {figure}: its name must end with .png or .pdf")
    record = record_of(folder)
    try:
        rows = weights_table(folder, record.half_ranges)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    kind = record.config["method"].get("weights", "float")
    print(f"{folder}: method {method_of(record)} has {kind} weights; all values are in units of h\n")
    print(_shown(rows))
    if options.json is not None:
        with naming(options.json), whole_file(options.json) as partial:
            partial.write_text(json.dumps(_as_json(record.run, kind, rows), indent=1) + "\n", encoding="utf-8")
    if options.csv is not None:
        with naming(options.csv), whole_file(options.csv) as partial:
            rows.to_csv(partial, index=False)
    if figure is not None:
        _draw(rows, figure)
    if is_binary(record.config["method"]) and not record.half_ranges:
        sys.exit(f"{folder}: by its record its weights are {kind}, but the record has no binary layer")
    wrong = rows[rows["not_binary"] > 0]
    if len(wrong):
        named = ", ".join(f"{row.layer} ({row.not_binary} of {row.weights})" for row in wrong.itertuples())
        sys.exit(f"{folder}: by its record its weights are {kind}, but these layers have others: {named}")


def _shown(rows: pd.DataFrame) -> str:
    shown = rows[list(HEADINGS)].rename(columns=HEADINGS)
    shown["layer"] = rows["layer"].replace("", "(model)")
    shown["number"] = [f"{number:,}" for number in rows["weights"]]
    for name, heading in list(HEADINGS.items())[3:]:
        shown[heading] = ["" if math.isnan(value) else f"{value:.4g}" for value in rows[name]]
    alignment = ["left", "left"] + ["right"] * (len(HEADINGS) - 2)
    return tabulate(shown, headers="keys", showindex=False, disable_numparse=True, colalign=alignment)


def _as_json(run: dict[str, Any], kind: str, rows: pd.DataFrame) -> dict[str, Any]:
    """Returns the rows with their histograms as lists; the distance of a layer whose weights are all 0 is null."""
    layers = [
        {name: None if name == "distance" and math.isnan(value) else value for name, value in row.items()}
        for row in rows.drop(columns=BINS).to_dict("records")
    ]
    histograms = rows[BINS].to_numpy().tolist()
    centres = [float(name.removeprefix("bin_")) for name in BINS]
    layers = [layer | {"histogram": counts} for layer, counts in zip(layers, histograms, strict=True)]
    return {"run": run, "weights": kind, "unit": "h", "bin_centres": centres, "layers": layers}


def _draw(rows: pd.DataFrame, path: Path) -> None:
    # Imported here, since matplotlib takes longer than everything else that the command does.
    from bbnet.plots.style import save, use_style
    from bbnet.plots.weights import plot_weights

    use_style()
    parts = {
        str(kind): part.set_index("layer")[BINS].div(part.set_index("layer")["weights"], axis=0)
        for kind, part in rows.groupby("kind", sort=False)
    }
    with naming(path), whole_file(path) as partial:
        save(plot_weights(parts), rows, [partial])
