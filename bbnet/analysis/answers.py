"""Answers the questions of the paper's reviewers with numbers from shipped summaries.

Every answer is a table with `COLUMNS`: differences of two methods, or values of one, with intervals. Differences of
primary metrics are rows of `contrasts.csv` and `model_contrasts.csv`. Those of other measures are paired by seed here,
with Student's t: their rows have no test items, so that they account for the variation of seeds alone.
"""

from collections.abc import Iterable
from itertools import product

import numpy as np
import pandas as pd

from bbnet.analysis.contrasts import LEVEL
from bbnet.analysis.power import Components, components_of, detectable_difference
from bbnet.analysis.sensitivity import DEFAULT, sensitivity_table
from bbnet.analysis.statistics import half_width, holm, p_value
from bbnet.analysis.summary import Summary, baselines_of

COLUMNS = [
    *("task", "metric", "budget", "method", "reference", "effect", "low", "high"),
    *("n_seeds", "p_holm", "verdict", "detectable", "source"),
]
CELLS, CONTRASTS, MODEL_CONTRASTS = "cells.csv", "contrasts.csv", "model_contrasts.csv"


def between_methods(summary: Summary, pairs: Iterable[tuple[str, str]]) -> pd.DataFrame:
    """Returns the contrasts of primary metrics between a method and a reference, those that are in `contrasts.csv`.

    A pair that is there in the other order is turned round. `detectable` is the difference that is significant with a
    probability of 80 % after Holm's method over all contrasts of the task, with the mean variance of these contrasts.
    """
    found, wanted = summary.read("contrasts").dropna(subset="effect"), list(pairs)
    turned = found.assign(
        method=found["reference"],
        reference=found["method"],
        effect=-found["effect"],
        low=-found["high"],
        high=-found["low"],
        verdict=found["verdict"].map({"better": "worse", "worse": "better", "none": "none"}),
    )
    both = pd.concat([found, turned])
    rows = both[[pair in wanted for pair in zip(both["method"], both["reference"], strict=True)]]
    order = [wanted.index(pair) for pair in zip(rows["method"], rows["reference"], strict=True)]
    rows = rows.assign(order=order).sort_values(["task", "order", "budget", "metric"], kind="stable")
    return _with_detectable(rows, families(summary), CONTRASTS)


def scores(summary: Summary, metrics: Iterable[str]) -> pd.DataFrame:
    """Returns the scores of all cells in some metrics; each method is named with its model, if there are several."""
    rows = summary.read("cells").dropna(subset="mean")
    rows = rows[rows["metric"].isin(list(metrics))].rename(columns={"mean": "effect"})
    if rows["model"].nunique() > 1:
        rows = rows.assign(method=_on_model(rows["model"], rows["method"]))
    unknown = {"reference": "", "verdict": "", "p_holm": np.nan, "detectable": np.nan}
    return rows.assign(**unknown, source=CELLS)[COLUMNS]


def within_models(summary: Summary) -> pd.DataFrame:
    """Returns all contrasts of primary metrics between methods on the same model, which is named with each of them."""
    found = summary.read("contrasts").dropna(subset="effect")
    rows = found.assign(
        method=_on_model(found["model"], found["method"]), reference=_on_model(found["model"], found["reference"])
    )
    return _with_detectable(rows, families(summary), CONTRASTS)


def between_models(summary: Summary) -> pd.DataFrame:
    """Returns the contrasts of primary metrics between a model and the baseline under the same method and budget."""
    found = summary.read("model_contrasts").dropna(subset="effect")
    rows = found[found["reference"] == found["method"]]
    rows = rows.assign(
        method=_on_model(rows["model"], rows["method"]), reference=_on_model(rows["reference_model"], rows["reference"])
    )
    return _with_detectable(rows, families(summary), MODEL_CONTRASTS)


def _on_model(models: pd.Series, methods: pd.Series) -> pd.Series:
    """Returns labels of cells; a dense network is named by its model alone."""
    return models.where(methods == "dense", models + ", " + methods)


def of_factors(summary: Summary) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns the contrasts between a value of a factor and the default, and those between each value and its rivals.

    Args:
        summary: of a study that varies one factor at a time around its reference; see `bbnet.analysis.sensitivity`.
    """
    of_tasks = [sensitivity_table(Summary(summary.folder, task)).assign(task=task) for task in summary.study["tasks"]]
    rows = pd.concat(of_tasks, ignore_index=True).dropna(subset="effect")
    rows = rows.assign(method=rows["factor"] + " " + rows["value"], reference=rows["against"])
    with_default = rows["against"] == DEFAULT
    like, family = summary.read("contrasts").dropna(subset="effect"), families(summary)
    default, rivals = (_with_detectable(part, family, CONTRASTS, like) for part in (rows, rows[~with_default]))
    # A value that belongs to another model is compared with the baseline in the table of models.
    base = rows["task"].map(baselines_of(summary.study)).fillna(rows["model"])
    default["source"] = default["source"].where(rows["model"] == base, MODEL_CONTRASTS)
    # The default is a value of every factor, and its difference from a rival is the same in all of them.
    rivals["method"] = rivals["method"].where(~rows["default"], DEFAULT)
    rivals = rivals.drop_duplicates(["task", "metric", "budget", "method", "reference"])
    return default[with_default & ~rows["default"]], rivals


def at_equal_cost(summary: Summary) -> pd.DataFrame:
    """Returns the contrasts of primary metrics between a pruned network and a small dense one of as many FLOPs."""
    found = summary.read("model_contrasts").dropna(subset="effect")
    rows = found[(found["reference"] == "dense") & (found["method"] != "dense")]
    rows = rows.assign(reference=rows["reference_model"])
    return _with_detectable(rows, families(summary), MODEL_CONTRASTS)


def families(summary: Summary) -> pd.Series:
    """Returns by task the number of contrasts that Holm's method covers: those of methods, and those of models."""
    names = ["contrasts", *(["model_contrasts"] if (summary.folder / MODEL_CONTRASTS).exists() else [])]
    return pd.concat([summary.read(name).dropna(subset="effect")["task"] for name in names]).value_counts()


def _with_detectable(
    rows: pd.DataFrame, family: pd.Series, source: str, like: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Returns the rows as `COLUMNS`, with what could have been seen given the variances of `like`, or theirs."""
    seen = {}
    for (task, metric), found in (rows if like is None else like).groupby(["task", "metric"]):
        components = components_of(found)
        if components is not None:
            seen[task, metric] = detectable_difference(components, int(found["n_seeds"].min()), int(family[task]))
    keys = zip(rows["task"], rows["metric"], strict=True)
    return rows.assign(detectable=[seen.get(key, np.nan) for key in keys], source=source)[COLUMNS]


def paired(values: pd.DataFrame, pairs: Iterable[tuple[str, str]], source: str) -> pd.DataFrame:
    """Returns the differences of a measure between pairs of methods at the same budget, paired by seed.

    p-values are adjusted by Holm's method over the rows of each task; verdicts are higher, lower or none.

    Args:
        values: `task, metric, budget, method, seed, value`; the budget of dense is 1.00.
        pairs: (method, reference).
    """
    table = (
        values.dropna(subset="value").set_index(["task", "metric", "method", "budget", "seed"])["value"].sort_index()
    )
    rows = []
    cells = values[values["method"] != "dense"][["task", "metric", "budget"]].drop_duplicates()
    for (task, metric, budget), (method, reference) in product(cells.itertuples(index=False, name=None), pairs):
        own, other = (
            table.get((task, metric, name, "1.00" if name == "dense" else budget), pd.Series(dtype=float))
            for name in (method, reference)
        )
        differences = (own - other).dropna().to_numpy()
        if len(differences) > 1:
            row = {"task": task, "metric": metric, "budget": budget, "method": method, "reference": reference}
            rows.append(row | _over_seeds(differences))
    return _judged(rows, source)


def means(values: pd.DataFrame, methods: Iterable[str], source: str) -> pd.DataFrame:
    """Returns the mean of a measure over seeds for each method and budget; columns and arguments as in `paired`."""
    rows = []
    chosen = values[values["method"].isin(methods)].dropna(subset="value")
    for (task, metric, budget, method), cell in chosen.groupby(["task", "metric", "budget", "method"], sort=False):
        if len(cell) > 1:
            row = {"task": task, "metric": metric, "budget": budget, "method": method, "reference": ""}
            rows.append(row | _over_seeds(cell["value"].to_numpy()))
    return _judged(rows, source).assign(p_holm=np.nan, verdict="", detectable=np.nan)


def _over_seeds(values: np.ndarray) -> dict[str, float]:
    """Returns mean, interval and p over seeds."""
    mean, half = float(values.mean()), half_width(values)
    return {"effect": mean, "low": mean - half, "high": mean + half, "n_seeds": len(values), "p": p_value(values)} | {
        "variance": float(values.var(ddof=1))
    }


def _judged(rows: list[dict], source: str) -> pd.DataFrame:
    """Returns the rows with adjusted p-values, verdicts and what could have been seen."""
    if not rows:
        return pd.DataFrame(columns=COLUMNS)
    table = pd.DataFrame(rows)
    table["p_holm"] = table.groupby("task", sort=False)["p"].transform(holm)
    signs = np.where(table["effect"] > 0, "higher", "lower")
    table["verdict"] = np.where(table["p_holm"] < LEVEL, signs, "none")
    family = table.groupby("task")["p"].transform("size")
    table["detectable"] = [
        detectable_difference(Components(2, variance, 0.0, 0.0), int(seeds), int(contrasts))
        for variance, seeds, contrasts in zip(table["variance"], table["n_seeds"], family, strict=True)
    ]
    return table.assign(source=source)[COLUMNS]
