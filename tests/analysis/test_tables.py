"""Tables of a paper: the numbers of the cells, readable as csv, Markdown and LaTeX."""

from types import SimpleNamespace

import pandas as pd
import pytest

from bbnet.analysis.metric import Metric
from bbnet.analysis.tables import (
    Table,
    branches,
    incomplete_note,
    latex,
    markdown,
    models,
    results_table,
    shown_table,
    supported_best,
)

METRICS = {"f1": Metric("F1", "share", "higher", 0, 1), "iou": Metric("IoU", "share", "higher", 0, 1)}


def rows_of(method: str, side: str, budget: str, **means: float) -> list[dict]:
    keys = {"task": "change", "model": "small", "method": method, "side": side, "budget": budget}
    return [
        keys
        | {"metric": name, "unit": "", "mean": mean, "sd": 0.02, "n_seeds": 3, "low": mean - 0.1, "high": mean + 0.1}
        for name, mean in means.items()
    ]


@pytest.fixture
def cells() -> pd.DataFrame:
    """Dense and two budgets of sp_in."""
    return pd.DataFrame(
        [
            *rows_of("dense", "none", "1.00", f1=0.75, iou=0.5),
            *rows_of("sp_in", "in", "0.20", f1=0.625, iou=0.25),
            *rows_of("sp_in", "in", "0.50", f1=0.6875, iou=0.375),
        ]
    )


@pytest.fixture
def shown(cells) -> pd.DataFrame:
    return shown_table(results_table(cells, METRICS), METRICS, ("f1",))


def test_the_branches_of_a_network_are_counted_apart():
    """Dense slabs stand on both sides; a slab has 4 units of fan 10, of which seed 0 keeps 10, seed 1 20 in `big`."""
    rows = []
    for method, side, seed, kept in (("dense", "none", 0, 40), ("sp_in", "in", 0, 10), ("sp_in", "in", 1, 20)):
        for slab in (
            "body.stage1.big.0.conv1",
            "body.stage1.big.1.conv1",
            "body.stage1.expand.0",
            "body.stage2.0.conv1",
        ):
            costs = {"units": 4, "fan": 10, "connections": kept if ".big." in slab else 40, "flops_dense": 4e6}
            costs["flops"] = costs["flops_dense"] * costs["connections"] / 40
            keys = {"method": method, "side": side, "budget": "0.50", "seed": seed, "slab": slab}
            rows += [keys | costs] * (2 if method == "dense" else 1)
    summary = SimpleNamespace(read={"slabs": pd.DataFrame(rows)}.__getitem__, task="t", model="m")
    table = branches(summary, None)
    assert table.shown.drop(columns=["side", "budget"]).to_numpy().tolist() == [
        ["dense", "big", "2", "1.000", "4", "4"],
        ["dense", "little", "1", "1.000", "2", "2"],
        ["dense", "last", "1", "1.000", "2", "2"],
        ["sp_in", "big", "2", "0.375", "1.5", "4"],
        ["sp_in", "little", "1", "1.000", "2", "2"],
        ["sp_in", "last", "1", "1.000", "2", "2"],
    ]


def test_there_is_one_row_per_method_and_budget_with_intervals(cells):
    table = results_table(cells, METRICS)
    assert table[["method", "side", "budget", "seeds"]].to_numpy().tolist() == [
        ["dense", "none", "1.00", 3],
        ["sp_in", "in", "0.20", 3],
        ["sp_in", "in", "0.50", 3],
    ]
    row = table.iloc[1]
    assert (row["f1_mean"], row["f1_sd"], row["f1_low"], row["f1_high"]) == (0.625, 0.02, 0.525, 0.725)
    assert (row["iou_mean"], row["iou_low"]) == (0.25, 0.15)


def test_primary_metrics_are_shown_with_their_interval_and_others_alone(shown):
    assert list(shown.columns) == ["method", "side", "budget", "seeds", "F1", "IoU"]
    assert shown.iloc[1].tolist() == ["sp_in", "in", "0.20", "3", "0.625 [0.525, 0.725]", "0.250"]


def test_markdown_is_a_table_with_every_cell_as_shown_and_the_caption(shown):
    lines = markdown(Table(shown, shown, "A caption.")).splitlines()
    cells_of = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:-2]]
    assert cells_of[0] == list(shown.columns)
    assert cells_of[2:] == shown.to_numpy().tolist()
    assert lines[-2:] == ["", "A caption."]


def test_latex_is_a_booktabs_table_with_its_caption(shown):
    text = latex(Table(shown, shown, "A caption."))
    assert text.startswith("% needs \\usepackage{booktabs}\n\\begin{table}")
    assert text.count("\\toprule") == text.count("\\midrule") == text.count("\\bottomrule") == 1
    assert "\\caption{A caption.}" in text
    body = [line for line in text.splitlines() if line.endswith("\\\\")]
    assert len(body) == 1 + len(shown)
    assert all(line.count(" & ") == len(shown.columns) - 1 for line in body)


def test_latex_escapes_what_latex_would_read():
    shown = pd.DataFrame({"a_b (%)": ["sp_in", "50 % & $5 #1 {x}"]})
    text = latex(Table(shown, shown, "95 % interval of sp_in."))
    assert "a\\_b (\\%)" in text
    assert "sp\\_in" in text
    assert "50 \\% \\& \\$5 \\#1 \\{x\\}" in text
    assert "\\caption{95 \\% interval of sp\\_in.}" in text


def test_nothing_is_noted_of_a_whole_grid():
    assert incomplete_note(pd.DataFrame({"status": ["done"] * 4})) == ""


@pytest.mark.parametrize(
    ("statuses", "note"),
    [
        (["done", "failed"], "incomplete: 1 failed of 2 runs"),
        (["missing", "stale", "failed", "done", "stale"], "incomplete: 1 failed, 1 missing, 2 stale of 5 runs"),
    ],
)
def test_an_incomplete_grid_says_what_became_of_the_others(statuses, note):
    assert incomplete_note(pd.DataFrame({"status": statuses})) == note


def test_what_a_cell_does_not_have_is_a_dash(cells):
    relative = pd.DataFrame(rows_of("sp_in", "in", "0.20", gain=0.5))
    metrics = METRICS | {"gain": Metric("gain", "%", "higher")}
    table = results_table(pd.concat([cells, relative]), metrics)
    assert table["gain_mean"].isna().tolist() == [True, False, True]
    assert shown_table(table, metrics, ["gain"])["gain (%)"].tolist() == ["–", "0.5 [0.4, 0.6]", "–"]


def test_what_stands_out_is_bold_in_both_forms(shown):
    table = Table(shown, shown, "A caption.", frozenset({(1, "F1")}))
    assert markdown(table).count("**0.625 [0.525, 0.725]**") == markdown(table).count("**") / 2 == 1
    assert latex(table).count("\\textbf{0.625 [0.525, 0.725]}") == latex(table).count("textbf") == 1


def contrast(method: str, reference: str, verdict: str, budget: str = "0.20") -> dict:
    return {"method": method, "reference": reference, "verdict": verdict, "budget": budget, "metric": "f1"}


@pytest.mark.parametrize(
    ("verdicts", "bold"),
    [
        ({("sp_in", "rigl"): "better", ("sp_in", "magnitude"): "better"}, {(1, "f1")}),
        ({("sp_in", "rigl"): "better", ("sp_in", "magnitude"): "none"}, set()),
        ({("sp_in", "rigl"): "better"}, set()),
        ({("rigl", "sp_in"): "worse", ("magnitude", "sp_in"): "worse"}, {(1, "f1")}),
        ({("sp_in", "rigl"): "worse", ("sp_in", "magnitude"): "worse"}, set()),
        ({}, set()),
    ],
)
def test_the_best_is_bold_only_where_its_contrasts_say_so(verdicts, bold):
    cells = pd.DataFrame(
        [
            *rows_of("dense", "none", "1.00", f1=0.9),
            *rows_of("sp_in", "in", "0.20", f1=0.7),
            *rows_of("rigl", "in", "0.20", f1=0.6),
            *rows_of("magnitude", "in", "0.20", f1=0.5),
        ]
    )
    contrasts = pd.DataFrame(
        [contrast(*pair, verdict) for pair, verdict in verdicts.items()] or [contrast("a", "b", "none")]
    )
    assert supported_best(results_table(cells, {"f1": "share"}), contrasts, {"f1": "higher"}) == bold


# All models of a task.


def model_contrast(model: str, method: str, budget: str, effect: float, p: float) -> dict:
    row = {"model": model, "method": method, "side": "none" if method == "dense" else "in", "budget": budget}
    row |= {"reference": method, "reference_model": "plain"}
    row |= {"metric": "f1", "effect": effect, "low": effect - 0.02, "high": effect + 0.02}
    return row | {"p": p / 4, "p_holm": p, "verdict": "worse" if p < 0.05 else "none"}


def test_the_table_of_models_has_their_scores_costs_and_differences_from_the_baseline():
    of_models = []
    for model, worse, size in (("plain", 0.0, 1), ("little", 0.125, 0.5)):
        for method, side, budget, f1, kept in (("dense", "none", "1.00", 0.75, 1), ("sp_in", "in", "0.20", 0.625, 0.4)):
            costs = {"flops": 8e6 * kept * size, "parameters": 6000 * kept * size, "bytes": 1.0}
            costs |= {"density": kept, "net_density": kept}
            of_models += [
                row | {"model": model} for row in rows_of(method, side, budget, f1=f1 - worse, iou=0.5, **costs)
            ]
    contrasts = [
        model_contrast("little", "dense", "1.00", -0.125, 0.031),
        model_contrast("plain", "sp_in", "0.20", 0.25, 0.01) | {"reference": "dense", "reference_model": "little"},
        model_contrast("little", "dense", "1.00", 0.5, 0.01) | {"reference_model": "other"},
    ]
    read = {"cells": pd.DataFrame(of_models), "model_contrasts": pd.DataFrame(contrasts)}.__getitem__
    summary = SimpleNamespace(read=read, task="change", baseline="plain")
    table = models(summary, SimpleNamespace(METRICS=METRICS, PRIMARY=("f1",)))
    assert list(table.shown.columns) == [
        *(
            "model",
            "method",
            "side",
            "budget",
            "seeds",
            "F1",
            "F1, difference",
            "F1, p (Holm)",
            "MMACs",
            "MFLOPs",
            "parameters",
        )
    ]
    assert table.shown.to_numpy().tolist() == [
        ["plain", "dense", "none", "1.00", "3", "0.750 [0.650, 0.850]", "–", "–", "4", "8", "6,000"],
        ["plain", "sp_in", "in", "0.20", "3", "0.625 [0.525, 0.725]", "–", "–", "1.6", "3.2", "2,400"],
        *(
            [
                "little",
                "dense",
                "none",
                "1.00",
                "3",
                "0.625 [0.525, 0.725]",
                "-0.125 [-0.145, -0.105]",
                "0.031",
                "2",
                "4",
                "3,000",
            ],
            ["little", "sp_in", "in", "0.20", "3", "0.500 [0.400, 0.600]", "–", "–", "0.8", "1.6", "1,200"],
        ),
    ]
    columns = ["iou_mean", "bytes", "f1_verdict", "f1_front_flops", "f1_front_parameters"]
    assert table.data[columns].astype(object).fillna("").to_numpy().tolist() == [
        [0.5, 1.0, "", True, True],
        [0.5, 1.0, "", True, True],
        [0.5, 1.0, "worse", False, False],
        [0.5, 1.0, "", True, True],
    ]
    assert "baseline plain" in table.caption
    assert latex(table).count(r"\\") == 1 + 4
