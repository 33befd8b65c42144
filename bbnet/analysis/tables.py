"""Builds the tables of the results from the summary and formats them as Markdown and LaTeX."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd

from bbnet.analysis.diagnosed import POINTS
from bbnet.analysis.metric import Metric
from bbnet.analysis.pareto import FRONTS, points_table
from bbnet.analysis.scaling import exponents, placed, steps_by_width, steps_table
from bbnet.analysis.sensitivity import DEFAULT, sensitivity_table
from bbnet.analysis.summary import Summary
from bbnet.binary.settings import WeightValues, is_binary
from bbnet.models.settings.big_little import branch_of

SHARES = {
    "density": "density",
    "net_density": "net density",
    "flops_of_dense": "FLOPs of dense",
    "churn": "churn",
    "units_at_smallest": "units at k_min",
    "silent_units": "silent units",
}
LATENT_SHARES = {
    "zero": "at 0",
    "at_minus": "at -h",
    "at_plus": "at h",
    "between": "between -h and h",
    "distance": "distance to -h or h",
}
OF_CONTRAST = {
    "effect": "difference",
    "low": "difference_low",
    "high": "difference_high",
    "p": "p",
    "p_holm": "p_holm",
    "verdict": "verdict",
}
SHOWN_OF_MODELS = (("mean", "low", "high"), ("difference", "difference_low", "difference_high"), ("p_holm",))
COSTS_OF_MODELS = ("density", "net_density", "flops", "parameters", "bytes")
WEIGHTS_FILE = "summary/weights.csv"
CELL = ["method", "side", "budget"]
MODEL_CELL = ["model", *CELL]
LATENT_SCORES = {
    ("binary", "trained"): "binary",
    ("binary", "anew"): "binary, statistics anew",
    ("latent", "trained"): "latent",
    ("latent", "anew"): "latent, statistics anew",
}
FEW_SEEDS = 3
DASH = "–"


@dataclass(frozen=True)
class Table:
    """A table: unrounded `data`, formatted text `shown`, and `bold`, the (row, heading) pairs that are highlighted."""

    data: pd.DataFrame
    shown: pd.DataFrame
    caption: str
    bold: frozenset[tuple[int, str]] = field(default_factory=frozenset)


def results(summary: Summary, task: ModuleType) -> Table:
    """Returns the metrics of every method and budget. The best is bold if its contrasts are all significant."""
    cells = summary.read("cells")
    metrics = _shown_metrics(task, cells)
    data = results_table(cells, metrics)
    shown = shown_table(data, metrics, task.PRIMARY)
    caption = (
        f"{summary.task}, {summary.model}: mean over seeds on test; in brackets the 95 % interval, which the CSV file "
        "of this table has for all metrics."
    )
    fewest = data["seeds"].min()
    if fewest == 1:
        caption += " With one seed the intervals account only for the choice of test items."
    elif fewest < FEW_SEEDS:
        caption += " With so few seeds the intervals are wide (t is 12.7 for two seeds)."
    bold = supported_best(data, summary.read("contrasts"), {name: task.METRICS[name].better for name in task.PRIMARY})
    entries = frozenset((row, metrics[name].heading) for row, name in bold)
    caption += " Bold: best of its budget, with significant contrasts to all other methods of its side"
    return Table(data, shown, f"{caption} ({len(entries)} entries).", entries)


def contrasts_table(summary: Summary, task: ModuleType) -> Table:
    """Returns every contrast with its interval and adjusted p-value."""
    data = summary.read("contrasts").drop(columns=["task", "model"])
    shown = data[["budget", "method", "reference", "n_seeds", "variation"]].astype(str)
    metrics = [task.METRICS[name] for name in data["metric"]]
    shown.insert(3, "metric", [metric.heading for metric in metrics])
    shown["difference"] = [
        _difference(metric, effect, low, high)
        for metric, effect, low, high in zip(metrics, data["effect"], data["low"], data["high"], strict=True)
    ]
    for name in ("p", "p_holm"):
        shown[name] = [f"{value:.2g}" for value in data[name]]
    shown["verdict"] = data["verdict"]
    shown = shown.rename(columns={"n_seeds": "seeds", "variation": "varied", "p_holm": "p (Holm)"})
    caption = (
        f"{summary.task}, {summary.model}: mean of method minus reference on test, paired by seed and item, 95 % "
        "interval in brackets. Varied: sources of variation in the interval. Holm: over all contrasts of the task."
    )
    return Table(data, shown, caption)


def costs(summary: Summary, task: ModuleType) -> Table:
    """Returns densities, FLOPs, masks, training time and memory of every method and budget."""
    cells = summary.read("cells").pivot_table(index=CELL, columns="metric", values="mean", sort=False)
    timing = summary.read("timing").groupby(CELL, sort=False)[["seconds", "peak_memory_mib"]].mean()
    data = cells[
        ["density", "net_density", "flops", "parameters", "bytes", "churn", "units_at_smallest", "silent_units"]
    ].join(timing)
    dense = data.loc["dense", "flops"].iloc[0] if "dense" in data.index.get_level_values("method") else np.nan
    data.insert(3, "flops_of_dense", data["flops"] / dense)
    data = data.reset_index()
    shown = data[CELL].astype(str)
    for name, heading in SHARES.items():
        shown[heading] = [f"{value:.3f}" for value in data[name]]
    shown.insert(5, "MMACs", [f"{value / 2e6:.4g}" for value in data["flops"]])
    shown.insert(6, "MFLOPs", [f"{value / 1e6:.4g}" for value in data["flops"]])
    shown.insert(8, "parameters", [f"{value:,.0f}" for value in data["parameters"]])
    shown.insert(9, "KiB stored", [f"{value / 1024:.1f}" for value in data["bytes"]])
    shown["training (s)"] = [f"{value:.1f}" for value in data["seconds"]]
    shown["peak memory (MiB)"] = [f"{value:.0f}" for value in data["peak_memory_mib"]]
    devices = ", ".join(sorted(set(summary.read("timing")["device"])))
    caption = (
        f"{summary.task}, {summary.model}: means over seeds. Density: kept share of the slabs' weights; net density: "
        "kept share of all weights; MACs: multiply-adds per sample, which many papers call FLOPs; FLOPs: two for each "
        "of them; parameters: those that are kept; stored: live weights, a bit per connection of a pruned slab, "
        "and one bit for a binary weight, which saves no FLOPs because activations are float; churn: share of the "
        "connections that a refresh at the budget changes; units at k_min or below, and units silent on dev: share of "
        f"all. Time and memory of the sparse phase, on {devices}."
    )
    return Table(data, shown, caption)


def scaling_table(summary: Summary, task: ModuleType) -> Table:
    """Returns the steps to a level of the selection metric by method and width, and the exponent of their scaling."""
    models = summary.study["tasks"][summary.task]["models"]
    steps = placed(steps_table(summary.read("history"), task.SELECTION, task.LEVEL), models, task.scaled)
    by_width = steps_by_width(steps)
    by_width["shown"] = [
        f"{DASH if np.isnan(row.median) else f'{row.median:,.0f}'} ({row.never}/{row.n_seeds})"
        for row in by_width.itertuples()
    ]
    keys = ["formula", *CELL]
    data = by_width[keys].drop_duplicates().merge(exponents(steps), on=keys, how="left")
    shown = data[keys].astype(str)
    for width in sorted(set(by_width["width"])):
        of_width = by_width[by_width["width"] == width].set_index(keys)
        for name in ("median", "never"):
            data[f"{name}_{width}"] = of_width[name].reindex(pd.MultiIndex.from_frame(data[keys])).to_numpy()
        own = of_width["shown"].reindex(pd.MultiIndex.from_frame(data[keys]), fill_value=DASH)
        shown[f"width {width}"] = own.to_numpy()
    shown["exponent"] = [
        DASH if np.isnan(row.exponent) else f"{row.exponent:.2f} [{row.low:.2f}, {row.high:.2f}]"
        for row in data.itertuples()
    ]
    shown["widths left out"] = data["left_out"].fillna("").replace("", DASH)
    caption = (
        f"{summary.task}: training steps until {task.METRICS[task.SELECTION].title} on dev is first at least "
        f"{task.LEVEL:g}, median over seeds; in brackets how many runs never got there, of how many. Exponent: slope "
        "of log(steps) on log(width), mean over seeds with its 95 % interval, fitted to the widths at which every "
        "seed got there."
    )
    return Table(data, shown, caption)


def sensitivity(summary: Summary, task: ModuleType) -> Table:
    """Returns the effect of each value of each factor, and the difference of the reference from its rivals with it."""
    data, reference = sensitivity_table(summary), summary.study["reference"]
    text = data[["factor", "budget"]].copy()
    text["value"] = [f"{row.value}{' (default)' * row.default}" for row in data.itertuples()]
    text["metric"] = [task.METRICS[name].heading for name in data["metric"]]
    text["against"] = ["from default" if against == DEFAULT else f"from {against}" for against in data["against"]]
    text["difference"] = [
        f"{_difference(task.METRICS[row.metric], row.effect, row.low, row.high)}, p {row.p_holm:.2g}"
        for row in data.itertuples()
    ]
    rows = ["factor", "value", "budget", "metric"]
    shown = text.pivot_table(index=rows, columns="against", values="difference", aggfunc="first", sort=False)
    caption = (
        f"{summary.task}: method {reference}, one factor varied at a time. Difference on test, paired by seed and "
        "item, with its 95 % interval and p after Holm's method over all contrasts of the task: from the default, and "
        "from rivals that have the same value where they have such a parameter."
    )
    return Table(data, shown.fillna(DASH).reset_index(), caption)


def branches(summary: Summary, task: ModuleType) -> Table:
    """Returns slabs, density and FLOPs of each branch of a Big-Little network, by method and budget."""
    slabs = summary.read("slabs").dropna(subset="connections")
    slabs = slabs.drop_duplicates([*CELL, "seed", "slab"])  # dense has them on both sides
    slabs = slabs.assign(branch=slabs["slab"].map(branch_of), slabs=1, possible=slabs["units"] * slabs["fan"])
    counted = ["slabs", "possible", "connections", "flops_dense", "flops"]
    sums = slabs.groupby([*CELL, "branch", "seed"], sort=False)[counted].sum()
    data = sums.groupby([*CELL, "branch"], sort=False).mean().reset_index()
    data.insert(5, "density", data["connections"] / data["possible"])
    shown = data[[*CELL, "branch"]].astype(str)
    shown["slabs"] = [f"{value:.0f}" for value in data["slabs"]]
    shown["density"] = [f"{value:.3f}" for value in data["density"]]
    shown["MMACs"] = [f"{value / 2e6:.4g}" for value in data["flops"]]
    shown["MMACs of dense"] = [f"{value / 2e6:.4g}" for value in data["flops_dense"]]
    caption = (
        f"{summary.task}, {summary.model}: slabs of each branch, means over seeds. Little: with the convolution that "
        "expands it; fusion: the bottlenecks after the branches; last: the stage without branches. Density: kept share "
        "of the connections; MACs: multiply-adds of the slabs' layers per sample."
    )
    return Table(data, shown, caption)


def models(summary: Summary, task: ModuleType) -> Table:
    """Returns metrics and costs of every model, method and budget of a task, and the contrasts with its baseline."""
    cells = summary.read("cells")
    primary = {name: task.METRICS[name] for name in task.PRIMARY}
    contrasts = summary.read("model_contrasts")
    with_baseline = contrasts[contrasts["reference_model"] == summary.baseline]
    data = models_table(cells, with_baseline, _shown_metrics(task, cells), primary)
    shown = data[[*MODEL_CELL, "seeds"]].astype(str)
    for name, metric in primary.items():
        value, difference, p = ([data[f"{name}_{bound}"] for bound in bounds] for bounds in SHOWN_OF_MODELS)
        shown[metric.heading] = _shown_rows(partial(_with_interval, metric), value)
        shown[f"{metric.title}, difference"] = _shown_rows(partial(_difference, metric), difference)
        shown[f"{metric.title}, p (Holm)"] = _shown_rows("{:.2g}".format, p)
    shown["MMACs"] = [f"{value / 2e6:.4g}" for value in data["flops"]]
    shown["MFLOPs"] = [f"{value / 1e6:.4g}" for value in data["flops"]]
    shown["parameters"] = [f"{value:,.0f}" for value in data["parameters"]]
    caption = (
        f"{summary.task}, all models: means over seeds on test, 95 % interval in brackets. Difference: model minus "
        f"baseline {summary.baseline} with the same method and budget, paired by seed and item. Holm: over all "
        "contrasts of the task, also those between methods. A budget is a share of a model's own slabs. FLOPs: per "
        "sample, twice the number of multiply-adds (MACs); parameters: those that are kept. The CSV file of this table "
        "has all metrics and says which means are on a Pareto front."
    )
    return Table(data, shown, caption)


def models_table(
    cells: pd.DataFrame, contrasts: pd.DataFrame, metrics: Iterable[str], primary: Mapping[str, Metric]
) -> pd.DataFrame:
    """Returns one row per model, method and budget, unrounded: `results_table`, costs, contrasts and Pareto fronts.

    The columns of the primary metrics begin with `{metric}_`: difference from the baseline with interval, p and verdict
    (NaN of the baseline itself, and where there is no contrast), and `front_{cost}`, as in `pareto.points_table`.

    Args:
        cells: `cells.csv` of one task.
        contrasts: those with the baseline in `model_contrasts.csv` of one task.
    """
    of_same_method = contrasts[contrasts["reference"] == contrasts["method"]]
    by_model = cells.groupby("model", sort=False)
    data = pd.concat([results_table(of_model, metrics).assign(model=name) for name, of_model in by_model])
    data = data[["model", *data.columns.drop("model")]]
    parts = [cells.pivot_table(index=MODEL_CELL, columns="metric", values="mean")[list(COSTS_OF_MODELS)]]
    points = points_table(cells, primary)
    for name in primary:
        for table, columns in ((of_same_method, OF_CONTRAST), (points, dict(zip(FRONTS, FRONTS, strict=True)))):
            of_metric = table[table["metric"] == name].set_index(MODEL_CELL)[list(columns)]
            parts.append(of_metric.rename(columns={key: f"{name}_{column}" for key, column in columns.items()}))
    return data.join(pd.concat(parts, axis=1), on=MODEL_CELL).reset_index(drop=True)


def _shown_rows(formatted: Callable[..., str], columns: Sequence[pd.Series]) -> list[str]:
    return [DASH if np.isnan(values[0]) else formatted(*values) for values in zip(*columns, strict=True)]


def weights_table(summary: Summary, task: ModuleType) -> Table:
    """Returns, of every method and budget with binary weights, where the latent weights of all layers lie."""
    rows = summary.read("weights")
    latent = rows[rows["kind"] == "latent"]
    data = _over_layers(latent, LATENT_SHARES)
    shown = data[CELL].astype(str)
    shown.insert(3, "binary weights", [f"{value:,.0f}" for value in data["weights"]])
    for name, heading in LATENT_SHARES.items():
        shown[heading] = [DASH if np.isnan(value) else f"{value:.3f}" for value in data[name]]
    caption = (
        f"{summary.task}, {summary.model}: latent weights of all binary layers together, means over seeds; "
        f"{WEIGHTS_FILE} has them by layer. h is the magnitude of a layer's binary weights, and latent weights are "
        "clipped to -h and h. Shares are of all weights; 0 are pruned weights. Distance: of the weights that are not "
        "0 to the nearer one of -h and h, in units of h."
    )
    return Table(data, shown, caption)


def latent_table(summary: Summary, task: ModuleType) -> Table:
    """Returns the primary metrics of every method with binary weights, and those with its latent weights."""
    rows = summary.read("latent")
    rows = rows[rows["metric"].isin(task.PRIMARY)]
    means = rows.groupby([*CELL, "metric", "weights", "statistics"], sort=False)["value"].mean()
    data = means.unstack(["weights", "statistics"]).reindex(columns=list(LATENT_SCORES))
    data.columns = ["_".join(column) for column in data.columns]
    data = data.reset_index()
    shown = data[CELL].astype(str)
    metrics = [task.METRICS[name] for name in data["metric"]]
    shown["metric"] = [metric.heading for metric in metrics]
    for column, heading in zip(data.columns[4:], LATENT_SCORES.values(), strict=True):
        shown[heading] = [
            DASH if np.isnan(value) else metric.shown_value(value)
            for metric, value in zip(metrics, data[column], strict=True)
        ]
    caption = (
        f"{summary.task}, {summary.model}: means over seeds on test. The run's own scores are those of its binary "
        "weights; beside them are those of its latent weights. Statistics of batch norms are the run's own (those of "
        "the training or, of stochastic weights, of their signs), or are taken anew with the weights that are scored."
    )
    return Table(data, shown, caption)


def verdicts(summary: Summary, task: ModuleType) -> Table:
    """Returns what the checks on gradient flow found: a row for each diagnosed run, point and check with a finding.

    A run without findings at a point has one row there.
    """
    runs, found = summary.read("diagnostics/runs"), summary.read("diagnostics/verdicts")
    keys = [*CELL, "seed", "point"]
    rows = []
    for run in runs.to_dict("records"):
        mine = found[(found[keys] == pd.Series({key: run[key] for key in keys})).all(axis=1)]
        about = {key: run[key] for key in [*keys, "steps", "observations", "tensors", "healthy"]}
        for check, of_check in mine.groupby("check", sort=False):
            worst = of_check.iloc[0]
            finding = {"check": check, "kind": worst["kind"], "ill": len(of_check), "parameter": worst["parameter"]}
            rows.append(about | finding | {"share": worst["share"], "evidence": worst["evidence"]})
        if mine.empty:
            rows.append(about | {"check": "", "kind": "", "ill": 0, "parameter": "", "share": np.nan, "evidence": ""})
    columns = ["check", "kind", "ill", "parameter", "share", "evidence"]
    data = pd.DataFrame(rows, columns=[*keys, "steps", "observations", "tensors", "healthy", *columns])
    shown = data[[*CELL, "seed"]].astype(str)
    shown["steps from"] = data["point"].map(POINTS)
    shown["healthy tensors"] = [f"{row.healthy} of {row.tensors}" for row in data.itertuples()]
    shown["finding"] = [row.check and f"{row.check} ({row.kind})" for row in data.itertuples()]
    shown["tensors with it"] = [str(row.ill) if row.ill else "" for row in data.itertuples()]
    shown["worst tensor"] = data["parameter"]
    shown["evidence"] = data["evidence"]
    caption = (
        f"{summary.task}, {summary.model}: findings of the checks on gradient flow, in training steps from the warm "
        "start and from the end of a run, of which some are observed; docs/diagnostics.md explains them. A tensor may "
        "have several findings. The evidence is that of the worst tensor; summary/diagnostics/verdicts.csv has all."
    )
    return Table(data, shown.replace("", DASH), caption)


def _over_layers(rows: pd.DataFrame, shares: Iterable[str]) -> pd.DataFrame:
    """Returns the means over layers, weighted by the number of weights they refer to, and over seeds, by `CELL`."""
    counts = {name: rows["weights"] * (1 - rows["zero"] if name == "distance" else 1) for name in shares}
    sums = pd.DataFrame(
        {name: (rows[name].fillna(0) * count) for name, count in counts.items()}
        | {f"{name}_count": count for name, count in counts.items()}
    )
    by_run = [rows[name] for name in (*CELL, "seed")]
    totals = sums.assign(weights=rows["weights"]).groupby(by_run, sort=False).sum()
    means = pd.DataFrame({name: totals[name] / totals[f"{name}_count"] for name in shares})
    means.insert(0, "weights", totals["weights"])
    return means.groupby(CELL, sort=False).mean().reset_index()


def methods(summary: Summary, task: None) -> Table:
    """Returns all parameters of every method of the study; those of weights only where they are not float.

    Settings of the sparse phase are shown where they are not those of the study.
    """
    study = summary.study
    rows = []
    for label, method in study["methods"].items():
        floats = () if is_binary(method) else WeightValues.model_fields
        parameters = {name: value for name, value in method.items() if name not in ("algorithm", "sparsity", *floats)}
        own = {name: value for name, value in (method.get("sparsity") or {}).items() if value is not None}
        rows.append((label, method["algorithm"], _listed(parameters | own)))
    data = pd.DataFrame(rows, columns=["method", "algorithm", "parameters"])
    caption = f"Study {study['name']}: methods. Shared by all that do not name another: {_listed(study['sparsity'])}."
    return Table(data, data.replace("", DASH), caption)


def _listed(parameters: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {json.dumps(value)}" for name, value in parameters.items())


def supported_best(table: pd.DataFrame, contrasts: pd.DataFrame, better: Mapping[str, str]) -> set[tuple[int, str]]:
    """Returns (row, metric) of the best sparse method per budget if it wins all contrasts with the others of its side.

    Args:
        table: `results_table`.
        contrasts: `contrasts.csv` of the same task and model.
        better: by metric, which direction is better: "higher" or "lower".
    """
    found = set()
    sparse = table[table["method"] != "dense"]
    for (metric, direction), (budget, cell) in product(better.items(), sparse.groupby("budget", sort=False)):
        means = cell[f"{metric}_mean"].dropna()
        if not len(means):
            continue
        best = means.idxmax() if direction == "higher" else means.idxmin()
        method, side = cell.loc[best, ["method", "side"]]
        rivals = set(cell[cell["side"] == side]["method"]) - {method}
        of_pair = contrasts[(contrasts["metric"] == metric) & (contrasts["budget"] == budget)]
        won = set(of_pair[(of_pair["method"] == method) & (of_pair["verdict"] == "better")]["reference"])
        won |= set(of_pair[(of_pair["reference"] == method) & (of_pair["verdict"] == "worse")]["method"])
        if rivals and rivals <= won:
            found.add((table.index.get_loc(best), metric))
    return found


def _shown_metrics(task: ModuleType, cells: pd.DataFrame) -> dict[str, Metric]:
    """Returns the metrics that tables show: optional ones only if a cell has them."""
    found = set(cells["metric"])
    return {
        name: metric for name, metric in task.METRICS.items() if metric.shown and (name in found or not metric.optional)
    }


def results_table(cells: pd.DataFrame, metrics: Iterable[str]) -> pd.DataFrame:
    """Returns one row per method and budget: seeds, and `mean`, `sd`, `low` and `high` of each metric, unrounded.

    Args:
        cells: `statistics.cells_table` of one task and model.
        metrics: names, in the order of the columns. A cell without a value is NaN, such as dense for metrics that are
            relative to dense.
    """
    rows = []
    for (method, side, budget), cell in cells.groupby(["method", "side", "budget"], sort=False):
        by_metric = cell.set_index("metric")
        row = {"method": method, "side": side, "budget": budget, "seeds": int(by_metric["n_seeds"].iloc[0])}
        for name in metrics:
            bounds = by_metric.loc[name] if name in by_metric.index else {}
            row |= {f"{name}_{bound}": bounds.get(bound, np.nan) for bound in ("mean", "sd", "low", "high")}
        rows.append(row)
    return pd.DataFrame(rows)


def shown_table(table: pd.DataFrame, metrics: Mapping[str, Metric], primary: Sequence[str]) -> pd.DataFrame:
    """Formats `results_table` as text: `mean [low, high]` for `primary` metrics, and the mean for the others."""
    shown = table[[*CELL, "seeds"]].astype(str)
    for name, metric in metrics.items():
        columns = (table[f"{name}_{bound}"] for bound in ("mean", "low", "high"))
        shown[metric.heading] = [
            DASH
            if np.isnan(mean)
            else _with_interval(metric, mean, low, high)
            if name in primary
            else metric.shown_value(mean)
            for mean, low, high in zip(*columns, strict=True)
        ]
    return shown


def _with_interval(metric: Metric, mean: float, low: float, high: float) -> str:
    return f"{metric.shown_value(mean)} [{metric.shown_value(low)}, {metric.shown_value(high)}]"


def _difference(metric: Metric, effect: float, low: float, high: float) -> str:
    return f"{metric.signed(effect)} [{metric.signed(low)}, {metric.signed(high)}]"


def incomplete_note(grid: pd.DataFrame) -> str:
    """Returns a note that counts the failed, missing and stale runs; empty if all runs are done."""
    counts = grid["status"].value_counts().drop("done", errors="ignore").sort_index()
    kinds = ", ".join(f"{count} {status}" for status, count in counts.items())
    return f"incomplete: {kinds} of {len(grid)} runs" if kinds else ""


def markdown(table: Table) -> str:
    return f"{_mark_bold(table, '**', '**').to_markdown(index=False, disable_numparse=True)}\n\n{table.caption}\n"


def latex(table: Table) -> str:
    """Returns a LaTeX table environment with booktabs rules."""
    escaped = Table(table.data, table.shown.map(_escape), table.caption, table.bold)
    shown = _mark_bold(escaped, r"\textbf{", "}").rename(columns=_escape)
    text = shown.style.hide(axis="index").to_latex(
        hrules=True, column_format="l" * len(shown.columns), caption=_escape(table.caption), position_float="centering"
    )
    return f"% needs \\usepackage{{booktabs}}\n{text}"


def _mark_bold(table: Table, before: str, after: str) -> pd.DataFrame:
    shown = table.shown.copy()
    for row, heading in table.bold:
        place = shown.columns.get_loc(heading)
        shown.iloc[row, place] = f"{before}{shown.iloc[row, place]}{after}"
    return shown


def _escape(text: str) -> str:
    for character in "&%$#_{}":
        text = text.replace(character, f"\\{character}")
    return text
