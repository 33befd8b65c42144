"""What the README shows is what the code does."""

import re
from decimal import Decimal
from pathlib import Path

import pytest
import torch

from bbnet.sparsity.algorithms import SlabView

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
