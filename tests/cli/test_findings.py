"""The page of findings, from the shipped default study under the labels of the study of controls."""

import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bbnet.analysis.contrasts import MODEL_COLUMNS
from bbnet.analysis.summary import Summary
from bbnet.cli.check import REFERENCE
from bbnet.cli.findings import PAGE, ROWS, render
from bbnet.cli.questions import of_didactic

ROOT = Path(__file__).parents[2]
LABELS = {"sp_in": "log_odds_in", "sp_out": "log_odds_out", "magnitude": "magnitude_in", "rigl": "rigl_in"}


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("reference")
    shutil.copytree(ROOT / REFERENCE / "demo", folder / "demo")
    summary = folder / "controls" / "summary"
    shutil.copytree(folder / "demo" / "summary", summary)
    for path in (*summary.glob("*.csv"), summary / "study.json"):
        text = path.read_text(encoding="utf-8")
        for label, other in LABELS.items():
            text = re.sub(rf'(?<=[,"]){label}(?=[,"])', other, text)
        path.write_text(text, encoding="utf-8")
    pd.DataFrame(columns=MODEL_COLUMNS).to_csv(summary / "model_contrasts.csv", index=False)
    return folder


def test_the_numbers_of_the_page_are_those_of_the_contrasts(reference):
    page, text = render(reference)
    rows = pd.read_csv(io.StringIO(text), dtype={"budget": str})
    contrasts = pd.read_csv(reference / "controls/summary/contrasts.csv", dtype={"budget": str})
    keys = ["task", "metric", "budget", "method", "reference"]
    of_contrasts = rows[rows["source"] == "contrasts.csv"].merge(contrasts, on=keys, suffixes=("", "_there"))
    assert len(of_contrasts) == (rows["source"] == "contrasts.csv").sum() > 20
    for name in ("effect", "low", "high", "p_holm"):
        assert of_contrasts[name].tolist() == pytest.approx(of_contrasts[f"{name}_there"].tolist())
    (wer,) = rows[
        (rows["question"] == "rivals")
        & (rows["metric"] == "wer")
        & (rows["budget"] == "0.50")
        & (rows["reference"] == "magnitude_in")
    ].itertuples()
    assert f"| {wer.effect:+.1f} [{wer.low:+.1f}, {wer.high:+.1f}] |" in page


def test_the_page_says_what_was_run_and_what_could_be_seen(reference):
    page, _ = render(reference)
    study = json.loads((reference / "controls/summary/study.json").read_text(encoding="utf-8"))
    grid = pd.read_csv(reference / "controls/summary/grid.csv")
    assert f"{len(grid)} runs on cpu with {len(study['methods'])} methods" in page
    assert "No run is missing." in page
    assert page.count("\n### ") == 10
    assert "| asr, units at k_min |" in page
    planned = [line.split(" | ") for line in page.splitlines() if line.startswith("| asr, WER (%) |")]
    assert [(row[1], row[4], row[5].rstrip(" |")) for row in planned] == [("2", planned[0][4], planned[0][4])]


def test_lines_of_the_didactic_study_are_those_of_the_last_epoch_and_of_dense_degrees_there_is_none():
    summary = Summary(ROOT / REFERENCE / "didactic/summary")
    found = dict(of_didactic(summary))["line"].set_index(["metric", "method"])
    history = summary.read("history")
    history = history[history["model"] == "dnf_w40"]
    for method, of_method in history.groupby("method"):
        last, warm = [], []
        for _, run in of_method.groupby("seed"):
            last.append(run.loc[run["step"].idxmax()])
            warm.append(run[run["phase"] == "warm_up"].loc[lambda rows: rows["step"].idxmax()])
        expected = {
            "degree_r2": [row["line_in_live_r2"] for row in last],
            "degree_slope": [row["line_in_live_slope"] for row in last],
            "effective_r2": [row["line_in_effective_r2"] for row in last],
            "effective_r2_before": [row["line_in_effective_r2"] for row in warm],
        }
        for metric, values in expected.items():
            if method == "dense" and metric.startswith("degree"):
                assert np.isnan(values).all() and (metric, method) not in found.index
            else:  # a run whose degrees are equal has no line
                assert found.loc[(metric, method), "effect"] == pytest.approx(np.nanmean(values))
                assert found.loc[(metric, method), "n_seeds"] == np.isfinite(values).sum()


def test_the_shipped_page_is_that_of_the_shipped_summaries():
    shipped = ROOT / REFERENCE
    assert render(shipped) == ((ROOT / PAGE).read_text(encoding="utf-8"), (ROOT / ROWS).read_text(encoding="utf-8"))
