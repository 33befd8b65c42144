"""Which values of which factors a study varies, and which contrasts belong to them: a case worked by hand."""

from types import SimpleNamespace

import pandas as pd
import pytest

from bbnet.analysis.sensitivity import COLUMNS, DEFAULT, SHOWN, conditions, sensitivity_table
from bbnet.analysis.statistics import CELL_KEYS
from bbnet.analysis.tables import DASH, sensitivity
from bbnet.tasks.task import load_metrics

BB = {"algorithm": "budgeted_broadcast", "side": "in", "gain": 0.1, "law": "log_odds", "sparsity": None}
MAGNITUDE = {"algorithm": "magnitude", "side": "in", "sparsity": None}


def own(**settings) -> dict:
    """As a summary describes it: settings that are those of the study are None."""
    return {"sparsity": {"rescale": None, "every": None} | settings}


STUDY = {
    "reference": "log_odds",
    "sparsity": {"rescale": "none", "every": None},
    "methods": {
        "dense": {"algorithm": "dense"},
        "every_20": BB | own(every=20),
        "every_3": BB | own(every=3),
        "flat": BB | {"gain": 0.03},
        "log_odds": BB,
        "magnitude": MAGNITUDE,
        "magnitude_sqrt": MAGNITUDE | own(rescale="sqrt"),
        "sqrt": BB | own(rescale="sqrt"),
        "steep": BB | {"gain": 0.3},
        "two_things": BB | {"gain": 0.3} | own(rescale="sqrt"),
    },
    "tasks": {
        "change": {
            "baseline": "base",
            "training": {"warm_up_epochs": 3, "learning_rate": 0.1},
            "models": {
                "base": {"widths": [8, 8], "warm_up_epochs": None, "learning_rate": None},
                "early": {"widths": [8, 8], "warm_up_epochs": 1, "learning_rate": None},
                "early_and_wide": {"widths": [8, 16], "warm_up_epochs": 1, "learning_rate": None},
                "same": {"widths": [8, 8], "warm_up_epochs": None, "learning_rate": 0.1},
            },
        }
    },
}


def row(effect: float, method: str, reference: str, model: str = "base", of_model: str | None = None, **more) -> dict:
    keys = dict(zip(CELL_KEYS, ("change", model, method, "in", "0.25"), strict=True))
    values = {"effect": effect, "low": effect - 1, "high": effect + 1, "n_seeds": 3, "differences": "1 2 3"}
    values |= {"p": 0.1, "p_holm": 0.2, "verdict": "none", "metric": "f1"}
    reference_model = {} if of_model is None else {"reference_model": of_model}
    return keys | {"reference": reference} | reference_model | values | more


CONTRASTS = pd.DataFrame(
    [
        row(1, "log_odds", "dense"),
        row(2, "log_odds", "magnitude"),
        row(3, "flat", "log_odds"),
        row(4, "flat", "magnitude"),
        row(5, "steep", "log_odds"),
        row(6, "sqrt", "log_odds"),
        row(7, "sqrt", "magnitude_sqrt"),
        row(8, "two_things", "log_odds"),
        row(9, "log_odds", "magnitude", model="early"),
        row(10, "every_3", "log_odds"),
    ]
)
OF_MODELS = pd.DataFrame(
    [
        row(11, "log_odds", "log_odds", "early", "base"),
        row(12, "magnitude", "magnitude", "early", "base"),
        row(13, "log_odds", "log_odds", "early_and_wide", "base"),
        row(14, "log_odds", "dense", "early", "base"),  # at equal cost
    ]
)


def summary_of(study=STUDY, **tables):
    tables = {"contrasts": CONTRASTS, "model_contrasts": OF_MODELS} | tables
    return SimpleNamespace(study=study, task="change", read=tables.__getitem__)


def test_factors_are_what_differs_alone_with_values_in_order():
    found = [condition[:3] for condition in conditions(STUDY, "change")]
    assert found == [
        ("every", None, True),
        ("every", 3, False),
        ("every", 20, False),
        ("gain", 0.03, False),
        ("gain", 0.1, True),
        ("gain", 0.3, False),
        ("rescale", "none", True),
        ("rescale", "sqrt", False),
        ("warm_up_epochs", 1, False),
        ("warm_up_epochs", 3, True),
    ]


def test_each_value_has_its_contrasts_with_the_default_and_with_rivals_of_the_same_settings():
    table = sensitivity_table(summary_of())
    found = table[["factor", "value", "against", "effect"]].itertuples(index=False, name=None)
    assert list(found) == [
        ("every", "automatic", "magnitude", 2),
        ("every", "3", DEFAULT, 10),
        ("gain", "0.03", DEFAULT, 3),
        ("gain", "0.03", "magnitude", 4),
        ("gain", "0.1", "magnitude", 2),
        ("gain", "0.3", DEFAULT, 5),
        ("rescale", "none", "magnitude", 2),
        ("rescale", "sqrt", DEFAULT, 6),
        ("rescale", "sqrt", "magnitude", 7),
        ("warm_up_epochs", "1", DEFAULT, 11),
        ("warm_up_epochs", "1", "magnitude", 9),
        ("warm_up_epochs", "3", "magnitude", 2),
    ]
    assert list(table) == COLUMNS
    assert table.duplicated().sum() == 0
    assert table[SHOWN].iloc[1].tolist() == [10, 9, 11, 3, "1 2 3", 0.1, 0.2, "none"]


def test_without_a_baseline_models_are_no_factor_and_without_contrasts_there_is_nothing():
    task = STUDY["tasks"]["change"] | {"baseline": None}
    study = STUDY | {"tasks": {"change": task}}
    assert "warm_up_epochs" not in {condition.factor for condition in conditions(study, "change")}
    table = sensitivity_table(summary_of(study, contrasts=CONTRASTS[:0]))
    assert (len(table), list(table)) == (0, COLUMNS)


def test_the_table_has_a_line_for_each_value_and_a_column_for_each_rival():
    shown = sensitivity(summary_of(), load_metrics("change")).shown.astype(str)
    lines = shown.set_index(["factor", "value"])
    assert lines.loc[("gain", "0.1 (default)"), "from default"] == DASH
    assert lines.loc[("gain", "0.1 (default)"), "from magnitude"] == "+2.000 [+1.000, +3.000], p 0.2"
    assert lines.loc[("every", "3"), "from magnitude"] == DASH
    assert lines.loc[("warm_up_epochs", "1"), "from default"].startswith("+11.000")
    assert lines.index.tolist()[0] == ("every", "automatic (default)")


@pytest.mark.parametrize("empty", ["contrasts", "model_contrasts"])
def test_a_summary_that_lacks_runs_shows_the_rest(empty):
    tables = {empty: {"contrasts": CONTRASTS, "model_contrasts": OF_MODELS}[empty][:0]}
    table = sensitivity_table(summary_of(**tables))
    others = {"every", "gain", "rescale", "warm_up_epochs"}
    assert set(table["factor"]) == ({"warm_up_epochs"} if empty == "contrasts" else others)
