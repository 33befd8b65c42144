"""Fingerprints, and what is said of a run's folder."""

import json
import subprocess
import sys

import pytest

import bbnet
from bbnet.study.record import (
    LATENT,
    TRAINED,
    VERSIONS_OF,
    Record,
    check_files,
    code_fingerprint,
    environment,
    fingerprint,
    run_status,
    sha256_of,
)

WANTED = "0123456789abcdef"


@pytest.fixture
def run_folder(tmp_path):
    """A run's folder that holds the files named."""

    def make(**files: dict):
        for name, content in files.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
        return tmp_path

    return make


def test_a_run_with_its_record_and_metrics_is_done(run_folder):
    assert run_status(run_folder(record={"fingerprint": WANTED}, metrics={}), WANTED) == ("done", "")


def test_a_run_of_another_fingerprint_is_stale_and_says_which(run_folder):
    status, why = run_status(run_folder(record={"fingerprint": "fedcba9876543210"}, metrics={}), WANTED)
    assert status == "stale"
    assert WANTED in why
    assert "fedcba9876543210" in why


def test_a_failed_run_says_why(run_folder):
    note = {"fingerprint": WANTED, "error": "the training loss became nan in epoch 3"}
    assert run_status(run_folder(error=note), WANTED) == ("failed", "the training loss became nan in epoch 3")


def test_a_run_that_was_never_trained_is_missing(tmp_path):
    assert run_status(tmp_path / "nowhere", WANTED) == ("missing", "not trained")


def test_a_run_that_was_not_evaluated_is_missing(run_folder):
    assert run_status(run_folder(record={"fingerprint": WANTED}), WANTED) == ("missing", "trained, not evaluated")


def test_a_fingerprint_ignores_the_order_of_keys_and_sees_every_value():
    config = {"a": 1, "b": {"c": [1, 2], "d": "x"}}
    assert fingerprint(config) == fingerprint({"b": {"d": "x", "c": [1, 2]}, "a": 1})
    others = [
        config | {"a": 2},
        config | {"a": "1"},
        config | {"e": None},
        config | {"b": {"c": [2, 1], "d": "x"}},
        config | {"b": {"c": [1, 2], "d": "y"}},
    ]
    prints = {fingerprint(config), *map(fingerprint, others)}
    assert len(prints) == 1 + len(others)
    assert all(len(digits) == 16 and int(digits, 16) >= 0 for digits in prints)


def test_a_code_fingerprint_is_of_bytes_and_places_below_the_root(tmp_path):
    trees = {
        "one": {"a.py": b"x", "b.py": b"y"},
        "same": {"a.py": b"x", "b.py": b"y"},
        "edited": {"a.py": b"x", "b.py": b"z"},
        "renamed": {"a.py": b"x", "c.py": b"y"},
        "swapped": {"a.py": b"y", "b.py": b"x"},
        "moved": {"a.py": b"xy", "b.py": b""},
        "fewer": {"a.py": b"x"},
    }
    found = {}
    for tree, files in trees.items():
        (tmp_path / tree).mkdir()
        for name, content in files.items():
            (tmp_path / tree / name).write_bytes(content)
        found[tree] = code_fingerprint(tmp_path / tree, (tmp_path / tree).iterdir())
    assert found["one"] == found["same"]
    assert len(set(found.values())) == len(trees) - 1


def test_the_environment_names_every_version(monkeypatch):
    monkeypatch.setattr(bbnet, "__version__", "9.9.9")
    found = environment()
    assert set(found["versions"]) == {"bbnet", *VERSIONS_OF}
    assert found["versions"]["bbnet"] == "9.9.9"
    assert found["python"]
    assert found["host"]


def peak_of_a_process(work: str) -> float:
    code = f"from bbnet.study.record import peak_memory_mib; {work}; print(peak_memory_mib())"
    return float(subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE).stdout)


def test_peak_memory_is_of_the_process_itself_and_counts_what_it_freed():
    alone = peak_of_a_process("pass")
    of_its_parent = bytearray(300 * 2**20)
    assert peak_of_a_process("pass") == pytest.approx(alone, abs=10)
    assert peak_of_a_process(f"bytearray({len(of_its_parent)})") == pytest.approx(alone + 300, abs=10)


@pytest.mark.parametrize("weights, names", [("float", TRAINED), ("binary", (*TRAINED, LATENT))])
def test_a_file_that_the_record_does_not_name_is_refused(weights, names, tmp_path):
    config = {"method": {"algorithm": "dense", "weights": weights}}
    for name in names:
        (tmp_path / name).write_text(name, encoding="utf-8")
    hashes = {name: sha256_of(tmp_path / name) for name in names}
    check_files(tmp_path, Record.model_construct(files=hashes, config=config))
    for name in names:
        others = {other: digest for other, digest in hashes.items() if other != name}
        with pytest.raises(ValueError, match=f"{name}: is not the file"):
            check_files(tmp_path, Record.model_construct(files=others, config=config))
