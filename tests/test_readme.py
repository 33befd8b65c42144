"""What README and tutorial show is what the code does."""

import re
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

import bbnet
from bbnet.binary.packing import pack, unpack
from bbnet.diagnostics import checks
from bbnet.sparsity.algorithms import SlabView
from bbnet.tasks.classification.model import Classifier
from bbnet.tasks.classification.settings import CifarResNet
from bbnet.tasks.task import Task
from tests.workflow.conftest import build_project

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
LOOP, METHOD = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_loop_trains_to_the_budget(capsys):
    namespace: dict = {}
    exec(compile(LOOP, "README.md", "exec"), namespace)
    mask = namespace["sparsifier"].masks()["0"]
    assert int(mask.sum()) == 32 * 256 // 4
    assert bool((namespace["model"][0].weight[~mask] == 0).all())
    assert float(capsys.readouterr().out.split("tensor(")[1].rstrip(")\n")) == pytest.approx(0.25)
    accuracy = (namespace["model"](namespace["inputs"]).argmax(1) == namespace["inputs"][:, :8].abs().argmax(1)).float()
    assert accuracy.mean() > 0.5, "chance is 1/8"


def test_the_loop_is_the_one_of_the_design():
    steps = LOOP.split("sparsifier = bbnet.sparsify(", 1)[1].split("print")[0]
    assert len([line for line in steps.splitlines() if line.strip()]) == 5, "the call and four lines of loop"


def test_the_method_shown_keeps_its_budget():
    namespace: dict = {"__name__": "shown"}
    exec(compile(METHOD, "README.md", "exec"), namespace)
    scores = torch.rand(12, 40, generator=torch.Generator().manual_seed(0))
    view = SlabView("slab", "in", (), lambda: scores, scores > -1, torch.ones(12), seed=0, step=0, progress=0.0)
    (mask,) = namespace["Even"](side="in").masks([view], Decimal("0.30"))
    assert mask.sum(1).tolist() == [12] * 12


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/artifact.md"])
def test_every_make_target_named_exists(page):
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:`|^    )make ([a-z][a-z-]*)", (ROOT / page).read_text(), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_loop_of_binary_weights_trains_resumes_and_stays_ternary(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs/binary.md").read_text(encoding="utf-8")
    loop, packing, _ = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    namespace: dict = {}
    exec(compile(loop + packing, "binary.md", "exec"), namespace)
    inputs = namespace["inputs"]
    assert torch.equal(namespace["plain"].eval()(inputs), namespace["model"].eval()(inputs))
    weight = namespace["model"][3].weight
    assert len(weight.unique()) == 3
    assert int((weight == 0).sum()) == 256 * 256 // 2
    binary = (namespace["model"](namespace["inputs"]).argmax(1) == namespace["labels"]).float().mean()
    assert binary > 0.5, "chance is 1/8"
    uninterrupted: dict = {}
    exec(compile(loop.replace("step == 600", "False"), "binary.md", "exec"), uninterrupted)
    assert torch.equal(weight, uninterrupted["model"][3].weight)


def test_the_packed_network_of_a_run_is_loaded_as_the_page_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    *_, loading = re.findall(r"```python\n(.*?)```", (ROOT / "docs/binary.md").read_text(encoding="utf-8"), re.DOTALL)
    file = Path(re.findall(r'"(results/.*?)"', loading)[0])
    file.parent.mkdir(parents=True)
    settings = CifarResNet(architecture="cifar_resnet", depth=20, stem_stride=2)
    network = Classifier(settings, 10, mean=[120.0] * 3, sd=[60.0] * 3).eval()
    pack(network.state_dict(), {}, file)
    images = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0)).float()
    namespace = {"images": images, "unpack": unpack}
    exec(compile(loading, "binary.md", "exec"), namespace)
    assert torch.equal(namespace["scores"], network(images))


def test_the_examples_of_the_diagnostics_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "diagnostics.md").read_text(encoding="utf-8")
    for example in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(example, "diagnostics.md", "exec"), {})
    assert "Gradient flow in 16 of 160 steps: 4 tensors watched" in capsys.readouterr().out
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {"gradient_flow.csv", "gradient_flow.json", "probe", "features.gif"}


def test_the_columns_of_the_diagnostics_are_those_of_the_code():
    page = (ROOT / "docs" / "diagnostics.md").read_text(encoding="utf-8")
    model = torch.nn.Linear(2, 2)
    columns = bbnet.watch(model, torch.optim.SGD(model.parameters(), lr=0.1)).rows()[0]
    for name in [*columns, *checks.ORDER]:
        assert f"`{name}`" in page or f"| {name} |" in page, name


# The tutorial.

TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text()
FILES = dict(re.findall(r"`(\S+)`:\n\n```(?:python|yaml)\n(.*?)```", TUTORIAL, re.DOTALL))


@pytest.fixture
def clone(tmp_path):
    """The project with the files of the tutorial."""
    clone = build_project(tmp_path / "clone")
    for name, text in FILES.items():
        path = clone.root / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    (clone.root / "bbnet/tasks/largest/__init__.py").touch()
    (method,) = re.findall(r"^  (noisy_in: .*)$", TUTORIAL, re.MULTILINE)
    study = clone.root / "studies/largest.yaml"
    study.write_text(study.read_text().replace("methods:", f"methods:\n  {method}"))
    return clone


def test_the_tutorial_shows_a_method_and_a_task_whole():
    task = [f"bbnet/tasks/largest/{name}.py" for name in ("settings", "metrics", "data", "task")]
    method = [f"bbnet/sparsity/{folder}/noisy.py" for folder in ("algorithms", "parameters")]
    assert {*FILES} == {*task, *method, "studies/largest.yaml", "studies/my_pairs.yaml"}
    described = {*Task.__annotations__, *(name for name in vars(Task) if not name.startswith("_"))}
    for name in described:
        assert re.search(rf"\b{name}\b", FILES["bbnet/tasks/largest/task.py"]), name


def test_the_method_of_the_tutorial_keeps_its_budget_and_follows_its_noise():
    declared: dict = {"__name__": "declared"}
    exec(compile(FILES["bbnet/sparsity/parameters/noisy.py"], "parameters", "exec"), declared)
    imported = "from bbnet.sparsity.parameters.noisy import Parameters\n"
    method = FILES["bbnet/sparsity/algorithms/noisy.py"]
    assert imported in method
    namespace: dict = {"__name__": "shown", "Parameters": declared["Parameters"]}
    exec(compile(method.replace(imported, ""), "algorithm", "exec"), namespace)
    scores = torch.rand(12, 40, generator=torch.Generator().manual_seed(0))
    view = SlabView("slab", "in", (), lambda: scores, scores > -1, torch.ones(12), seed=1, step=0, progress=0.0)
    by_noise = {}
    for noise in (0, 100):
        (by_noise[noise],) = namespace["Noisy"](side="in", noise=noise).masks([view], Decimal("0.30"))
        assert int(by_noise[noise].sum()) == 144
    assert scores[by_noise[0]].min() > scores[~by_noise[0]].max()
    assert not torch.equal(by_noise[0], by_noise[100])


PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        linked = page.parent / name if name else page
        assert linked.is_file(), target
        headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE) if anchor else []
        anchors = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
        assert not anchor or anchor in anchors, target


def test_the_profile_that_the_tutorial_explains_has_these_lines():
    table = TUTORIAL.split("## A cluster", 1)[1]
    profile = yaml.safe_load((ROOT / "profiles/slurm/profile.yaml").read_text())
    assert set(profile) <= {*re.findall(r"[a-z-]+", table)}
    for section in ("default-resources", "set-resources"):
        for name in profile[section]:
            assert f"`{name}`" in table, name
    for name in ("jobs", "retries", "latency-wait"):
        assert f"`{name}: {profile[name]}`" in table


@pytest.mark.thorough
def test_pairs_in_the_layout_of_the_tutorial_are_prepared(clone):
    generator = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for part, shape in {"A": (32, 32, 3), "B": (32, 32, 3), "label": (32, 32)}.items():
            folder = clone.root / "my_pairs" / split / part
            folder.mkdir(parents=True)
            for number in range(8):
                pixels = generator.integers(2, size=shape, dtype=np.uint8) * 255
                Image.fromarray(pixels).save(folder / f"field_{number}.png")
    result = clone.snakemake("data", "--config", "study=my_pairs")
    assert result.returncode == 0, result.stdout[-3000:]
    assert len(list((clone.root / "data/prepared").glob("change-*.json"))) == 1


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
