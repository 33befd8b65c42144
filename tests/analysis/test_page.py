"""The page of a study: whole in one file, with all that there is, and nothing that its texts could break."""

import base64
import json
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from bbnet.analysis.findings import findings
from bbnet.analysis.metric import Metric
from bbnet.analysis.page import (
    DIAGNOSTIC_FIGURES,
    FIGURES,
    MODELS,
    SCALING,
    SENSITIVITY,
    TABLES,
    prepared_remarks,
    render,
)

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
OF_TASKS = (MODELS, SCALING[0], SENSITIVITY[0])
NASTY = "<b>bold</b> & \"quoted\" 'text' <script>alert(1)</script>"
CONTRASTS = ["task", "model", "method", "side", "budget", "reference", "reference_side", "metric", "unit"]
CONTRASTS += ["effect", "low", "high", "n_seeds", "variation", "p", "p_holm", "verdict"]
CONTRASTS += ["differences", "n_items", "item_variance", "interaction_variance"]
CELLS = ["task", "model", "method", "side", "budget", "metric", "mean", "low", "high"]
METRICS = {"f1": Metric("F1", "share", "higher", 0, 1)}
TASKS = dict.fromkeys(("asr", "change"), SimpleNamespace(METRICS=METRICS, PRIMARY=("f1",)))
LONG_REASON = "ValueError: slab encoder.1.conv1: the loss became nan at step 1234 of epoch 7, in the sparse phase"


class Page(HTMLParser):
    """Elements with their attributes, and the text by element."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.texts: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(text)
        self.text = " ".join(" ".join(text for tag, text in self.texts if tag != "style").split())

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def of(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]


def contrast(method, reference, verdict, effect=0.05, **changed) -> dict:
    row = {"task": "change", "model": "small", "method": method, "side": "in", "budget": "0.20"}
    row |= {"reference": reference, "reference_side": "none", "metric": "f1", "unit": "share", "effect": effect}
    row |= {"low": effect - 0.02, "high": effect + 0.03, "n_seeds": 3, "variation": "seeds and items"}
    row |= {"p": 0.01, "p_holm": 0.02, "verdict": verdict, "differences": f"{effect - 0.01} {effect} {effect + 0.01}"}
    return row | {"n_items": 60, "item_variance": 1e-4, "interaction_variance": 1e-5} | changed


def grid_rows(tasks) -> list[dict]:
    return [
        {"task": task, "model": "small", "method": method, "side": side, "budget": budget, "seed": seed}
        | {"status": "done", "why": ""}
        for task in tasks
        for method, side, budget in (("dense", "none", "1.00"), ("sp_in", "in", "0.20"))
        for seed in (0, 1, 2)
    ]


@pytest.fixture
def results(tmp_path):
    """A folder of results with a summary; figures and tables by name, each table with its name as its cell."""

    def make(
        tasks=("change",),
        figures=(),
        tables=(),
        contrasts=(),
        grid=None,
        description="A study.",
        device="cpu",
        data_of=None,
    ):
        for folder in ("summary", "figures", "tables"):
            (tmp_path / folder).mkdir()
        data = {"pack": "aerial_scenes", "size": 64, "path": None}
        study = {"name": "demo", "description": description, "budgets": ["0.20"], "seeds": [0, 1, 2]}
        study |= {"methods": {"dense": {}, "sp_in": {}}, "tasks": {task: {"data": data} for task in tasks}}
        summary = tmp_path / "summary"
        (summary / "study.json").write_text(json.dumps(study))
        grid = pd.DataFrame(grid_rows(tasks) if grid is None else grid)
        grid.to_csv(summary / "grid.csv", index=False)
        done = grid[grid["status"] == "done"].drop(columns=["status", "why"])
        done.assign(device=device, seconds=1.0).to_csv(summary / "timing.csv", index=False)
        pd.DataFrame(list(contrasts), columns=CONTRASTS).to_csv(summary / "contrasts.csv", index=False)
        cells = [
            dict(zip(CELLS, (task, "small", "dense", "none", "1.00", "f1", 0.75, 0.7, 0.8), strict=True))
            for task in tasks
        ]
        pd.DataFrame(cells, columns=CELLS).to_csv(summary / "cells.csv", index=False)
        (summary / "data.json").write_text(json.dumps(data_of or {}))
        for name in figures:
            (tmp_path / "figures" / f"{name}.png").write_bytes(PNG)
        for name in tables:
            (tmp_path / "tables" / f"{name}.md").write_text(f"| a |\n|---|\n| cell of {name} |\n\ncaption of {name}\n")
        return tmp_path

    return make


@pytest.fixture
def texts(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("texts")
    for kind in (*FIGURES, *DIAGNOSTIC_FIGURES, *OF_TASKS, "headline", "coverage"):
        (folder / f"{kind}.rst").write_text(f"What {kind} shows.\n")
    deviations = folder / "deviations.md"
    deviations.write_text("| notebook | bbnet |\n|---|---|\n| one | another |\n")
    return folder, deviations


@pytest.fixture
def page(texts):
    return lambda results: Page(render(results, *texts, TASKS))


ALL_FIGURES = [f"change-small-{kind}" for kind in FIGURES if kind != "panels"]
ALL_FIGURES += ["change-small-headline", "change-small-panels-sp_in-b0.20", "change-small-panels-sp_in-b0.50"]
ALL_TABLES = [f"change-small-{kind}" for kind in TABLES]


# One file.


def test_the_page_needs_no_other_file(page, results):
    found = page(results(figures=[*ALL_FIGURES, "coverage"], tables=[*ALL_TABLES, "methods"]))
    for tag, attributes in found.elements:
        for name in ("src", "href", "srcset", "data", "action"):
            if name in attributes:
                assert attributes[name].startswith(("data:", "#")), (tag, attributes[name][:60])
        assert tag not in ("link", "script", "iframe", "object", "embed")
    assert all(image["src"].startswith("data:image/png;base64,") for image in found.of("img"))
    style = " ".join(text for tag, text in found.texts if tag == "style")
    assert "url(" not in style and "@import" not in style


def test_links_lead_to_places_on_the_page(page, results):
    found = page(results(tasks=("asr", "change")))
    places = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(places) == len(set(places))
    assert {link["href"] for link in found.of("a")} == {f"#{place}" for place in places}
    assert {"asr-small", "change-small"} <= set(places)


def test_the_shipped_texts_make_a_whole_page(results):
    root = Path(__file__).parents[2]
    found = Page(render(results(figures=ALL_FIGURES), root / "report", root / "docs" / "deviations.md", TASKS))
    assert len(found.of("img")) == len(ALL_FIGURES)
    assert not [link for link in found.of("a") if not link["href"].startswith("#")]


# All that there is.


def test_every_figure_and_table_is_there_once(page, results):
    figures, tables = [*ALL_FIGURES, "coverage"], [*ALL_TABLES, "methods"]
    found = page(results(figures=figures, tables=tables))
    assert sorted(image["alt"].split(":")[0] for image in found.of("img")) == sorted(figures)
    for image in found.of("img"):
        name, caption = image["alt"].split(": ")
        kind = name.removeprefix("change-small-").split("-")[0]
        assert caption == f"What {kind} shows."
        assert base64.b64decode(image["src"].removeprefix("data:image/png;base64,")) == PNG
    for name in tables:
        assert found.text.count(f"cell of {name} ") == 1
        assert found.text.count(f"caption of {name} ") == 1
    assert "What goes on inside" not in found.text


def test_every_kind_of_figure_has_a_place():
    """Each module of plots that draws, and the panels of the tasks."""
    modules = (Path(__file__).parents[2] / "bbnet" / "plots").glob("*.py")
    drawn = {module.stem for module in modules if "\ndef draw(" in module.read_text()}
    assert {*FIGURES, *DIAGNOSTIC_FIGURES, *OF_TASKS, "headline", "coverage"} == drawn | {"panels"}


def test_diagnostics_follow_the_figures_of_their_task_and_model_where_there_are_any(page, results):
    figures = [f"change-small-{name}" for name in ("pareto", *DIAGNOSTIC_FIGURES)]
    found = page(results(figures=figures, tables=["change-small-verdicts"]))
    assert [image["alt"].split(":")[0] for image in found.of("img")] == figures
    assert found.text.index("What goes on inside change, small") < found.text.index("cell of change-small-verdicts")


def test_figures_stand_in_the_section_of_their_task_and_model(page, results):
    found = page(results(tasks=("asr", "change"), figures=["asr-small-pareto", "change-small-pareto", "coverage"]))
    order = [
        attributes.get("id") or attributes["alt"].split(":")[0]
        for tag, attributes in found.elements
        if tag in ("h2", "img")
    ]
    assert order == [
        *("ran", "coverage", "asr-small", "asr-small-pareto", "change-small", "change-small-pareto"),
        *("missing", "deviations"),
    ]


@pytest.mark.parametrize(("figure", "table"), [SCALING, SENSITIVITY])
def test_all_models_of_a_task_are_shown_before_each_of_them(page, results, figure, table):
    figures = [f"change-{figure}", "asr-small-pareto", "change-small-pareto"]
    found = page(results(tasks=("asr", "change"), figures=figures, tables=[f"change-{table}"]))
    order = [
        attributes.get("id") or attributes["alt"].split(":")[0]
        for tag, attributes in found.elements
        if tag in ("h2", "img")
    ]
    assert order[:4] == ["ran", f"{figure}-change", f"change-{figure}", "asr-small"]
    assert found.text.count(f"caption of change-{table} ") == 1


def test_without_figures_and_tables_there_is_still_a_page(page, results):
    found = page(results())
    assert found.of("img") == []
    assert "6 of 6 runs" in found.text
    assert "Data: pack aerial_scenes, size 64. Nothing was left out or converted." in found.text
    assert "None: all 6 runs are done." in found.text


# Runs that are not done.


def spoilt_grid() -> list[dict]:
    rows = grid_rows(("change",))
    rows[3] |= {"status": "failed", "why": "the loss became nan"}
    rows[4] |= {"status": "missing", "why": "not trained"}
    rows[5] |= {"status": "stale", "why": "other code"}
    return rows


def test_missing_cells_are_named_with_their_reasons(page, results):
    found = page(results(grid=spoilt_grid()))
    assert "3 of 6 runs" in found.text
    cells = [text for tag, text in found.texts if tag == "td"]
    for row in spoilt_grid()[3:]:
        for value in (row["status"], row["why"]):
            assert value in cells
    assert cells.count("0.20") >= 3
    assert "Incomplete: 1 failed, 1 missing, 1 stale of 6 runs." in found.text
    assert [attributes for attributes in found.of("p") if attributes.get("class") == "incomplete"]


def test_a_complete_study_has_no_note(page, results):
    assert "ncomplete" not in page(results()).text


def test_a_long_reason_is_not_cut(page, results):
    grid = spoilt_grid()
    grid[3]["why"] = LONG_REASON
    assert LONG_REASON in page(results(grid=grid)).text


def test_hundreds_of_missing_cells_are_all_named(page, results):
    rows = [spoilt_grid()[4] | {"seed": seed} for seed in range(1000, 1300)]
    cells = {text for tag, text in page(results(grid=[*grid_rows(("change",)), *rows])).texts if tag == "td"}
    assert {str(seed) for seed in range(1000, 1300)} <= cells


# Findings.


DENSE_CELL = pd.DataFrame([{"method": "dense", "metric": "f1", "mean": 0.75, "low": 0.7, "high": 0.8}])


def findings_of(rows: list[dict], family: int = 3) -> str:
    (text,) = findings(DENSE_CELL, pd.DataFrame(rows), METRICS, family)
    return text


def test_findings_by_hand():
    rows = [
        contrast("sp_in", "dense", "worse", -0.05),
        contrast("rigl", "dense", "none", -0.01),
        contrast("sp_in", "magnitude", "better", 0.125),
    ]
    text = findings_of(rows)
    assert text.startswith(
        "F1 of dense is 0.750 [0.700, 0.800]. "
        "Of 2 other cells, 1 differs significantly from it (p < .05 after Holm's method over all contrasts of the "
        "task): "
        "sp_in at budget .20 is worse (-0.050 [-0.070, -0.020]). "
        "Between methods, 1 of 1 differences is significant: "
        "sp_in at budget .20 is better than magnitude (+0.125 [+0.105, +0.155]). "
        "With 3 seeds and 60 test items, a difference of 0."
    )
    assert text.endswith("would be significant with a probability of 80 %.")


def test_what_is_not_significant_has_its_range():
    text = findings_of([contrast("sp_in", "dense", "none", -0.05), contrast("rigl", "dense", "none", 0.01)])
    assert "None of the 2 other cells differs significantly from it" in text
    assert "between -0.050 (sp_in at budget .20) and +0.010 (rigl at budget .20)." in text
    alone = findings_of([contrast("sp_in", "dense", "none", -0.05), contrast("sp_in", "rigl", "none")])
    assert "sp_in at budget .20 does not differ significantly from it" in alone
    assert "-0.050 [-0.070, -0.020]. Between methods, none of 1 differences is significant." in alone


def test_one_seed_accounts_for_items_alone_and_too_few_seeds_see_nothing():
    one = [contrast("sp_in", "dense", "none", n_seeds=1, variation="items", differences="0.05")]
    text = "The intervals of {} differences are from one seed and account only for the choice of test items."
    assert findings_of(one).endswith(text.format("all"))
    assert text.format("some") in findings_of([*one, contrast("rigl", "dense", "none")])
    noisy = [contrast("sp_in", "dense", "none", n_seeds=2, differences="-0.4 0.5")]
    assert "With 2 seeds and 60 test items, no difference would be significant" in findings_of(noisy)


def test_findings_are_those_of_the_task_and_model(page, results):
    rows = [contrast("sp_in", "dense", "worse", -0.05), contrast("sp_in", "dense", "none", task="asr")]
    text = page(results(tasks=("asr", "change"), contrasts=rows)).text
    assert text.count("sp_in at budget .20 is worse (") == 1
    assert text.count("sp_in at budget .20 does not differ significantly") == 1
    assert text.index("does not differ significantly") < text.index("is worse (")


def of_two_models(results, contrasts, named="small", **files) -> Path:
    """Results of the models small and models, with small as the baseline unless it is not `named`."""
    grid = [row | {"model": model} for model in ("small", "models") for row in grid_rows(("change",))]
    folder = results(grid=grid, contrasts=[contrast("sp_in", "dense", "worse", -0.05)], **files)
    path = folder / "summary/study.json"
    study = json.loads(path.read_text())
    study["tasks"]["change"] |= {"models": {"small": {}, "models": {}}, "baseline": named}
    path.write_text(json.dumps(study))
    rows = pd.DataFrame(contrasts, columns=[*CONTRASTS, "reference_model"])
    rows.to_csv(folder / "summary/model_contrasts.csv", index=False)
    return folder


def model_contrast(verdict, effect=-0.05, **changed) -> dict:
    method = changed.pop("method", "sp_in")
    return contrast(method, method, verdict, effect, model="models", reference_model="small") | changed


def test_what_is_said_of_a_dense_network_of_equal_cost(page, results):
    of_small = {"model": "small", "reference": "dense", "reference_model": "models"}
    rows = [model_contrast("none", 0.02, **of_small), model_contrast("better", 0.05, budget="0.50", **of_small)]
    text = page(of_two_models(results, rows)).text
    told = "the dense network models of as many FLOPs"
    assert f"F1: small, sp_in at budget .20 does not differ significantly from {told}: +0.020 [+0.000, +0.050]." in text
    assert f"small, sp_in at budget .50 is better than {told}: +0.050 [+0.030, +0.080]." in text
    assert "cells of other models" not in text


def test_what_is_said_of_a_model_beside_another_one_than_the_baseline(page, results):
    rows = [model_contrast("worse"), model_contrast("better", 0.05, reference_model="other")]
    text = page(of_two_models(results, rows)).text
    assert "models, sp_in at budget .20 does not" not in text
    told = "models, sp_in at budget .20 is better than other with the same method and budget: +0.050 [+0.030, +0.080]."
    assert told in text and "is worse (-0.050 [-0.070, -0.020])" in text


def test_models_with_a_baseline_have_a_section_with_findings_figure_and_table(page, results):
    rows = [model_contrast("worse"), model_contrast("none", -0.01, method="rigl")]
    figures, tables = ["change-models", "change-models-pareto"], ["change-models", "change-models-results"]
    found = page(of_two_models(results, rows, figures=figures, tables=tables))
    order = [
        attributes.get("id") or attributes["alt"].split(":")[0]
        for tag, attributes in found.elements
        if tag in ("h2", "img")
    ]
    of_models = ["change-models", "change-models-pareto"]
    assert order == ["ran", "models-change", "change-models", "change-small", *of_models, "missing", "deviations"]
    assert sorted(image["alt"] for image in found.of("img")) == [
        "change-models-pareto: What pareto shows.",
        "change-models: What models shows.",
    ]
    assert (
        "F1: Of 2 cells of other models, 1 differs significantly from small with the same method and budget (p < .05 "
        "after Holm's method over all contrasts of the task): models, sp_in at budget .20 is worse (-0.050 [-0.070, "
        "-0.020]). With 3 seeds and 60 test items, a difference of 0."
    ) in found.text
    for name in tables:
        assert found.text.count(f"cell of {name} ") == 1
    places = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(places) == len(set(places))


def test_the_contrasts_of_models_count_among_those_of_the_task(page, results):
    """The difference that would have been detected is larger in a larger family."""
    of_methods = [contrast("sp_in", "dense", "worse", -0.05)]
    (alone,) = findings(DENSE_CELL, pd.DataFrame(of_methods), METRICS, 1)
    (together,) = findings(DENSE_CELL, pd.DataFrame(of_methods), METRICS, 41)
    text = page(of_two_models(results, [model_contrast("none")] * 40)).text
    assert alone.split("items, ")[-1] not in text
    assert together.split("items, ")[-1] in text


def test_without_a_baseline_a_page_has_no_section_of_models_whatever_lies_there(page, results):
    found = page(of_two_models(results, [model_contrast("worse")], None, figures=["change-models"]))
    assert "models-change" not in [attributes.get("id") for _, attributes in found.elements]
    assert found.of("img") == []


def test_without_contrasts_it_says_so(page, results):
    assert "There is nothing to compare with." in page(results()).text


# Data.


def test_what_became_of_the_data_is_told(page, results):
    sizes = {name: {"types": 2000 + place, "occurrences": 9} for place, name in enumerate(("head", "mid", "tail"))}
    told = {
        "skipped": {"undecodable": 3, "too_short": 1},
        "resampled": {"low_rate": 2},
        "converted": {"exif_orientation": 4, "cmyk": 1},
        "divided": ["verification"],
        "buckets": {"rule": "up to the median", "sizes": sizes},
    }
    text = page(results(data_of={"change": told})).text
    assert "Left out: 3 (undecodable), 1 (too short). Resampled: 2 (low rate)." in text
    assert "Converted: 4 (exif orientation), 1 (cmyk)." in text
    assert "Divided into dev and test here, because the pack has no test: verification." in text
    assert "by the rule 'up to the median': head 2,000, mid 2,001, tail 2,002." in text
    assert prepared_remarks({"skipped": {}, "buckets": told["buckets"] | {"rule": "published"}}) == [
        "Types in the buckets of the training data, by the published rule: head 2,000, mid 2,001, tail 2,002."
    ]
    assert prepared_remarks({"skipped": {}, "buckets": told["buckets"] | {"rule": "balanced"}}) == [
        "The training data are balanced, so no type is in a bucket."
    ]


# Escapes.


def test_texts_of_a_study_stay_texts(page, results, texts):
    grid = spoilt_grid()
    grid[3]["why"] = "<i>a</i> & \"b\" 'c'"
    (texts[0] / "pareto.rst").write_text(NASTY)
    found = page(results(description=NASTY, device="<u>GPU</u> & co", grid=grid, figures=["change-small-pareto"]))
    assert found.of("script") == found.of("b") == found.of("i") == found.of("u") == []
    assert NASTY in found.text
    assert "<u>GPU</u> & co" in found.text
    assert "<i>a</i> & \"b\" 'c'" in found.text
    (image,) = found.of("img")
    assert image["alt"] == f"change-small-pareto: {NASTY}"


def test_texts_of_tables_stay_texts(page, results):
    folder = results(tables=["methods"])
    (folder / "tables" / "methods.md").write_text(f"| a |\n|---|\n| {NASTY} |\n\nTime on <u>GPU</u> & co.\n")
    found = page(folder)
    assert found.of("script") == found.of("b") == found.of("u") == []
    assert "<b>bold</b> &" in found.text


def test_tables_are_tables(page, results):
    found = page(results(tables=ALL_TABLES))
    # One of each, and that of the deviations.
    assert len(found.of("table")) == len(ALL_TABLES) + 1
