"""The balance line that a training watches: it is that of masks, weights and on-rates, and watching changes nothing."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from bbnet.analysis.balance import COLUMNS
from bbnet.tasks.logic import task
from bbnet.tasks.logic.settings import Settings
from bbnet.training.resume import Resume
from bbnet.training.runs import Job, train, warm_up
from bbnet.training.units import measure_balance, measure_units

CPU = torch.device("cpu")
DATA = {"pack": "formulas", "bits": 12, "train": 600, "val": 1100, "test": 200, "dnf_literals": 2}
TRAINING = {"epochs": 10, "warm_up_epochs": 2, "batch_size": 20, "epoch_steps": 5, "learning_rate": 0.01}
MODEL = {"formula": "dnf", "widths": [16, 24]}
METHODS = {
    "dense": {"algorithm": "dense"},
    "log_odds": {"algorithm": "budgeted_broadcast", "side": "in"},
    "both": {"algorithm": "budgeted_broadcast", "side": "both"},
    "random": {"algorithm": "random", "side": "out"},
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> tuple[Path, dict]:
    settings = Settings.model_validate({"data": DATA, "models": {"it": MODEL}, "training": TRAINING})
    raw, target = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("prepared")
    manifest = {"root": str(raw)} | task.fetch(settings.data.model_dump(), raw)
    return target, json.loads(json.dumps(task.prepare(manifest, settings.model_dump(), target)))


@pytest.fixture(scope="module")
def job(prepared):
    def make(method: str, watch: bool = True) -> Job:
        config = {"task": "logic", "model": MODEL, "training": TRAINING | {"watch_balance": watch}, "slabs": "hidden"}
        config |= {"seed": 0, "device": "cpu", "cpu_threads": 1, "deterministic": False, "precision": "float32"}
        config |= {"compile": "off", "method": METHODS[method], "smallest_budget": "0.25"}
        config |= {"budget": "1.00" if method == "dense" else "0.25", "sparsity": {"ramp_end": 0.2, "every": 5}}
        return Job(config, *prepared)

    return make


@pytest.fixture(scope="module")
def start(job):
    """The warm start, watched or not."""
    return {watch: warm_up(job("dense", watch))[0] for watch in (True, False)}


def without_lines(history: list[dict]) -> list[dict]:
    return [{name: value for name, value in row.items() if name not in COLUMNS} for row in history]


@pytest.mark.parametrize("method", METHODS)
def test_watching_adds_columns_and_changes_nothing_else(job, start, method):
    watched, plain = (train(job(method, watch), copy.deepcopy(start[watch])) for watch in (True, False))
    assert all(row.keys() >= set(COLUMNS) for row in watched.history)
    assert without_lines(watched.history) == plain.history
    assert all(torch.equal(watched.weights[name], weight) for name, weight in plain.weights.items())
    assert watched.refreshes == plain.refreshes


def test_dense_networks_have_lines_of_effective_degrees_alone_on_both_sides(job, start):
    for row in [*start[True]["history"], *train(job("dense"), copy.deepcopy(start[True])).history]:
        for side in ("in", "out"):
            assert 0 <= row[f"line_{side}_effective_r2"] <= 1
            assert np.isnan(row[f"line_{side}_live_r2"])


@pytest.mark.parametrize(("method", "sides"), [("log_odds", ["in"]), ("both", ["in", "out"]), ("random", ["out"])])
def test_a_masked_run_has_the_lines_of_its_own_slabs(job, start, method, sides):
    rows = train(job(method), copy.deepcopy(start[True])).history[TRAINING["warm_up_epochs"] :]
    for side in ("in", "out"):
        defined = [not np.isnan(row[f"line_{side}_effective_r2"]) for row in rows]
        assert all(defined) if side in sides else not any(defined)


class Last(Resume):
    """Keeps a copy of the network at the end."""

    def after_epoch(self, state):
        self.state = copy.deepcopy(state())


@pytest.mark.parametrize("method", ["log_odds", "random"])
def test_the_last_row_is_the_line_of_the_last_network_s_units(job, start, prepared, method):
    """Against the rows of `units.csv`, and effective degrees computed unit by unit."""
    mine, last = job(method), Last()
    run = train(mine, copy.deepcopy(start[True]), resume=last)
    model = task.build_model(mine.model_settings, prepared[1], CPU)
    model.load_state_dict(last.state["trainer"]["model"])
    dev = task.open_split(*prepared, "val")
    rows, _ = measure_units(task, model, dev, CPU, run.slabs, run.masks)
    found = measure_balance(task, model, dev, CPU, run.slabs, run.masks)
    for name in COLUMNS:
        assert found[name] == pytest.approx(run.history[-1][name], nan_ok=True)
    expected, weights = {"live": [], "effective": []}, {"live": [], "effective": []}
    for slab in run.slabs:
        weight = model.get_submodule(slab.name).weight.detach()
        weight = weight if slab.side == "in" else weight.T
        units = [row for row in rows if row["slab"] == slab.name]
        on = [row for row in units if not row["silent"]]
        y = [np.log((1 - a) / a) for a in np.clip([row["on_rate"] for row in on], 1e-3, 1 - 1e-3)]
        own = [weight[row["unit"]].abs() for row in on]
        x = {"live": [int((w > 0).sum()) for w in own], "effective": [float(w.sum() ** 2 / (w**2).sum()) for w in own]}
        for degree, values in x.items():
            if len(set(values)) > 1:
                expected[degree].append(np.corrcoef(values, y)[0, 1] ** 2)
                weights[degree].append(len(units))
    for degree, values in expected.items():
        side = METHODS[method]["side"]
        assert found[f"line_{side}_{degree}_r2"] == pytest.approx(np.average(values, weights=weights[degree]), rel=1e-4)
