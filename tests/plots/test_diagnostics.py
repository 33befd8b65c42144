"""What the figures of diagnostics show."""

from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import same_color

from bbnet.diagnostics import histogram
from bbnet.plots import alignment, by_depth, gradient_norms, on_rates, update_ratios, weight_histograms
from bbnet.plots.style import DENSE_COLOUR, method_colours, save

pytestmark = pytest.mark.filterwarnings("error")

METHODS = ["dense", "sp_in", "topk"]
SIDES = {"dense": "none", "topk": "none", "sp_in": "in"}
LAYERS = [f"encoder.{number}.a_convolution_with_a_long_name" for number in range(60)]
POINTS = ("warm_start", "end")
OF_DENSE = ("initialisation", *POINTS)


def keys(method: str) -> dict:
    budget = "1.00" if method == "dense" else "0.20"
    return {"task": "change", "model": "small", "method": method, "side": SIDES[method], "budget": budget, "seed": 0}


def summary_of(layers: int = 6, methods=METHODS):
    """Gradients fall by depth; those of sp_in are twice those of dense, and 0 in layer 2."""
    scale = {"dense": 1.0, "sp_in": 2.0, "topk": 3.0}
    flow, series, alike, histograms = [], [], [], []
    for method in methods:
        for point in OF_DENSE if method == "dense" else POINTS:
            for layer, name in enumerate(LAYERS[:layers]):
                own = keys(method) | {"point": point, "parameter": f"{name}.weight"}
                value = 0.0 if (method, layer) == ("sp_in", 2) else scale[method] * 10.0 ** -(1 + layer % 7)
                figures = {"gradient_norm": value, "update_ratio": value}
                about = {"module": name, "depth": 2 * layer, "status": "watched"}
                flow.append(own | about | {"units": 8.0} | figures)
                bias = {"parameter": f"{name}.bias", "depth": 2 * layer + 1, "units": np.nan}
                flow.append(own | about | figures | bias)
                for bin_, factor in enumerate((0.5, 1.5)):
                    own_series = dict.fromkeys(figures, factor * value)
                    series.append(own | {"first_step": bin_, "last_step": bin_, "depth": 2 * layer} | own_series)
                alike.append(keys(method) | {"point": point, "layer": name, "call": 0, "cka": 1 / (1 + layer)})
                width = 0.25 if point == "warm_start" else 0.5
                bins = [{"low": low, "high": low + width, "count": 1} for low in np.arange(-1, 1, width)]
                weight = keys(method) | {"point": point, "kind": "weight", "name": f"{name}.weight", "call": 0}
                histograms += [weight | each for each in bins]
    units = [
        keys(method) | {"phase": phase, "slab": "a", "slab_side": "in", "unit": unit, "fan": 10}
        | {"degree": 10 if method == "dense" else unit + 1, "on_rate": unit / 10, "silent": False}
        for method in methods for phase in ("run", "warm_up") for unit in range(8)
        if phase == "run" or method == "dense"
    ]  # fmt: skip
    tables = {
        "diagnostics/gradient_flow": flow,
        "diagnostics/gradient_flow_series": series,
        "diagnostics/alignment": alike,
        "diagnostics/histograms": histograms,
        "diagnostics/runs": [keys(method) | {"point": point} for method in methods for point in POINTS],
        "units": units,
    }
    study = {"methods": {method: {} for method in METHODS}}
    return SimpleNamespace(read=lambda name: pd.DataFrame(tables[name]), study=study, task="change", model="small")


def all_is_inside(figure):
    """Everything that is drawn lies in the figure; 0.05 inch of a margin may be cut."""
    figure.draw_without_rendering()
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert box.x0 > -0.05 and box.y0 > -0.05 and box.x1 < width + 0.05 and box.y1 < height + 0.05


@pytest.mark.parametrize("module", [gradient_norms, update_ratios])
def test_lines_are_the_weights_of_layers_in_the_order_of_the_model(module):
    figure, data = module.draw(summary_of(), None)
    column = {gradient_norms: "gradient_norm", update_ratios: "update_ratio"}[module]
    assert not data["parameter"].str.endswith("bias").any()
    initial, *others = ([line for line in axis.lines if len(line.get_xdata()) == 6] for axis in figure.axes)
    assert len(initial) == 1 and len(others) == 2
    for dense, sp_in, _ in others:
        assert same_color(dense.get_color(), DENSE_COLOUR)
        for line in (dense, *initial):
            np.testing.assert_allclose(line.get_ydata(), 10.0 ** -np.arange(1, 7))
        # On a logarithmic axis 0 is a gap.
        assert np.isnan(sp_in.get_ydata()[2]) and np.isfinite(np.delete(sp_in.get_ydata(), 2)).all()
    first = data[(data["method"] == "dense") & (data["layer"] == 0)].iloc[0]
    assert (first[f"{column}_smallest"], first[f"{column}_largest"]) == (0.05, pytest.approx(0.15))
    assert [text.get_text() for text in figure.legends[0].texts] == [
        "dense, budget 1.00", "sp_in (in), budget 0.20", "topk, budget 0.20",
    ]  # fmt: skip
    all_is_inside(figure)


def test_colours_are_those_of_the_study_whichever_runs_are_diagnosed():
    figure, _ = gradient_norms.draw(summary_of(methods=["topk"]), None)
    assert same_color(figure.axes[0].lines[0].get_color(), method_colours(METHODS)["topk"])


@pytest.mark.parametrize("module", [gradient_norms, alignment, weight_histograms])
def test_sixty_layers_can_be_read(module):
    figure, _ = module.draw(summary_of(60), None)
    all_is_inside(figure)
    labels = [label for label in figure.axes[0].get_xticklabels() if label.get_text()]
    if module is not weight_histograms:
        assert len(labels) or len(figure.axes) > 1
        assert len(figure.axes[-1].get_xticks()) <= by_depth.MOST_NAMES


def test_names_beside_the_axes_are_whole_in_the_file(tmp_path):
    """The layout is computed with the letters of the file, whose widths depend on its resolution."""
    figure, data = weight_histograms.draw(summary_of(), None)
    save(figure, data, [tmp_path / "figure.png"])
    pixels = plt.imread(tmp_path / "figure.png")[:, :, :3]
    assert (pixels[:, :4] > 0.9).all() and (pixels[:, -4:] > 0.9).all() and (pixels[:, :200] < 0.5).any()


def test_thresholds_are_named_as_far_as_they_lie_in_the_axes():
    figure, _ = update_ratios.draw(summary_of(), None)
    assert [text.get_text() for text in figure.axes[0].texts] == ["slow", "usual", "fast"]
    figure, _ = gradient_norms.draw(summary_of(), None)
    assert [text.get_text() for text in figure.axes[0].texts] == ["low"]


def test_alignment_leaves_out_dense_and_shows_what_all_methods_share_once():
    figure, data = alignment.draw(summary_of(), None)
    assert set(zip(data["point"], data["method"], strict=True)) == {
        ("initialisation", "dense"), ("warm_start", "dense"), ("end", "sp_in"), ("end", "topk"),
    }  # fmt: skip
    (axis,) = figure.axes
    assert len(axis.lines) == 4
    names = [text.get_text() for text in figure.legends[0].texts]
    assert names[:2] == ["initialisation", "warm start"]
    for line in axis.lines:
        np.testing.assert_allclose(line.get_ydata(), 1 / np.arange(1, 7))


def test_alignment_without_a_sparse_run_says_so():
    summary = summary_of(methods=["dense"])
    rows = summary.read("diagnostics/alignment").iloc[:0]
    summary.read = lambda name: rows
    figure, data = alignment.draw(summary, None)
    assert figure.legends[0].get_title().get_text() == "no run to compare with dense"
    assert data.empty


def test_histograms_of_a_layer_share_their_bins():
    figure, data = weight_histograms.draw(summary_of(2), None)
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    before, after = ("initialisation", "warm start"), ("dense, 1.00", "sp_in (in), .20", "topk, .20")
    assert titles == [f"{name}, seed 0" for name in (*before, *after)]
    parts = weight_histograms.shared_bins(data)
    assert weight_histograms.BINS == histogram.BINS
    for part in parts.values():
        assert part.shape == (2, histogram.BINS)
        np.testing.assert_allclose(part.sum(axis=1), 1)
    # Bins of a quarter around -7/8, -5/8, ..., and of a half around -3/4, -1/4, ..., of 32 bins per unit.
    assert np.flatnonzero(parts["warm start, seed 0"].iloc[0]).tolist() == list(range(4, 64, 8))
    assert np.flatnonzero(parts["dense, 1.00, seed 0"].iloc[0]).tolist() == list(range(8, 64, 16))


def test_on_rates_are_shown_of_runs_whose_units_differ_in_degree():
    figure, data = on_rates.draw(summary_of(), None)
    assert [axis.get_title() for axis in figure.axes[:2]] == ["sp_in (in), .20", "topk, .20"]
    (points,) = figure.axes[0].lines
    np.testing.assert_allclose(points.get_xydata(), [[(unit + 1) / 10, unit / 10] for unit in range(8)])
    assert set(data["method"]) == set(METHODS)
    all_is_inside(figure)


def test_dense_alone_has_equal_degrees():
    figure, _ = on_rates.draw(summary_of(methods=["dense"]), None)
    assert figure.axes[0].get_title() == "all degrees are equal"
