"""Which words stand below which, how they look, and that all of them are in the figure."""

import json
from itertools import pairwise

import jiwer
import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bbnet.plots.panels_asr import FONT, STYLES, columns_of, plot_panels, wrap
from bbnet.plots.style import note, use_style
from bbnet.tasks.asr.scoring import count_errors

LONG = " ".join(f"{word}{number}" for number in range(12) for word in ("THE", "YELLOW", "LAMPS", "BROTHELS", "A"))
RANKS = ("best", "median", "worst")


def texts(reference: str, *hypotheses: str) -> list[list[str]]:
    return [[word.text for word in column] for column in columns_of(reference, hypotheses)]


def kinds(reference: str, *hypotheses: str) -> list[list[str]]:
    return [[word.kind for word in column[1:]] for column in columns_of(reference, hypotheses)]


def test_equal_words_share_a_column():
    assert texts("A LAMP", "A LAMP", "A LAMP") == [["A"] * 3, ["LAMP"] * 3]
    assert kinds("A LAMP", "A LAMP", "A LAMP") == [["equal"] * 2] * 2


def test_every_kind_of_error_has_its_look():
    assert texts("THE LAMP IS LIT", "THE LAMB LIT", "THE LAMP IS NOW LIT") == [
        ["THE", "THE", "THE"],
        ["LAMP", "LAMB", "LAMP"],
        ["IS", "––", "IS"],
        ["", "", "+NOW"],
        ["LIT", "LIT", "LIT"],
    ]
    assert [kind for kind, _ in kinds("THE LAMP IS LIT", "THE LAMB LIT", "")][:4] == [
        "equal",
        "substituted",
        "deleted",
        "equal",
    ]


def test_words_inserted_at_the_same_place_share_columns():
    assert texts("A B", "A X Y B", "A Z B") == [["A", "A", "A"], ["", "+X", "+Z"], ["", "+Y", ""], ["B", "B", "B"]]
    assert texts("A", "X A", "A Y") == [["", "+X", ""], ["A", "A", "A"], ["", "", "+Y"]]


def test_a_hypothesis_or_a_reference_may_be_empty():
    assert texts("A LAMP", "", "A LAMP") == [["A", "–", "A"], ["LAMP", "––––", "LAMP"]]
    assert texts("", "A", "") == [["", "+A", ""]]
    assert texts("", "", "") == []


sentences = st.lists(st.sampled_from("ABCD"), max_size=12).map(" ".join)


@given(sentences, sentences, sentences)
def test_no_word_is_lost_and_the_edits_are_the_fewest(reference, dense, other):
    columns = columns_of(reference, [dense, other])
    assert [column[0].text for column in columns if column[0].text] == reference.split()
    for row, hypothesis in ((1, dense), (2, other)):
        words = [column[row] for column in columns]
        assert [word.text.lstrip("+") for word in words if word.text and word.kind != "deleted"] == hypothesis.split()
        output = jiwer.process_words(reference, hypothesis)
        edits = sum(word.kind in ("substituted", "deleted", "inserted") for word in words)
        assert edits == output.substitutions + output.deletions + output.insertions
        for column in columns:
            if column[row].kind in ("equal", "substituted"):
                assert (column[row].text == column[0].text) == (column[row].kind == "equal")


def test_panels_show_the_words_that_the_scores_count():
    counts = count_errors(["THE CAT"], ["CAT SAT"])
    kinds = [column[1].kind for column in columns_of("THE CAT", ["CAT SAT"])]
    assert kinds == ["deleted", "equal", "inserted"]
    assert [int(counts[name][0]) for name in ("deletions", "substitutions", "insertions")] == [1, 0, 1]


def test_wrapping_keeps_every_column_in_order():
    columns = columns_of(LONG, [LONG, ""])
    blocks = list(wrap(columns, 60))
    assert len(blocks) > 3
    assert [column for block in blocks for column in block] == columns
    assert list(wrap([], 60)) == [[]]


def test_a_word_wider_than_the_room_has_a_block_of_its_own():
    assert [len(block) for block in wrap(columns_of("A BBBBBBBBBBBB C", ["A", "A"]), 5)] == [1, 1, 1]


@pytest.fixture
def draw():
    """The figure of the given cases: rank -> reference, dense, other."""
    use_style()

    def make(method="sp_in", **cases):
        panels, described = {}, {}
        for rank, (reference, *hypotheses) in cases.items():
            key = f"small/{method}/b0.20/{rank}"
            panels |= {
                f"{key}/{name}": np.array(text)
                for name, text in zip(("reference", "dense", "other"), (reference, *hypotheses), strict=True)
            }
            described[key] = {"utterance": f"u-{rank}", "test_set": "test-other", "words": len(reference.split())}
            for name, errors in (("dense", 4), ("other", 2)):
                described[key][name] = {"substitutions": errors, "deletions": 1, "insertions": 0}
        described["small/other_method/b0.20/best"] = {}
        return plot_panels(panels | {"cases": np.array(json.dumps(described))}, "small", method, "0.20")

    yield make
    plt.close("all")


def written(figure) -> list:
    return list(figure.axes[0].texts)


def find(figure, word: str, place: int = 0):
    return [text for text in written(figure) if text.get_text() == word][place]


def test_words_of_a_column_stand_below_each_other_and_lines_go_down(draw):
    figure = draw(best=("A LAMP", "A LAMB", "A LAMP"))
    lines = [find(figure, "A", place).xyann for place in range(3)]
    assert len({x for x, _ in lines}) == 1
    assert lines[0][1] > lines[1][1] > lines[2][1]
    names = [find(figure, name).xyann for name in ("reference", "dense", "sp_in")]
    assert [y for _, y in names] == [y for _, y in lines]
    assert find(figure, "LAMP").xyann[0] == find(figure, "LAMB").xyann[0] > lines[0][0] > names[0][0]


def test_errors_are_told_by_colour_and_without_it(draw):
    figure = draw(best=("ONE TWO THREE SIX", "ONE TOO THREE SIX", "ONE THREE SIX FOUR"))
    looks = {word: find(figure, word) for word in ("ONE", "TOO", "–––", "+FOUR")}
    expected = {"ONE": "equal", "TOO": "substituted", "–––": "deleted", "+FOUR": "inserted"}
    assert {word: text.get_color() for word, text in looks.items()} == {
        word: STYLES[kind]["color"] for word, kind in expected.items()
    }
    assert len({text.get_color() for text in looks.values()}) == 4
    assert {word for word, text in looks.items() if text.get_weight() == "bold"} == {"TOO", "–––", "+FOUR"}
    framed = [
        word for word, text in looks.items() if text.get_bbox_patch() and text.get_bbox_patch().get_edgecolor()[3] > 0
    ]
    assert framed == ["TOO"]
    assert {text.get_fontfamily()[0] for text in looks.values()} == {FONT}


def test_the_legend_shows_each_kind_of_error_as_it_looks(draw):
    figure = draw(best=("ONE", "ONE", "ONE"))
    for kind, sample in (("substituted", "WORD"), ("deleted", "––––"), ("inserted", "+WORD")):
        assert find(figure, sample).get_color() == STYLES[kind]["color"]
        assert find(figure, kind).xyann[1] == find(figure, sample).xyann[1] < find(figure, "ONE", 2).xyann[1]
        assert find(figure, kind).xyann[0] > find(figure, sample).xyann[0]
    assert find(figure, "sp_in, budget 0.20")


def test_best_median_and_worst_follow_each_other(draw):
    figure = draw(worst=("C", "C", ""), best=("A", "", "A"), median=("B", "B", "B"))
    titles = [text for text in written(figure) if text.get_text().startswith(RANKS)]
    assert [text.get_text() for text in titles] == [
        f"{rank}: u-{rank} (test-other), 1 words; errors: dense 5, sp_in 3" for rank in RANKS
    ]
    order = [titles[0], find(figure, "A"), titles[1], find(figure, "B"), titles[2], find(figure, "C")]
    assert all(above.xyann[1] > below.xyann[1] for above, below in pairwise(order))


@pytest.mark.parametrize("remark", ["", "incomplete: 2 missing of 28 runs"])
@pytest.mark.parametrize("method", ["sp_in", "budgeted_broadcast_in"])
def test_all_is_in_the_figure_and_nothing_overlaps(draw, remark, method):
    looping = " ".join(["A", "SUBSTANTIALLY"] * 40 + ["X" * 300])
    figure = draw(
        method, best=(LONG, LONG.replace("LAMPS", "LAMB"), ""), median=("A", "", "A"), worst=(LONG, "", looping)
    )
    note(figure, remark)
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in written(figure)]
    assert min(box.x0 for box in boxes) >= 0
    assert max(box.x1 for box in boxes) <= figure.bbox.width
    assert min(box.y0 for box in boxes) >= 0
    top = figure._suptitle.get_window_extent().y0 if remark else figure.bbox.height
    assert max(box.y1 for box in boxes) <= top
    assert not [
        (one, other)
        for number, one in enumerate(boxes)
        for other in boxes[:number]
        if min(one.x1, other.x1) - max(one.x0, other.x0) > 1 and min(one.y1, other.y1) - max(one.y0, other.y0) > 1
    ]
