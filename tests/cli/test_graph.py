"""What `bbnet graph` shows of a network, and the graph that TensorBoard reads."""

import shutil
import sys
from decimal import Decimal
from pathlib import Path

import pandas as pd
import pytest
import yaml

from bbnet.cli import main
from bbnet.study.config import Study
from bbnet.tasks import task as tasks
from bbnet.training import graph

ROOT = Path(__file__).parents[2]
MODELS = {
    "branched": {"architecture": "big_little", "widths": [4, 8], "blocks": [3, 1], "alpha": 1, "beta": 2},
    "plain": {"architecture": "cifar_resnet", "depth": 8, "width": 8},
}
STUDY = {
    "seeds": [0],
    "budgets": [0.2],
    "methods": {"dense": {"algorithm": "dense"}},
    "tasks": {
        "classification": {
            "data": {"pack": "image_folder", "path": "nowhere"},
            "size": 16,
            "slabs": "wide",
            "models": MODELS,
            "training": {"epochs": 4, "warm_up_epochs": 1, "batch_size": 4, "learning_rate": 0.01},
        }
    },
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with config.yaml and a study, without data."""
    shutil.copy(ROOT / "config.yaml", tmp_path)
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "micro.yaml").write_text(yaml.safe_dump(STUDY))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows_of(label: str) -> tuple[pd.DataFrame, object]:
    model, inputs = graph.built(Study.model_validate(STUDY), "classification", label)
    rows = graph.layer_rows(tasks.load("classification"), model, inputs, "wide", Decimal("0.2"))
    return pd.DataFrame(rows).set_index("layer"), model


@pytest.mark.parametrize("label", MODELS)
def test_the_layers_sum_to_the_network(label):
    rows, model = rows_of(label)
    total = rows.loc["(all)"]
    layers = rows.drop("(all)")
    assert total["parameters"] == layers["parameters"].sum() == sum(each.numel() for each in model.parameters())
    assert total["macs"] == layers["macs"].sum() > 0


def test_a_layer_has_its_shape_its_cost_and_its_slabs():
    rows, _ = rows_of("branched")
    reduce = rows.loc["backbone.stage1.fusion.conv1"]
    assert reduce.to_dict() == {
        "type": "Conv2d",
        "output": "1 x 4 x 8 x 8",
        "parameters": 64,
        "macs": 64 * 64,
        "side_in": "4 x 16",
        "side_out": "dense: fan 4 is below 8",
    }
    assert rows.loc["backbone.stage1.big.0.conv2", ["side_in", "side_out"]].tolist() == ["", ""]
    assert rows.loc["backbone.stage1.big.0.bn1", "macs"] == 0
    assert rows.loc["head", ["output", "parameters"]].tolist() == ["1 x 1000", 33 * 1000]


def test_the_graph_is_one_that_tensorboard_reads_and_the_table_is_beside_it(project, capsys):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for _ in range(2):
        main(["graph", "micro", "classification", "branched"])
    folder = Path("results/micro/graph/classification/branched")
    assert "MACs: multiply-adds for one sample" in capsys.readouterr().out
    assert pd.read_csv(folder / "layers.csv")["layer"].tolist()[-1] == "(all)"
    assert len(list(folder.iterdir())) == 2
    events = EventAccumulator(str(folder)).Reload()
    nodes = [node.name for node in events.Graph().node]
    for part in ("big", "little", "expand", "fusion"):
        assert any(f"stage1]/{part}" in name or f"[{part}]" in name for name in nodes), part


def test_the_table_alone_writes_nothing(project, capsys):
    main(["graph", "micro", "classification", "plain", "--layers"])
    assert "Classifier" in capsys.readouterr().out
    assert not Path("results").exists()


def test_what_is_not_in_the_study_is_named(project):
    for arguments, message in (
        (["face", "plain"], "study micro has no task 'face'; allowed: classification"),
        (
            ["classification", "other"],
            "task classification of study micro has no model 'other'; allowed: branched, plain",
        ),
    ):
        with pytest.raises(SystemExit, match=message):
            main(["graph", "micro", *arguments])


def test_a_missing_tensorboard_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    model, inputs = graph.built(Study.model_validate(STUDY), "classification", "plain")
    with pytest.raises(ValueError, match=r"is not installed \(pip install 'bbnet\[tensorboard\]'\); with --layers"):
        graph.write_graph(model, inputs, tmp_path / "graph")
    assert not (tmp_path / "graph").exists()


@pytest.mark.thorough
def test_a_published_network_can_be_traced(tmp_path):
    model = {"architecture": "bl_resnet50", "alpha": 2, "beta": 4}
    study = Study.model_validate(
        STUDY | {"tasks": {"classification": STUDY["tasks"]["classification"] | {"size": 64, "models": {"it": model}}}}
    )
    graph.write_graph(*graph.built(study, "classification", "it"), tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
