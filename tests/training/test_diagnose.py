"""Diagnostics of a run: its own steps to the bit, at its own masks, and nothing of the run is changed."""

import copy
import hashlib

import numpy as np
import pytest
import torch

from bbnet.diagnostics.record import Record
from bbnet.training import diagnose as inside
from bbnet.training.checkpoint import load_latent, load_masks, load_weights
from bbnet.training.diagnose import (
    END,
    INITIALISATION,
    WARM_START,
    diagnose,
    follow,
    from_end,
    from_initialisation,
    from_warm_start,
)
from bbnet.training.resume import Resume
from bbnet.training.runs import train, warm_up

STEPS = 6  # more than an epoch of 4
QUICK = ["sp_in", "rigl", "stochastic"]
METHODS = [
    pytest.param(name, marks=[] if name in QUICK else pytest.mark.thorough)
    for name in ("dense", "sp_in", "magnitude", "rigl", "topk", "binary", "ternary", "stochastic")
]


class EndedError(Exception):
    pass


class After(Resume):
    """Keeps the state of a training after some steps, and ends it there."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def after_step(self, state):
        self.steps -= 1
        if not self.steps:
            self.state = copy.deepcopy(state())
            raise EndedError


def hashes(folder) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.mark.parametrize("method", METHODS)
def test_steps_from_the_warm_start_are_those_of_the_training(job, warm_start, same, method):
    trained = After(STEPS)
    with pytest.raises(EndedError):
        train(job(method), warm_start(), resume=trained)
    at = from_warm_start(job(method), warm_start())
    record = follow(at, STEPS, every=2, repeat=False)
    assert (record.steps, record.observations) == (STEPS, 3)
    for name in ("model", "optimizer"):
        assert same(at.trainer.state()[name], trained.state["trainer"][name])
    assert same(at.sparsifier.state_dict(), trained.state["sparsifier"])
    if at.binarizer is not None:
        assert same(at.binarizer.state_dict(), trained.state["binarizer"])


@pytest.mark.parametrize("method", METHODS)
def test_steps_from_the_end_begin_at_the_stored_weights_and_keep_the_masks(job, finished, same, method):
    run = finished(method)
    masks = load_masks(run.folder / "masks.safetensors")
    at = from_end(run.job, run.folder, run.run.selected_epoch)
    model = at.trainer.model
    with at.binarizer.signs() if at.binarizer else torch.no_grad():
        expected = copy.deepcopy(model)
        load_weights(run.folder / "model.safetensors", expected)
        assert same(dict(model.state_dict()), dict(expected.state_dict()))
    if at.binarizer:
        latent = {f"{name}.weight": weight for name, weight in at.binarizer.latent_weights().items()}
        assert same(latent, load_latent(run.folder / "latent.safetensors"))
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    rows = follow(at, STEPS, every=1, repeat=True).rows()
    assert same(at.sparsifier.masks(), masks)
    assert any(not torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    live = {
        f"{name}.weight": int(mask.sum()) * model.get_submodule(name).weight[0, 0].numel()
        for name, mask in masks.items()
    }
    assert {row["parameter"]: row["live"] for row in rows if row["parameter"] in live} == live
    assert all(row["observations"] == STEPS for row in rows)
    assert at.trainer.epoch == run.run.selected_epoch - 1
    assert at.trainer.optimizer.param_groups[0]["lr"] > 0


def test_the_batches_at_the_end_are_those_of_the_selected_epoch_again(job, finished, batches_seen):
    run = finished("sp_in")
    at = from_end(run.job, run.folder, run.run.selected_epoch)
    batches_seen.clear()  # of the training, if no test had made the run before
    follow(at, 8, every=8, repeat=True)
    assert batches_seen[:4] == batches_seen[4:]
    assert len(set(batches_seen)) == 4


@pytest.fixture
def looks(finished, warm_start):
    """What was found in the run of a method, and that its folder is untouched."""

    def look(method, **options):
        run, dense = finished(method), finished("dense").folder
        before = hashes(run.folder), hashes(dense)
        asked = {"dense": dense, "steps": STEPS, "every": 2} | options
        found = diagnose(run.job, warm_start(), run.folder, run.run.selected_epoch, **asked)
        assert (hashes(run.folder), hashes(dense)) == before
        return found

    return look


def test_a_run_is_probed_at_both_points_and_not_changed(looks, finished):
    found = looks("sp_in")
    assert list(found) == [WARM_START, END]
    assert (found[WARM_START].offset, found[END].offset) == (4, 4 * finished("sp_in").run.selected_epoch)
    weights = {row["parameter"]: row for row in inside.probe_rows(found, "weights") if row["point"] == END}
    for name, mask in load_masks(finished("sp_in").folder / "masks.safetensors").items():
        row = weights[f"{name}.weight"]
        assert row["live"] == int(mask.sum()) * row["entries"] // mask.numel() < row["entries"]
        assert row["zero_share"] == 0
    aligned = {(row["point"], row["layer"]): row["cka"] for row in inside.probe_rows(found, "alignment")}
    assert len(aligned) > 4 and all(0 < cka < 1 for cka in aligned.values())
    series = inside.series_rows(found)
    assert [row["last_step"] for row in series if row["depth"] == 0][:3] == [5, 7, 9]


def test_steps_from_the_initial_weights_are_those_of_the_warm_up(job, same):
    trained = After(3)
    with pytest.raises(EndedError):
        warm_up(job("dense"), resume=trained)
    at = from_initialisation(job("dense"))
    record = follow(at, 3, every=1, repeat=False)
    assert (record.steps, at.offset) == (3, 0)
    for name in ("model", "optimizer"):
        assert same(at.trainer.state()[name], trained.state[name])


def test_dense_is_also_looked_at_before_training_and_aligned_with_itself(looks):
    found = looks("dense")
    assert list(found) == [INITIALISATION, WARM_START, END]
    assert (found[INITIALISATION].offset, found[INITIALISATION].record.steps) == (0, 4)
    ckas = [row["cka"] for row in inside.probe_rows(found, "alignment") if row["point"] == END]
    np.testing.assert_allclose(ckas, 1, atol=1e-9)


@pytest.mark.thorough
def test_units_are_on_in_the_probe_as_the_gates_let_them(looks):
    rates = [row["on_rate"] for row in inside.probe_rows(looks("topk"), "units") if row["point"] == END]
    assert rates and max(rates) <= 1


def test_more_steps_than_the_sparse_phase_has_are_not_taken_from_the_warm_start(looks):
    found = looks("sp_in", steps=100, every=20, dense=None)
    assert (found[WARM_START].record.steps, found[END].record.steps) == (16, 100)
    assert inside.probe_rows(found, "alignment") == []


def test_patterns_that_match_nothing_are_refused_or_named(looks, caplog):
    found = looks("sp_in", layers=["encoder.0.*", "nowhere"], steps=1, every=1)
    assert {row["layer"].split(".")[1] for row in inside.probe_rows(found, "activations")} == {"0"}
    assert "'nowhere' matches no layer of this model" in caplog.text
    with pytest.raises(
        ValueError, match="diagnostics.layers: no pattern matches a layer of this model; its layers are"
    ):
        looks("sp_in", layers=["nowhere"])


def test_live_logging_has_all_numbers_of_both_tables(looks):
    found = looks("sp_in")
    flow, series = inside.flow_rows(found), inside.series_rows(found)
    rows = inside.live_rows(flow, series)
    steps = [row["step"] for row in rows]
    assert steps == sorted(set(steps))
    by_step = {row["step"]: row for row in rows}
    for row in series:
        shown = by_step[row["last_step"]]
        assert shown[f"series_gradient_norm/{row['point']}/{row['parameter']}"] == row["gradient_norm"]
    last = by_step[max(row["last_step"] for row in series if row["point"] == END)]
    for row in flow:
        if row["point"] == END:
            for name in row.keys() - {"point", "depth", "parameter"}:
                assert last[f"{name}/{END}/{row['parameter']}"] == row[name]


def test_the_record_holds_no_weights(job, warm_start):
    record = follow(from_warm_start(job("sp_in"), warm_start()), 2, every=1, repeat=False)
    assert type(record) is Record
