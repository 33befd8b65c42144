"""One-shot methods on the networks of every task, with the task's own loss, slabs and valid positions."""

import math
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from bbnet.sparsity import cost
from bbnet.sparsity.one_shot.prune import prune_one_shot
from bbnet.sparsity.one_shot.settings import METHODS, OneShotSettings
from bbnet.sparsity.slab import choose_slabs, connections
from bbnet.study.config import read_study
from bbnet.tasks import task as tasks
from bbnet.training.checkpoint import save_weights
from bbnet.training.one_shot import calibration_samples, prune
from bbnet.training.runs import Job, TrainedRun

STUDY = read_study("smoke", Path(__file__).parents[2] / "studies")
CPU = torch.device("cpu")


@pytest.mark.parametrize("side", ["in", "out", "both"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", STUDY.task_settings())
def test_the_slabs_of_every_task_meet_the_budget_and_the_model_still_runs(name, method, side):
    task, settings = tasks.load(name), STUDY.task_settings()[name]
    torch.manual_seed(0)
    index, batch = task.random_batch(settings, None, CPU)
    model = task.build_model(next(iter(settings.models.values())), index, CPU)
    slabs, _ = choose_slabs(model, task.slabs(model, settings.slabs, side), Decimal("0.3"))
    how = {"side": side, "layers": slabs, "forward": task.loss, "valid": partial(task.valid_positions, model)}
    done = prune_one_shot(model, [batch], method, "0.3", **how)
    assert {slab.name for slab in done.slabs} == {slab.name for slab in slabs}
    for slab in slabs:
        mask, weight = done.masks()[slab.name], connections(model.get_submodule(slab.name).weight, slab.side)
        assert mask.shape == weight.shape[:2]
        assert int(mask.sum()) == math.floor(Decimal("0.3") * mask.numel() + Decimal("0.5"))
        assert not weight[~mask].any()
    assert task.loss(model, batch).isfinite()


@pytest.fixture
def one_shot_job(job):
    def make(seed: int = 0, **one_shot: Any):
        made = job("dense", budget="0.50", seed=seed)
        made.config["method"] = {
            "algorithm": "wanda",
            "side": "in",
            "one_shot": OneShotSettings(sequences=7, **one_shot).model_dump(),
        }
        made.config["calibration_seeds"] = [3, 5]
        return made

    return make


@pytest.fixture
def prune_dense(tmp_path):
    """Prunes a dense network of random weights; returns the run, its rows as they were told, and the dense weights."""

    def run(job: Job) -> tuple[TrainedRun, list[dict], dict[str, torch.Tensor]]:
        model = job.trainer().model
        save_weights(tmp_path / "model.safetensors", model.state_dict())
        flops = cost.flops_by_module(model, job.task.example_inputs(job.index, CPU))
        rows: list[dict] = []
        return prune(job, tmp_path, 4, {"flops": flops}, rows.append), rows, model.state_dict()

    return run


def test_a_run_has_a_draw_for_each_calibration_seed(one_shot_job, prune_dense):
    run, rows, dense = prune_dense(one_shot_job())
    assert rows == run.history
    assert (run.history[0]["epoch"], run.history[0]["phase"]) == (4, "one_shot")
    assert run.selected_epoch == 4
    assert [draw.calibration["calibration_seed"] for draw in run.draws] == [3, 5]
    first, second = run.draws
    assert set(first.calibration["samples"]) != set(second.calibration["samples"])
    assert all(torch.equal(mask, first.masks[name]) for name, mask in run.masks.items())
    assert any(not torch.equal(mask, second.masks[name]) for name, mask in run.masks.items())
    for draw in run.draws:
        for name, value in draw.weights.items():
            mask = draw.masks.get(name.removesuffix(".weight"))
            assert torch.equal(value, dense[name] if mask is None else dense[name] * mask[..., None, None])


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("side", ["in", "out"])
def test_recovery_trains_what_is_kept_and_leaves_what_is_pruned_at_zero(one_shot_job, prune_dense, optimizer, side):
    jobs = [one_shot_job(recovery_epochs=epochs) for epochs in (0, 3)]
    for job in jobs:
        job.config["method"]["side"] = side
        job.config["training"] |= {"optimizer": optimizer, "weight_decay": 0.1, "clip_norm": 1.0}
    (pruned, _, _), (run, rows, _) = (prune_dense(job) for job in jobs)
    steps, rate = jobs[1].trainer().steps_per_epoch, jobs[1].config["training"]["learning_rate"]
    assert rows == run.history
    assert run.history[0] == pytest.approx(pruned.history[0], nan_ok=True)
    assert [row["phase"] for row in run.history] == ["one_shot", "recovery", "recovery", "recovery"]
    assert [row["epoch"] for row in run.history] == [4, 5, 6, 7]
    assert [row["step"] for row in run.history] == [steps * epoch for epoch in (4, 5, 6, 7)]
    assert run.selected_epoch == 7
    assert 0.1 * rate > run.history[1]["learning_rate"] > run.history[2]["learning_rate"] > 0
    assert {row["density"] for row in run.history} == {run.cost["density"]}
    for draw, before in zip(run.draws, pruned.draws, strict=True):
        for slab in run.slabs:
            weight, old = (
                connections(weights[f"{slab.name}.weight"], side) for weights in (draw.weights, before.weights)
            )
            mask = draw.masks[slab.name]
            assert torch.equal(mask, before.masks[slab.name])
            assert not weight[~mask].any()
            assert (weight[mask] != old[mask]).any()


def test_draws_differ_from_seed_to_seed_and_are_the_same_each_time(one_shot_job):
    trainer = one_shot_job().trainer()

    def samples(count, seed, calibration_seed):
        return calibration_samples(trainer.feed.split, trainer.training, count, seed, calibration_seed)

    drawn = {(seed, each): torch.cat(samples(7, seed, each)).tolist() for seed in (0, 1) for each in (0, 1)}
    assert len({tuple(found) for found in drawn.values()}) == 4
    assert drawn[0, 0] == torch.cat(samples(7, 0, 0)).tolist()
    assert [len(each) for each in samples(7, 0, 0)] == [3, 3, 1]
    with pytest.raises(ValueError, match="one_shot.sequences 13 exceeds the 12 training samples of an epoch"):
        samples(13, 0, 0)
