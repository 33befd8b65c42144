"""What passages of texts look like."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.text import Text

from bbnet.plots.panels_language import CHARACTERS, LINE_END, placed, plot_panels

TOKENS = ["def", " f", "(", "x", "):", "\n", "\treturn", " x", "λ", "\n\n", ""]


@pytest.fixture
def plot():
    def make(method: str = "sp_in", document: str = "torch/a.py", ranks=("best", "worst")):
        panels, cases = {}, {}
        for rank in ranks:
            key = f"small/{method}/b0.50/{rank}"
            rises = np.linspace(-9, 9, len(TOKENS), dtype=np.float32)
            panels |= {f"{key}/tokens": np.array(TOKENS), f"{key}/dense": 1 + 0 * rises, f"{key}/other": 1 + rises}
            cases[key] = {"document": document, "tokens": 11, "dense": 1.0, "other": 2.5}
        return plot_panels(panels | {"cases": np.array(json.dumps(cases))}, "small", method, "0.50")

    yield make
    plt.close("all")


def test_tokens_follow_each_other_and_wrap_at_line_breaks_and_at_the_edge():
    long = "x" * (CHARACTERS + 3)
    layout = placed(["ab", "\n", "\tc", long, ""])
    assert layout[:3] == [[("ab", 0, 0)], [(LINE_END, 2, 0)], [("    c", 0, 1)]]
    assert layout[3] == [("x" * (CHARACTERS - 5), 5, 1), ("x" * 8, 0, 2)]
    assert layout[4] == [("", 8, 2)]


def test_each_passage_has_its_losses_and_the_token_that_rises_most(plot):
    texts = [text.get_text() for text in plot().axes[0].texts]
    assert "best: torch/a.py, 11 tokens; nats per token: dense 1.00, sp_in 2.50" in texts
    assert texts.count("largest rise: “”, dense 1.00, sp_in 10.00") == 2
    assert texts.count("def") == 2


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["a.py", "d" * 300, "足$\\alpha$.txt"])
def test_any_name_stays_within_the_figure(plot, name):
    figure = plot("m" * 64, name, ("only",))
    figure.draw_without_rendering()
    for text in figure.findobj(Text):
        box = text.get_window_extent()
        if text.get_text().strip() and text.get_visible():
            assert box.x0 >= -1 and box.x1 <= figure.bbox.x1 + 1, text.get_text()
            assert box.y0 >= -1 and box.y1 <= figure.bbox.y1 + 1, text.get_text()
