"""Methods with binary weights from the study to the packed file; `bbnet verify` and `bbnet weights` know them."""

import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from bbnet.cli import main
from tests.workflow.conftest import MICRO, edit_json, recorded, verify, vouch_again

pytestmark = pytest.mark.xdist_group("workflow")
RUNS = "results/micro/runs/classification/tiny"
TERNARY = f"{RUNS}/ternary/b0.50/s0"


@pytest.fixture(scope="module")
def trained(empty_project, tmp_path_factory):
    project = empty_project.copy(tmp_path_factory.mktemp("binary"))
    study = MICRO | {
        "methods": {
            "dense": {"algorithm": "dense"},
            "binary": {"algorithm": "dense", "weights": "binary"},
            "ternary": {"algorithm": "magnitude", "weights": "binary"},
        },
        "tasks": {
            "classification": {
                "data": {"pack": "rendered_objects", "train": 24, "val": 10, "test": 10},
                "models": {"tiny": {"architecture": "cifar_resnet", "depth": 8, "width": 8}},
                "training": {"epochs": 3, "warm_up_epochs": 1, "batch_size": 8, "learning_rate": 0.003},
            }
        },
    }
    project.write_study(study)
    done = project.snakemake("results/micro/summary/runs.csv")
    assert done.returncode == 0, done.stdout[-3000:]
    return project


@pytest.fixture
def root(trained, tmp_path, monkeypatch):
    folder = trained.copy(tmp_path / "project").root
    monkeypatch.chdir(folder)
    return folder


def test_runs_are_verified_shown_and_packed_to_the_byte(root, capsys):
    main(["verify", *(f"{RUNS}/{run}/s0" for run in ("dense/b1.00", "binary/b1.00", "ternary/b0.50"))])
    assert capsys.readouterr().out.count("matches its record") == 3
    for run in (f"{RUNS}/binary/b1.00/s0", TERNARY):
        main(["weights", run])
        main(["pack", run, "packed.safetensors"])
        main(["unpack", "packed.safetensors", "plain.safetensors"])
        assert (root / "plain.safetensors").read_bytes() == (root / run / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("file", "factor", "named"),
    [
        ("model", -1, "1 binary weights are not"),
        ("model", 0.5, "1 binary weights are not"),
        ("latent", -1, "1 binary weights are not"),
        ("latent", 1e6, "beyond"),
    ],
)
def test_a_weight_that_is_not_its_sign_is_found_though_the_hashes_fit(root, capsys, file, factor, named):
    run = root / TERNARY
    path = run / f"{file}.safetensors"
    layer = next(iter(recorded(run)["half_ranges"]))
    tensors = load_file(path)
    with safe_open(path, "np") as opened:
        metadata = opened.metadata()
    weight = tensors[f"{layer}.weight"].ravel()
    place = (weight != 0).argmax()
    weight[place] *= factor
    tensors[f"{layer}.weight"] = weight.reshape(tensors[f"{layer}.weight"].shape)
    save_file(tensors, path, metadata)
    vouch_again(run)
    said = verify(capsys, run)
    assert f"layer {layer}: " in said and named in said


def test_a_record_without_its_binary_layers_or_with_another_h_is_named(root, capsys):
    run = root / TERNARY
    first, *others = recorded(run)["half_ranges"]
    edit_json(run / "record.json", lambda record: record["half_ranges"].update({first: 0.5}))
    assert f"its binary layers, or their h, are not the recorded ones: {first}\n" in verify(capsys, run)
    edit_json(run / "record.json", lambda record: record.update(half_ranges={}))
    said = verify(capsys, run)
    assert "it has no binary layer, though its method has binary weights" in said
    assert f"are not the recorded ones: {', '.join(sorted([first, *others]))}\n" in said
