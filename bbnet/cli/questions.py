"""The questions that each study answers, and the tables that answer them."""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pandas as pd

from bbnet.analysis import answers
from bbnet.analysis.claims import LINE, MEASURES
from bbnet.analysis.scaling import exponents, placed, steps_table
from bbnet.analysis.summary import Summary
from bbnet.tasks.task import load_metrics

Questions = Iterator[tuple[str, pd.DataFrame]]
OURS = {"in": "log_odds_in", "out": "log_odds_out"}
RIVALS = ("magnitude", "magnitude_global", "rigl", "rigl_ramp", "rigl_erk", "set", "random", "random_erk", "wanda")
LAWS = ("uniform", "shuffled", "inverted", "linear", "traffic")
LINES = ("log_odds_in", "inverted_in", "shuffled_in", "magnitude_in", "rigl_in", "set_in", "random_in")
BOTH = [("log_odds_both", "log_odds_in"), ("log_odds_both", "log_odds_out"), ("log_odds_in", "log_odds_out")]
CHURNING = ("uniform_in", "inverted_in", "magnitude_in", "rigl_in", "set_in", "wanda_in")
OURS_ONCE = ("bb_in_once", "bb_both_once")
MODEL_OF_LINES = "dnf_w40"  # the one on which the study didactic runs all methods
RIVALS_ONCE = ("wanda_once", "sparsegpt_once", "magnitude_once")


def ours_against(names: tuple[str, ...], known: Mapping[str, object]) -> list[tuple[str, str]]:
    """Returns the pairs of Budgeted Broadcast and each other method on the same side, of those that a study has."""
    return [(ours, f"{name}_{side}") for name in names for side, ours in OURS.items() if f"{name}_{side}" in known]


def of_controls(controls: Summary) -> Questions:
    methods = controls.study["methods"]
    yield "dense", answers.between_methods(controls, [(name, "dense") for name in (*OURS.values(), "log_odds_both")])
    yield "both", answers.between_methods(controls, BOTH)
    yield "rivals", answers.between_methods(controls, ours_against(RIVALS, methods))
    yield "laws", answers.between_methods(controls, ours_against(LAWS, methods))
    yield "silent", answers.between_methods(controls, [(OURS["in"], "literal_in")])
    yield "small", answers.at_equal_cost(controls)
    runs, claims = controls.read("runs"), controls.read("claims")
    references = [f"{name}_in" for name in ("magnitude", *LAWS)]
    smallest = runs[runs["metric"] == "units_at_smallest"]
    yield "smallest", answers.means(smallest, (OURS["in"], *references, "literal_in"), "runs.csv")
    gains = _tail_minus_head(runs)
    yield "tails_means", answers.means(gains, (OURS["in"], *references, "rigl_in", "random_in"), "runs.csv")
    yield "tails", answers.paired(gains, [(OURS["in"], name) for name in references], "runs.csv")
    units = claims.rename(columns={"measure": "metric"})
    of_units = units[units["metric"].isin(MEASURES)]
    dense = of_units[of_units["method"] == OURS["in"]].assign(
        method="dense", budget="1.00", value=lambda rows: rows["dense"]
    )
    with_dense = pd.concat([of_units, dense.drop_duplicates(["task", "metric", "seed"])])
    pairs = [(OURS["in"], name) for name in ("dense", *references)]
    of_measures = answers.paired(with_dense, pairs, "claims.csv")
    for measure in MEASURES:
        yield measure, of_measures[of_measures["metric"] == measure]
    yield "line", answers.means(units[units["metric"].isin(LINE)], LINES, "claims.csv")
    churn = runs[runs["metric"] == "churn"]
    yield "churn", answers.paired(churn, [(OURS["in"], name) for name in CHURNING], "runs.csv")
    yield "churn_means", answers.means(churn, (OURS["in"], *CHURNING), "runs.csv")


def _tail_minus_head(runs: pd.DataFrame) -> pd.DataFrame:
    """Returns by run how much more the tail gains than the head, relative to dense, in points of words or images.

    A task without buckets has no rows.
    """
    rows = []
    for task, of_task in runs.groupby("task", sort=False):
        metrics = load_metrics(task)
        if not hasattr(metrics, "BY_BUCKET"):
            continue
        of_buckets = next(iter(metrics.BY_BUCKET.values()))
        sign = 1 if metrics.METRICS[of_buckets["tail"]].better == "higher" else -1
        scale = 1 if metrics.METRICS[of_buckets["tail"]].unit == "points" else 100
        keys = ["task", "model", "method", "side", "budget", "seed"]
        values = of_task.pivot_table(index=keys, columns="metric", values="value")
        gain = sign * scale * (values[of_buckets["tail"]] - values[of_buckets["head"]])
        rows.append(gain.rename("value").reset_index().assign(metric="tail_minus_head"))
    return pd.concat(rows) if rows else runs.assign(metric="tail_minus_head")[:0]


def of_sensitivity(summary: Summary) -> Questions:
    default, rivals = answers.of_factors(summary)
    yield "factors", default
    of_models = answers.within_models(summary)
    of_reference = of_models["method"] == of_models["reference"] + f", {summary.study['reference']}"
    yield "dense", of_models[of_reference]  # a dense network is named by its model alone
    yield "rank", rivals


def of_big_little(summary: Summary) -> Questions:
    yield "scores", answers.scores(summary, ["top1", "nll"])
    yield "models", answers.between_models(summary)
    yield "methods", answers.within_models(summary)


def of_language(summary: Summary) -> Questions:
    yield "claim", answers.between_methods(summary, [(ours, rival) for ours in OURS_ONCE for rival in RIVALS_ONCE])
    yield "dense", answers.between_methods(summary, [(method, "dense") for method in summary.study["methods"]])
    perplexities = ["bits_per_byte", "perplexity", "perplexity_head", "perplexity_mid", "perplexity_tail"]
    yield "scores", answers.scores(summary, perplexities)
    floor = answers.scores(summary, [f"floor_{name}" for name in perplexities])
    yield "floor", floor[floor["method"] == "dense"]  # it is the same beside every method


def of_detector(summary: Summary) -> Questions:
    detection = Summary(summary.folder, "detection")
    yield "scores", answers.scores(detection, ["map50", "map"])
    yield "ablation", answers.between_models(detection)
    yield "methods", answers.within_models(detection)
    runs = detection.read("runs")
    pairs = [("sp_in", reference) for reference in ("magnitude", "rigl")]
    yield "tails", answers.paired(_tail_minus_head(runs), pairs, "runs.csv")


def of_didactic(summary: Summary) -> Questions:
    logic, methods = Summary(summary.folder, "logic", MODEL_OF_LINES), summary.study["methods"]
    yield "line", answers.means(_lines(logic.read("history")), methods, "history.parquet")
    yield "scores", answers.scores(summary, ["accuracy"])
    yield "contrasts", answers.within_models(summary)
    yield "scaling", _exponents(Summary(summary.folder, "logic"))


def _lines(history: pd.DataFrame) -> pd.DataFrame:
    """Returns by run the fit of the balance line, of the slabs of side in, before the first mask and after training."""
    ordered = history.sort_values("step", kind="stable")
    keys = ["task", "method", "budget", "seed"]
    before, after = (
        rows.drop_duplicates(keys, keep="last").set_index(keys)
        for rows in (ordered[ordered["phase"] == "warm_up"], ordered)
    )
    measures = {
        "effective_r2_before": before["line_in_effective_r2"],
        "effective_r2": after["line_in_effective_r2"],
        "degree_r2": after["line_in_live_r2"],
        "degree_slope": after["line_in_live_slope"],
    }
    return pd.concat([values.rename("value").reset_index().assign(metric=name) for name, values in measures.items()])


def _exponents(logic: Summary) -> pd.DataFrame:
    """Returns the exponents with which training steps to the level of the task fall with the width."""
    metrics = load_metrics("logic")
    steps = steps_table(logic.read("history"), metrics.SELECTION, metrics.LEVEL)
    rows = exponents(placed(steps, logic.study["tasks"]["logic"]["models"], metrics.scaled))
    rows = rows.assign(task="logic", metric="exponent", reference="", verdict="", p_holm=np.nan, detectable=np.nan)
    rows["method"] += " (widths " + rows["widths"].str.replace(" ", ", ") + ")"
    return rows.rename(columns={"exponent": "effect"}).assign(source="history.parquet")[answers.COLUMNS]


OF_STUDY: dict[str, Callable[[Summary], Questions]] = {
    "controls": of_controls,
    "sensitivity": of_sensitivity,
    "didactic": of_didactic,
    "language": of_language,
    "big_little": of_big_little,
    "detector": of_detector,
}
"""By study, a function that yields the key of each question and its table of `answers.COLUMNS`."""
