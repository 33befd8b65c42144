"""Every test draws in the style of the project, and leaves no figure open."""

import matplotlib.pyplot as plt
import pytest

from bbnet.plots.style import use_style


@pytest.fixture(autouse=True)
def the_style():
    with plt.rc_context():
        use_style()
        yield
        plt.close("all")
