"""Names of files on figures: any name is drawn, whole where there is room, and no label touches another."""

import json
from itertools import combinations

import matplotlib.pyplot as plt
import numpy as np
import pytest

from bbnet.plots import panels_asr, panels_change
from bbnet.plots.style import FONT, LACKING, lacking_note, save, shown_name, use_style

RANKS = ("best", "median", "worst")
REAL = ("test_77_0512_0256.png", "test_102_0768_0768.png", "test_7_0000_0512.png")
NAMES = {
    "real": REAL,
    "mathematics": ("price_$5_$6.png", "$\\frac{1}{0}$.png", "a\\$b$c_{.png"),
    "long": tuple("W" * length + ".png" for length in (60, 120, 251)),
    "scripts": ("北京_01.png", "Zu\u0308rich.png", "line\nbreak\t\x07.png"),
}


@pytest.fixture(autouse=True)
def style():
    use_style()
    yield
    plt.close("all")


def change_panels(names, method="sp_in", delta=-7):
    image = np.zeros((64, 64, 3), np.uint8)
    mask = np.zeros((64, 64), bool)
    parts = {"A": image, "B": image, "label": mask, "dense": mask, "other": mask}
    keys = {rank: f"small/{method}/b0.20/{rank}" for rank in RANKS}
    cases = {
        keys[rank]: {"image": name, "delta_tp": delta, "delta_fp": -delta}
        for rank, name in zip(RANKS, names, strict=True)
    }
    panels = {f"{key}/{part}": value for key in keys.values() for part, value in parts.items()}
    return panels_change.plot_panels(panels | {"cases": np.array(json.dumps(cases))}, "small", method, "0.20")


def speech_panels(names, method="sp_in", delta=7):
    keys = {rank: f"small/{method}/b0.20/{rank}" for rank in RANKS}
    errors = {"substitutions": abs(delta), "deletions": 1, "insertions": 0}
    cases = {
        keys[rank]: {"utterance": name, "test_set": "test-other", "words": 2, "dense": errors, "other": errors}
        for rank, name in zip(RANKS, names, strict=True)
    }
    texts = {f"{key}/{part}": np.array("A LAMP") for key in keys.values() for part in ("reference", "dense", "other")}
    return panels_asr.plot_panels(texts | {"cases": np.array(json.dumps(cases))}, "small", method, "0.20")


def texts_of(figure) -> list:
    figure.draw_without_rendering()
    texts = [text for axis in figure.axes for text in (axis.title, axis.yaxis.label, *axis.texts)]
    legends = [text for legend in figure.legends for text in (*legend.get_texts(), legend.get_title())]
    return [text for text in texts + legends if text.get_text().strip()]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("panels", [change_panels, speech_panels])
@pytest.mark.parametrize(("kind", "method"), [(kind, "m" * 64 if kind == "long" else "sp_in") for kind in NAMES])
def test_any_name_is_drawn_within_the_figure_and_apart_from_its_neighbours(panels, kind, method, tmp_path):
    figure = panels(NAMES[kind], method, -1_048_576 if panels is change_panels else 7)
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts_of(figure)]
    for text, box in boxes:
        assert min(box.x0, box.y0) >= -1, text
        assert box.x1 <= figure.bbox.x1 + 1, text
        assert box.y1 <= figure.bbox.y1 + 1, text
    for (text, one), (other_text, other) in combinations(boxes, 2):
        assert not one.padded(-1).overlaps(other.padded(-1)), (text, other_text)
    remarks = [text for text, _ in boxes if "a character that the font lacks" in text]
    assert len(remarks) == (kind == "scripts")
    save(figure, None, [tmp_path / "figure.pdf", tmp_path / "figure.png"])


@pytest.mark.parametrize("panels", [change_panels, speech_panels])
def test_real_names_are_written_out(panels):
    written = "\n".join(text.get_text() for text in texts_of(panels(REAL)))
    assert all(name in written for name in REAL)


def test_names_are_shortened_in_the_middle_and_lose_only_what_the_font_lacks():
    assert shown_name("a_short_name.png", 200, 8) == "a_short_name.png"
    shortened = shown_name("scene_" + "0123456789" * 9 + "_last.png", 130, 8)
    head, tail = shortened.split("…")
    assert head.startswith("scene_0") and tail.endswith("_last.png")
    assert abs(len(head) - len(tail)) <= 1
    assert shown_name("cafe\u0301 北 é\n", 200, 8, FONT) == f"café {LACKING} é{LACKING}"
    assert lacking_note(["a", "b"]) == ""
    assert LACKING in lacking_note(["a", shown_name("北", 99, 8)])
