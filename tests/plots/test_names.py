"""Names of files on figures: any name is drawn, whole where there is room, and no label touches another."""

import importlib
import json
import shutil
from itertools import combinations
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from bbnet.analysis.summary import Summary
from bbnet.plots import panels_asr, panels_change, panels_classification
from bbnet.plots.style import FONT, LACKING, lacking_note, save, shown_name, use_style
from bbnet.tasks.task import load_metrics

REFERENCE = Path(__file__).parents[2] / "results/reference/demo/summary"
LONG = "{}_" + "m" * 64
MODELS = {
    task: LONG.format(model)[:64]
    for task, model in {"asr": "transformer", "change": "fc_siam_conc", "face": "resnet"}.items()
}
KEPT = ("dense", "none", "nan")
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


def classification_panels(names, method="sp_in", delta=0):
    """The names are those of classes."""
    keys = [f"small/{method}/b0.20/{run}_{place}" for run in ("other", "dense") for place in (1, 2, 3, 4, 5, 6)]
    answers = {"dense": {"confidence": 0.999, "right": True}, "other": {"confidence": 1.0, "right": False}}
    classes = {part: np.array(name) for part, name in zip(("true", "dense", "other"), names, strict=True)}
    parts = classes | {"pixels": np.zeros((32, 32, 3), np.uint8)}
    panels = {f"{key}/{part}": value for key in keys for part, value in parts.items()}
    cases = {key: {"image": "any.png"} | answers for key in keys}
    return panels_classification.plot_panels(panels | {"cases": np.array(json.dumps(cases))}, "small", method, "0.20")


def texts_of(figure) -> list:
    figure.draw_without_rendering()
    texts = [text for axis in figure.axes for text in (axis.title, axis.xaxis.label, axis.yaxis.label, *axis.texts)]
    texts += [text for axis in figure.axes for text in axis.get_yticklabels() if text.get_text().islower()]
    legends = [text for legend in figure.legends for text in (*legend.get_texts(), legend.get_title())]
    return [text for text in texts + legends if text.get_text().strip()]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("panels", [change_panels, speech_panels, classification_panels])
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


@pytest.fixture(scope="module")
def long_summary(tmp_path_factory):
    """The shipped summary, in which all methods but dense have labels of 64 letters, and models as well."""
    folder = tmp_path_factory.mktemp("results") / "summary"
    shutil.copytree(REFERENCE, folder)
    for path in folder.iterdir():
        if path.suffix in (".csv", ".parquet"):
            table = pd.read_csv(path, dtype={"budget": str}) if path.suffix == ".csv" else pd.read_parquet(path)
            for column in {"method", "reference", "model"} & set(table):
                table[column] = (
                    table[column].astype(str).map(lambda name: name if name in KEPT else LONG.format(name)[:64])
                )
            table.to_csv(path, index=False) if path.suffix == ".csv" else table.to_parquet(path)
    return folder


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("task", "name"),
    [
        (None, "coverage"),
        *((task, name) for task in ("change", "face") for name in ("headline", "contrasts", "claims", "balance")),
        *(("asr", name) for name in ("pareto", "by_bucket", "churn", "learning_curves")),
        ("face", "roc"),
    ],
)
def test_long_labels_of_methods_leave_room_for_the_figure_and_its_other_texts(long_summary, task, name):
    figure, _ = importlib.import_module(f"bbnet.plots.{name}").draw(
        Summary(long_summary, task, MODELS.get(task)), task and load_metrics(task)
    )
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts_of(figure)]
    for text, box in boxes:
        assert min(box.x0, box.y0) >= -1 and box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1, text
    for (text, one), (other_text, other) in combinations(boxes, 2):
        assert not one.padded(-1).overlaps(other.padded(-1)), (text, other_text)
    assert min(axis.get_window_extent().width for axis in figure.axes) >= 2 * figure.dpi


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
