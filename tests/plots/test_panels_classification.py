"""What stands below the images that are classified wrongly with most confidence."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import same_color

from bbnet.plots.panels_classification import RIGHT, WRONG, plot_panels


@pytest.fixture
def plot():
    def make(*chosen: str):
        """The images are the grey of their number; the true class is a cat, dense says dog, the method emu or cat."""
        panels, cases = {}, {}
        for number, name in enumerate(chosen):
            key = f"resnet/sp_in/b0.50/{name}"
            right = name.startswith("dense")
            panels[f"{key}/pixels"] = np.full((8, 8, 3), 10 * number, np.uint8)
            panels |= {f"{key}/true": np.array("cat"), f"{key}/dense": np.array("dog")}
            panels[f"{key}/other"] = np.array("cat" if right else "emu")
            cases[key] = {"image": "a.png", "dense": {"confidence": 0.75, "right": False}}
            cases[key]["other"] = {"confidence": 0.5, "right": right}
        cases["resnet/sp_out/b0.50/other_1"] = cases["wide/sp_in/b0.50/other_1"] = {}
        return plot_panels(panels | {"cases": np.array(json.dumps(cases))}, "resnet", "sp_in", "0.50")

    yield make
    plt.close("all")


def test_a_row_for_the_method_and_one_for_dense_in_order_of_confidence(plot):
    figure = plot("other_2", "other_1", "dense_1")
    shown = [
        [int(axis.images[0].get_array()[0, 0, 0]) for axis in figure.axes[start : start + 2] if axis.images]
        for start in (0, 2)
    ]
    assert shown == [[10, 0], [20]]
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert titles == ["sp_in: most confident errors", "", "dense: most confident errors", ""]


def test_below_an_image_are_the_true_class_and_both_answers_coloured_by_whether_they_are_right(plot):
    figure = plot("other_1", "dense_1")
    for axis, answer, colour in zip(figure.axes, ("emu", "cat"), (WRONG, RIGHT), strict=True):
        assert [text.get_text() for text in axis.texts] == ["true: cat", f"sp_in: {answer} 0.500", "dense: dog 0.750"]
        colours = [text.get_color() for text in axis.texts]
        assert same_color(colours[1], colour)
        assert same_color(colours[2], WRONG)


def test_a_run_without_errors_is_said_to_have_none(plot):
    figure = plot("other_1")
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["sp_in: most confident errors", "dense: no errors"]
    assert [axis.get_title(loc="left") for axis in plot().axes] == ["sp_in: no errors", "dense: no errors"]
