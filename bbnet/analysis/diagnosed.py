"""Collects the diagnostics of runs into tables of the summary, and says what they found."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from bbnet.analysis.collect import KEYS
from bbnet.analysis.summary import Summary, read_csv

POINTS = {"initialisation": "initialisation", "warm_start": "warm start", "end": "end"}
VERDICTS = ["point", "parameter", "module", "check", "kind", "share", "observations", "evidence"]
ALIGNMENT = ["point", "layer", "call", "positions", "cka"]
# By file of the summary, the file of a run that it is made of.
COLLECTED = {
    "gradient_flow.parquet": "gradient_flow.csv",
    "gradient_flow_series.parquet": "gradient_flow_series.csv",
    "activations.csv": "probe/activations.csv",
    "weights.csv": "probe/weights.csv",
    "units.parquet": "probe/units.csv",
    "histograms.parquet": "probe/histograms.csv",
    "alignment.csv": "probe/alignment.csv",
}


def collected(runs: Sequence[Mapping[str, Any]], folders: Sequence[Path]) -> dict[str, pd.DataFrame]:
    """Returns the tables of `summary/diagnostics` by file, from the folders of diagnostics of runs.

    `runs` of the result has a row for each run and point: number of tensors that were watched, and of healthy ones.

    Args:
        runs: the values of `KEYS` of each run.
    Raises: ValueError naming a file that cannot be read.
    """
    parts: dict[str, list[pd.DataFrame]] = {name: [] for name in ("runs.csv", "verdicts.csv", *COLLECTED)}
    for keys, folder in zip(runs, folders, strict=True):
        content = _read(folder / "gradient_flow.json", lambda path: json.loads(path.read_text(encoding="utf-8")))
        verdicts = pd.DataFrame(content["verdicts"], columns=VERDICTS)
        tables = {name: _read(folder / file, read_csv) for name, file in COLLECTED.items()}
        tables |= {"verdicts.csv": verdicts}
        tables |= {"runs.csv": _counts(content, tables["gradient_flow.parquet"], verdicts)}
        for name, table in tables.items():
            of_run = pd.DataFrame([keys] * len(table), columns=KEYS, index=table.index)
            parts[name].append(pd.concat([of_run, table], axis=1))
    return {name: _joined(tables) for name, tables in parts.items()}


def _joined(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    return pd.concat([table for table in tables if len(table)] or tables[:1], ignore_index=True)


def _read(path: Path, reader: Any) -> Any:
    try:
        return reader(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({' '.join(str(error).split())})") from None


def _counts(content: Mapping[str, Any], flow: pd.DataFrame, verdicts: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for point in filter(content["points"].__contains__, POINTS):
        ill = set(verdicts[verdicts["point"] == point]["parameter"])
        watched = int(((flow["point"] == point) & (flow["status"] == "watched")).sum())
        row = {"point": point, **content["points"][point], "tensors": watched, "healthy": watched - len(ill)}
        rows.append(row | {"fingerprint": content["fingerprint"]})
    return pd.DataFrame(rows)


def folder_of(run: Mapping[str, Any]) -> str:
    """Returns the folder of a run below `runs/`, which is also how a message names it."""
    return "{task}/{model}/{method}/b{budget}/s{seed}".format(**run)


def counted(summary: Summary) -> Iterator[str]:
    """Yields a line for each run with how many of its tensors are healthy at each point."""
    runs = summary.read("diagnostics/runs")
    for _, points in runs.groupby(KEYS, sort=False):
        parts = [f"{row.healthy} of {row.tensors} from the {POINTS[row.point]}" for row in points.itertuples()]
        yield f"{folder_of(points.iloc[0])}: tensors without findings: {', '.join(parts)}"


def unmoved(summary: Summary) -> str:
    """Returns a sentence on the tensors that are trained and in no observed step changed by any bit, else no text."""
    flow = summary.read("diagnostics/gradient_flow")
    still = flow[(flow["status"] == "watched") & (flow["moves"] == 0)]
    if still.empty:
        return ""
    first, others = still.iloc[0], len(still) - 1
    more = f"; {others} more {'case' if others == 1 else 'cases'}: see summary/diagnostics" if others else ""
    return (
        f"run {folder_of(first)}: tensor {first['parameter']} never moves, in none of {first['observations']} observed "
        f"steps from the {POINTS[first['point']]}{more}"
    )


def outdated_note(summary: Summary) -> str:
    """Returns a sentence if runs of one task and model were trained again since they were diagnosed, else no text.

    A shipped summary has no runs beside it, and no such sentence.
    """
    runs = summary.read("diagnostics/runs").drop_duplicates(KEYS)
    found = [
        _fingerprint(summary.folder.parent / "runs" / folder_of(run) / "record.json") for run in runs.to_dict("records")
    ]
    newer = sum(own not in (None, made) for own, made in zip(found, runs["fingerprint"], strict=True))
    if not newer:
        return ""
    return f"{newer} of {len(runs)} runs were trained again since; snakemake diagnostics makes these figures anew"


def _fingerprint(record: Path) -> str | None:
    try:
        return json.loads(record.read_text(encoding="utf-8"))["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
