"""A model that starts from the dense run of another task: the DAG trains that first, and everything knows the edge."""

import json
import shutil

import pytest
from safetensors.numpy import load_file

from bbnet.cli import main

pytestmark = [pytest.mark.xdist_group("workflow"), pytest.mark.thorough]
TRAINING = {"epochs": 3, "warm_up_epochs": 1, "batch_size": 8, "learning_rate": 0.003}
SIZES = {"widths": [8, 16], "blocks": [1, 1]}
FACE = {"architecture": "small", **SIZES}
# The model begun is not changed by its training, so that its parameters show what it started from.
TASKS = {
    "classification": {
        "data": {"pack": "rendered_objects", "train": 24, "val": 10, "test": 10},
        "models": {"first": {"architecture": "bottleneck_resnet", **SIZES}},
        "training": TRAINING,
    },
    "face": {
        "data": {
            **{"pack": "rendered_faces", "size": 24, "identities": 4, "train": 24},
            **{"val": 2, "test": 2, "gallery": 2, "probes": 1, "strangers": 1},
        },
        "size": 24,
        "models": {"begun": FACE | {"weights": {"run": "classification/first"}, "learning_rate": 1e-30}},
        "training": TRAINING,
    },
}
SUMMARY = "results/micro/summary/runs.csv"
SOURCE, BEGUN = "runs/classification/first/dense/b1.00/s0", "runs/face/begun/dense/b1.00/s0"


@pytest.fixture
def pretraining(empty_project, study, tmp_path):
    """The study, with the dense runs alone on the source."""
    project = empty_project.copy(tmp_path / "project")
    study["tasks"] = json.loads(json.dumps(TASKS))
    study["only"] = {"classification": {"first": ["dense"]}}
    project.write_study(study)
    return project, study


def test_the_source_is_trained_first_and_its_selected_weights_are_what_the_model_starts_from(
    pretraining, capsys, monkeypatch
):
    project, study = pretraining
    first = project.snakemake(SUMMARY)
    assert first.returncode == 0, first.stdout[-3000:]
    said = first.stdout
    results = project.root / "results/micro"
    assert said.index("train classification first dense") < said.index("warm up face begun")
    record = json.loads((results / BEGUN / "record.json").read_text())
    source, own = (load_file(results / run / "model.safetensors") for run in (SOURCE, BEGUN))
    loaded = record["started_from"]["loaded"]
    parameters = [name for name in loaded if not name.rpartition(".")[2].startswith(("running_", "num_batches"))]
    assert len(parameters) > 10
    assert all((own[name] == source[name]).all() for name in parameters)
    elsewhere = ["head.bias", "head.weight", "mean", "sd"]
    assert record["started_from"]["unused"] == record["started_from"]["untouched"] == elsewhere
    assert sorted([*loaded, *elsewhere]) == sorted(own)
    of_source = json.loads((results / SOURCE / "record.json").read_text())
    assert record["config"]["source"]["fingerprint"] == of_source["fingerprint"]
    assert record["started_from"]["weights"] == of_source["files"]["model.safetensors"]
    log = (results / "logs/warm_up/face-begun-s0.log").read_text()
    assert f"started from results/micro/{SOURCE}/model.safetensors: {len(loaded)} tensors loaded" in log
    assert "4 tensors of the model keep their first values: head.bias, head.weight, mean, sd" in log

    assert project.planned(SUMMARY) == {}
    monkeypatch.chdir(project.root)
    main(["verify", f"results/micro/{SOURCE}", f"results/micro/{BEGUN}"])
    assert "missing" not in capsys.readouterr().out
    main(["status"])
    assert "stale: trained with another" not in capsys.readouterr().out
    main(["plan", "--device", "cpu"])
    assert "face/begun starts from the dense run of classification/first" in capsys.readouterr().out

    # Another source: what starts from it is trained again, and until then what exists of it is stale.
    study["tasks"]["classification"]["training"]["learning_rate"] = 0.004
    project.write_study(study)
    assert project.planned(SUMMARY) == {"warm_up": 2, "train": 1 + len(study["methods"]), "collect": 1}
    main(["status"])
    assert "stale: trained with another" in capsys.readouterr().out
    study["tasks"]["classification"]["training"]["learning_rate"] = 0.003
    study["tasks"]["face"]["training"]["learning_rate"] = 0.004
    project.write_study(study)
    assert project.planned(SUMMARY) == {}  # begun has a rate of its own
    done = project.snakemake("tables", "--config", "cells=done")
    assert done.returncode == 0, done.stdout[-3000:]

    # A source that is forged is named by verify, and refused by a new warm-up.
    (results / SOURCE / "model.safetensors").write_bytes((results / BEGUN / "model.safetensors").read_bytes())
    with pytest.raises(SystemExit):
        main(["verify", f"results/micro/{BEGUN}"])
    assert "is not what this run started from: its hash differs" in capsys.readouterr().out
    shutil.rmtree(results / "warm_up/face")
    refused = project.snakemake("results/micro/warm_up/face/begun/s0/checkpoint.pt", "--rerun-triggers", "params")
    assert refused.returncode != 0
    assert "is not the file that the run wrote, by its record.json" in refused.stdout


def test_a_source_of_which_nothing_fits_is_refused_by_the_warm_up(pretraining):
    project, study = pretraining
    study["tasks"]["classification"]["models"]["first"] = {"architecture": "cifar_resnet", "depth": 8, "width": 6}
    project.write_study(study)
    refused = project.snakemake(SUMMARY)
    assert refused.returncode != 0
    assert "model.safetensors: no parameter has name and shape of one of the model" in refused.stdout
    assert not (project.root / "results/micro/runs/face/begun").exists()
