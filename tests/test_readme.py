"""What README and tutorial show is what the code does."""

import re
from decimal import Decimal
from pathlib import Path

import pandas as pd
import pytest
import torch

from bbnet.sparsity.algorithms import SlabView
from tests.workflow.conftest import build_house

README = (Path(__file__).parents[1] / "README.md").read_text()
LOOP, METHOD = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_loop_trains_to_the_budget(capsys):
    namespace: dict = {}
    exec(compile(LOOP, "README.md", "exec"), namespace)
    mask = namespace["sparsifier"].masks()["0"]
    assert int(mask.sum()) == 32 * 256 // 4
    assert bool((namespace["model"][0].weight[~mask] == 0).all())
    assert float(capsys.readouterr().out.split("(")[1].rstrip(")\n")) == pytest.approx(0.25)
    accuracy = (namespace["model"](namespace["inputs"]).argmax(1) == namespace["inputs"][:, :8].abs().argmax(1)).float()
    assert accuracy.mean() > 0.5, "chance is 1/8"


def test_the_loop_is_the_one_of_the_design():
    steps = LOOP.split("sparsifier = bbnet.sparsify(", 1)[1].split("print")[0]
    assert len([line for line in steps.splitlines() if line.strip()]) == 5, "the call and four lines of loop"


def test_the_method_shown_keeps_its_budget():
    namespace: dict = {"__name__": "shown"}
    exec(compile(METHOD, "README.md", "exec"), namespace)
    scores = torch.rand(12, 40, generator=torch.Generator().manual_seed(0))
    view = SlabView("slab", "in", (), scores, scores > -1, torch.ones(12), seed=0, step=0, progress=0.0)
    (mask,) = namespace["Even"](side="in").masks([view], Decimal("0.30"))
    assert mask.sum(1).tolist() == [12] * 12


def test_every_make_target_named_exists():
    makefile = (Path(__file__).parents[1] / "Makefile").read_text()
    for target in re.findall(r"\bmake ([a-z][a-z-]*)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


# The tutorial.

ROOT = Path(__file__).parents[1]
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text()
FILES = dict(re.findall(r"`(\S+)`:\n\n```(?:python|yaml)\n(.*?)```", TUTORIAL, re.DOTALL))


@pytest.fixture
def clone(tmp_path):
    """The project with the files of the tutorial."""
    clone = build_house(tmp_path / "clone")
    for name, text in FILES.items():
        path = clone.root / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    (clone.root / "bbnet/tasks/largest/__init__.py").touch()
    (method,) = re.findall(r"^    (noisy_in: .*)$", TUTORIAL, re.MULTILINE)
    study = clone.root / "studies/largest.yaml"
    study.write_text(study.read_text().replace("methods:", f"methods:\n  {method}"))
    return clone


def test_the_tutorial_shows_a_method_and_a_task_whole():
    task = [f"bbnet/tasks/largest/{name}.py" for name in ("settings", "metrics", "data", "task")]
    method = [f"bbnet/sparsity/{folder}/noisy.py" for folder in ("algorithms", "parameters")]
    assert {*FILES} == {*task, *method, "studies/largest.yaml"}


def test_the_study_of_the_tutorial_is_planned(clone):
    planned = clone.planned("--config", "study=largest")
    assert (planned["fetch"], planned["prepare"], planned["warm_up"], planned["train"]) == (1, 1, 2, 2 + 3 * 4)


@pytest.mark.thorough
def test_the_study_of_the_tutorial_runs_and_its_method_keeps_the_budget(clone):
    result = clone.snakemake("--config", "study=largest")
    assert result.returncode == 0, result.stdout[-3000:]
    assert (clone.root / "results/largest/report.html").is_file()
    cells = pd.read_csv(clone.root / "results/largest/summary/cells.csv", dtype={"budget": str})
    means = cells[cells["budget"] == "0.25"].set_index(["method", "metric"])["mean"]
    assert means["noisy_in", "density"] == 0.25
    assert means["noisy_in", "accuracy"] > 0.5, "chance is 1/8"
