"""`bbnet weights`, `pack` and `unpack` on the folder of a run that has nothing but its record and its weights."""

import csv
import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bbnet.cli import main

H = 0.1
FILES = ("model.safetensors", "masks.safetensors", "history.csv", "refreshes.csv", "latent.safetensors")


@pytest.fixture
def run(tmp_path):
    """Writes a run with the binary layer `conv`, the float layer `fc` and a norm, and returns its folder."""

    def make(weights: str = "binary", name: str = "run", spoil: int = 0):
        folder = tmp_path / name
        folder.mkdir()
        method = {"algorithm": "magnitude"} | ({} if weights == "float" else {"weights": weights})
        cost = {"density": 1.0, "net_density": 1.0, "weights": 300}
        record = {
            "run": {"task": "t", "model": "m", "method": "ternary", "side": "in", "budget": "0.50", "seed": 0},
            "fingerprint": "0" * 16,
            "config": {"method": method},
            "inputs": {},
            "files": dict.fromkeys(FILES, "0" * 64),
            "selected_epoch": 1,
            "left_dense": {},
            "half_ranges": {} if weights == "float" else {"conv": H},
            "slabs": {},
            "cost": cost | {"flops": {"dense": 1, "sparse": 1}, "bytes": {"memory": 1, "stored": 1}},
            "precision": "float32",
            "compiled": False,
            "environment": {"python": "3", "versions": {}, "platform": "p", "host": "h"},
            "device": "cpu",
            "began": "2026-01-01",
            "seconds": 1.0,
            "interruptions": 0,
            "peak_memory_mib": 1,
            "peak_gpu_memory_mib": None,
        }
        (folder / "record.json").write_text(json.dumps(record))
        latent = np.random.default_rng(0).uniform(-H, H, (8, 4, 3, 3)).astype(np.float32)
        latent[::2, 1] = 0
        model = {"conv.weight": np.sign(latent) * np.float32(H), "fc.weight": np.ones((2, 8), np.float32)}
        model |= {"norm.weight": np.full(8, 0.3, np.float32), "norm.num_batches_tracked": np.array(5)}
        model["conv.weight"].flat[:spoil] = 0.05
        save_file(model if weights != "float" else model | {"conv.weight": latent}, folder / "model.safetensors")
        if weights != "float":
            save_file({"conv.weight": latent}, folder / "latent.safetensors", {"conv": repr(H)})
        return folder

    return make


def refused(*arguments) -> str:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert ended.value.code not in (0, 2)
    assert "\n" not in str(ended.value)
    return str(ended.value)


# weights


def test_latent_binary_and_float_weights_are_shown_and_written(run, tmp_path, capsys):
    files = {kind: tmp_path / "out" / f"weights.{kind}" for kind in ("json", "csv", "png")}
    main(
        ["weights", str(run()), "--json", str(files["json"]), "--csv", str(files["csv"]), "--figure", str(files["png"])]
    )
    shown = capsys.readouterr().out
    assert "method ternary (magnitude) has binary weights; all values are in units of h" in shown
    rows = [line.split()[:2] for line in shown.splitlines()[4:]]
    assert rows == [["conv", "latent"], ["conv", "binary"], ["fc", "float"]]
    written = json.loads(files["json"].read_text())
    assert (written["weights"], written["run"]["method"], len(written["bin_centres"])) == ("binary", "ternary", 41)
    binary = written["layers"][1]
    assert (binary["kind"], binary["at_minus"] + binary["at_plus"], binary["zero"]) == ("binary", 1 - 1 / 8, 1 / 8)
    assert sum(binary["histogram"]) == binary["weights"] == 288
    with files["csv"].open(newline="") as file:
        assert [row["kind"] for row in csv.DictReader(file)] == ["latent", "binary", "float"]
    assert files["png"].read_bytes().startswith(b"\x89PNG")
    assert not [path for path in files["png"].parent.iterdir() if "partial" in path.name]


def test_a_float_run_has_float_weights_and_no_wrong_ones(run, capsys):
    main(["weights", str(run("float"))])
    shown = capsys.readouterr().out
    assert "has float weights" in shown
    assert [line.split()[:2] for line in shown.splitlines()[4:]] == [["conv", "float"], ["fc", "float"]]


def test_a_run_that_should_be_binary_and_is_not_is_refused_after_the_table(run, capsys):
    assert "these layers have others: conv (3 of 288)" in refused("weights", run(spoil=3))
    assert "binary" in capsys.readouterr().out


def test_a_run_that_should_be_binary_and_names_no_layer_is_refused(run):
    folder = run("stochastic_binary")
    record = json.loads((folder / "record.json").read_text())
    (folder / "record.json").write_text(json.dumps(record | {"half_ranges": {}}))
    assert "its weights are stochastic_binary, but the record has no binary layer" in refused("weights", folder)


def test_a_layer_that_the_latent_weights_lack_is_named(run):
    folder = run()
    save_file({"other.weight": np.ones((2, 2), np.float32)}, folder / "latent.safetensors", {"other": repr(H)})
    for command in ("weights", "pack"):
        assert "binary layers, or their h, are not the recorded ones: conv, other" in refused(command, folder)


def test_what_is_no_run_or_lacks_a_file_is_named(run, tmp_path):
    assert f"{tmp_path}: is not the folder of a run" in refused("weights", tmp_path)
    folder = run("stochastic_binary")
    assert "must end with .png or .pdf" in refused("weights", folder, "--figure", "x.gif")
    assert refused("weights", folder, "--csv", folder) == f"error: {folder}: Is a directory"
    (folder / "latent.safetensors").unlink()
    assert refused("weights", folder) == f"error: {folder}: latent.safetensors: is missing"


# pack and unpack


@pytest.mark.parametrize("weights", ["binary", "stochastic_binary"])
def test_an_unpacked_file_is_the_model_of_the_run_to_the_byte(run, capsys, weights):
    folder = run(weights)
    main(["pack", str(folder)])
    packed = folder / "packed.safetensors"
    size, whole = packed.stat().st_size, (folder / "model.safetensors").stat().st_size
    assert capsys.readouterr().out.startswith(f"{packed}: {size:,} bytes; model.safetensors has {whole:,}, ")
    assert size < whole
    main(["unpack", str(packed)])
    unpacked = folder / "packed.unpacked.safetensors"
    assert unpacked.read_bytes() == (folder / "model.safetensors").read_bytes()
    assert f"{unpacked}: {whole:,} bytes, 4 tensors" in capsys.readouterr().out


def test_files_are_named_as_asked(run, tmp_path):
    main(["pack", str(run()), str(tmp_path / "new" / "small.bin")])
    main(["unpack", str(tmp_path / "new" / "small.bin"), str(tmp_path / "large.safetensors")])
    assert set(load_file(tmp_path / "large.safetensors")) >= {"conv.weight", "fc.weight"}


def test_what_cannot_be_packed_is_named_and_nothing_is_written(run, tmp_path):
    folder = run("float", "float")
    said = refused("pack", folder)
    assert f"{folder}: its method ternary (magnitude) has float weights" in said
    spoiled = run(name="spoiled", spoil=2)
    assert "conv.weight: 2 of 288 weights are not -h, 0 or +h" in refused("pack", spoiled)
    for name in ("model.safetensors", "record.json"):
        assert "is a file of the run" in refused("pack", spoiled, spoiled / name)
    assert "is not the folder of a run" in refused("pack", tmp_path)
    for each in (folder, spoiled):
        assert not (each / "packed.safetensors").exists()
    (spoiled / "model.safetensors").write_bytes(b"cut")
    assert "model.safetensors: is not a whole safetensors file" in refused("pack", spoiled)


def test_what_cannot_be_unpacked_is_named_and_nothing_is_written(run, tmp_path):
    folder, out = run(), tmp_path / "out.safetensors"
    model = folder / "model.safetensors"
    assert f"error: {model}: is not a file of packed weights" in refused("unpack", model, out)
    assert refused("unpack", tmp_path / "none", out) == f"error: {tmp_path / 'none'}: No such file or directory"
    main(["pack", str(folder)])
    packed = folder / "packed.safetensors"
    assert "or of what is read" in refused("unpack", packed, packed)
    packed.write_bytes(packed.read_bytes()[:-1])
    assert f"error: {packed}: " in refused("unpack", packed, out)
    assert not out.exists()
