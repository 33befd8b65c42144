"""What the figure of the factors of a study shows, and that it can be read."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import same_color

from bbnet.analysis.metric import Metric
from bbnet.analysis.sensitivity import COLUMNS, DEFAULT, Condition
from bbnet.plots.sensitivity import plot_sensitivity
from bbnet.plots.style import model_colours

pytestmark = pytest.mark.filterwarnings("error")

METRICS = {"f1": Metric("F1", "share", "higher"), "iou": Metric("IoU", "share", "higher")}
FACTORS = {"gain": [0.03, 0.1, 0.3], "rescale": ["none", "sqrt"], "every": [None, 3, 20]}
DEFAULTS = (0.1, "none", None)
VARIED = [
    Condition(factor, value, value in DEFAULTS, "base", "any") for factor, values in FACTORS.items() for value in values
]


def table_of(rivals=("magnitude", "rigl"), budgets=("0.25",), metrics=("f1",), seeds=3) -> pd.DataFrame:
    rows = []
    for one, against, budget, metric in product(VARIED, (DEFAULT, *rivals), budgets, metrics):
        if not (one.default and against == DEFAULT):
            effect = 0.01 * (len(rows) - 5)
            rows.append(
                one._asdict()
                | {"value": one.text, "against": against, "side": "in", "budget": budget, "metric": metric}
                | {"effect": effect, "low": effect - 0.02, "high": effect + 0.03, "n_seeds": seeds}
                | {"differences": " ".join(map(str, np.linspace(-0.02, 0.03, seeds) + effect))}
                | {"p": 0.5, "p_holm": 1.0, "verdict": "better" if len(rows) % 3 == 0 else "none"}
            )
    return pd.DataFrame(rows)[COLUMNS]


def points(axis, colour: str) -> dict[float, tuple[float, bool]]:
    """Place, effect and whether it is filled, of the means in a colour."""
    found = {}
    for line in axis.get_lines():
        if line.get_marker() in ("o", "s") and same_color(line.get_color(), colour):
            ((x, y),) = line.get_xydata().tolist()
            found[y] = (x, not same_color(line.get_markerfacecolor(), "white"))
    return found


def test_each_difference_stands_at_the_line_of_its_value_filled_only_if_significant():
    table = table_of()
    figure = plot_sensitivity(table, VARIED, {"f1": METRICS["f1"]}, "log_odds")
    left, right = figure.axes
    labels = [text.get_text() for text in left.get_yticklabels()]
    assert labels == ["0.03", "0.1 (default)", "0.3", "none (default)", "sqrt", "automatic (default)", "3", "20"]
    places = dict(zip(labels, left.get_yticks(), strict=True))
    colours = model_colours([DEFAULT, "magnitude", "rigl"])
    names = [f"{row.value}{' (default)' * row.default}" for row in table.itertuples()]
    for against, axis, offset in ((DEFAULT, left, 0), ("magnitude", right, -0.125), ("rigl", right, 0.125)):
        rows = table[table["against"] == against]
        expected = {places[names[row.Index]] + offset: (row.effect, row.verdict != "none") for row in rows.itertuples()}
        if against == DEFAULT:  # the defaults themselves differ by nothing
            expected |= {places[name]: (0.0, False) for name in places if "default" in name}
        assert points(axis, colours[against]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("rivals", "budgets", "metrics", "seeds"),
    [
        ((), ("0.25",), ("f1",), 1),
        (("magnitude",), ("0.10", "0.25"), ("f1", "iou"), 2),
        (("a" * 64,), ("0.25",), ("f1",), 3),
    ],
)
def test_the_texts_stay_within_the_figure_and_apart(rivals, budgets, metrics, seeds):
    table = table_of(rivals, budgets, metrics, seeds)
    figure = plot_sensitivity(
        table, VARIED, {name: METRICS[name] for name in metrics}, "log_odds" if seeds > 1 else "l" * 64
    )
    assert len(figure.axes) == 2 * len(budgets) * len(metrics)
    figure.draw_without_rendering()
    texts = [text for axis in figure.axes for text in (axis.title, axis.xaxis.label, *axis.texts)]
    texts += [text for axis in figure.axes[::2] for text in axis.get_yticklabels()]
    texts += [text for legend in figure.legends for text in legend.get_texts()]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text()]
    for number, (text, one) in enumerate(boxes):
        assert one.x0 >= -1 and one.y0 >= -1 and one.x1 <= figure.bbox.x1 + 1 and one.y1 <= figure.bbox.y1 + 1, text
        for other_text, other in boxes[number + 1 :]:
            assert not one.padded(-1).overlaps(other.padded(-1)), (text, other_text)


def test_without_contrasts_it_says_so():
    figure = plot_sensitivity(pd.DataFrame(columns=COLUMNS), VARIED, METRICS, "log_odds")
    assert figure.axes[0].get_title() == "nothing to compare"


def test_without_rivals_and_runs_of_a_value_the_defaults_are_still_there():
    table = table_of(rivals=())
    figure = plot_sensitivity(table[table["value"] != "0.3"], VARIED, {"f1": METRICS["f1"]}, "log_odds")
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels == ["0.03", "0.1 (default)", "none (default)", "sqrt", "automatic (default)", "3", "20"]
