"""A run from warm start to score: exact budgets, masks in force, and the same bits again."""

import math
import os
from decimal import Decimal

import numpy as np
import pytest
import torch

from bbnet.sparsity import algorithms
from bbnet.sparsity.gate import Gates
from bbnet.training import runs
from bbnet.training.latent import take_statistics_anew
from bbnet.training.runs import Job, check_masks_in_force, evaluate, train, warm_up

BINARY = ("binary", "ternary", "stochastic")
SPARSE = ("sp_in", "sp_out", "both", "magnitude", "rigl", "wanda", "ternary", "stochastic")
ALL = ("dense", "binary", *SPARSE)
BUDGET = Decimal("0.37")


def exact_count(budget: Decimal, mask: torch.Tensor) -> int:
    return int((budget * mask.numel() + Decimal("0.5")).to_integral_value("ROUND_FLOOR"))


def by_connection(weight: torch.Tensor, side: str) -> torch.Tensor:
    """[units, fan, taps] of a convolution's weight [out, in, height, width]."""
    return weight.flatten(2) if side == "in" else weight.flatten(2).transpose(0, 1)


@pytest.fixture
def slabs_of(finished):
    """The slabs of a run by name, of the task, without those left dense."""

    def make(method: str):
        done = finished(method)
        side = done.job.config["method"].get("side", "in")
        candidates = done.job.task.slabs(model_of(done), "wide", side)
        return {slab.name: slab for slab in candidates if slab.name not in done.run.left_dense}

    return make


def model_of(done) -> torch.nn.Module:
    model = done.job.task.build_model(done.job.model_settings, done.job.index, done.job.device)
    model.load_state_dict(done.run.weights)
    return model.eval()


def naive_on_rates(done, split: str) -> dict[str, np.ndarray]:
    """Share of positions above 0 of every module's output channels, in one forward pass over the split."""
    model, rates = model_of(done), {}

    def count(name):
        return lambda _, __, output: rates.update({name: (output > 0).double().mean((0, 2, 3)).numpy()})

    for name, module in model.named_modules():
        if name.endswith(("norm1", "norm2", "up")):
            module.register_forward_hook(count(name))
    images = np.load(done.job.prepared / f"{split}_images.npy")
    with torch.no_grad():
        model(torch.from_numpy(images).float())
    return rates


def memory_of(model) -> int:
    return sum(value.numel() * value.element_size() for value in model.state_dict().values())


def stored_of(done, model) -> int:
    """Whole bytes for each layer: of the mask's bits, and of the live weights, a bit each where they are binary."""
    total = memory_of(model)
    for name in {*done.run.masks, *done.run.latent}:
        weight, mask = model.get_submodule(name).weight, done.run.masks.get(name)
        pruned = mask is not None and not mask.all()
        live = int(mask.sum()) * 9 if pruned else weight.numel()
        binary = name in done.run.latent
        total += (math.ceil(live / 8) + 4 if binary else 4 * live) + pruned * math.ceil(weight[:, :, 0, 0].numel() / 8)
        total -= 4 * weight.numel()
    return total


# A method that gates activations.


def test_gates_are_in_force_when_a_run_is_scored(finished):
    done = finished("topk")
    model = model_of(done)
    slabs, _ = done.job.slabs(model, "in")
    algorithm = algorithms.make("topk")
    images = torch.from_numpy(np.load(done.job.prepared / "test_images.npy")).float()
    with torch.no_grad():
        open_logits = model(images)
        Gates(model, slabs, algorithm).set_share(BUDGET)
        gated_logits = model(images)
    assert not torch.equal(open_logits, gated_logits)
    predicted = np.unpackbits(evaluate(done.job, done.folder).predictions["changed"], axis=1)
    assert np.array_equal(predicted, (gated_logits >= 0).flatten(1).numpy())


def test_a_run_of_gates_keeps_all_weights_and_counts_what_passes(finished):
    done = finished("topk")
    evaluation = evaluate(done.job, done.folder)
    assert (evaluation.sizes["density"], evaluation.sizes["net_density"]) == (1.0, 1.0)
    assert all(bool(mask.all()) for mask in done.run.masks.values())
    assert done.run.refreshes == []
    flops = done.run.cost["flops"]
    assert 0.37 * flops["dense"] < flops["sparse"] < flops["dense"]
    # 3 of 8 units pass at each of at most as many positions as there are.
    assert max(row["on_rate"] for row in evaluation.units if row["side"] == "in") > 0
    by_slab = {row["slab"]: 0.0 for row in evaluation.units if row["side"] == "in"}
    for row in evaluation.units:
        if row["side"] == "in":
            by_slab[row["slab"]] += row["on_rate"]
    gated = [total for slab, total in by_slab.items() if slab not in done.run.left_dense]
    assert gated
    assert all(total <= 3 + 1e-9 for total in gated)


# Masks.


@pytest.mark.parametrize("method", SPARSE)
def test_every_saved_mask_has_exactly_k_connections(finished, slabs_of, method):
    done = finished(method)
    assert set(done.run.masks) == set(slabs_of(method))
    for name, mask in done.run.masks.items():
        weight = done.run.weights[f"{name}.weight"]
        units, fan = weight.shape[:2] if slabs_of(method)[name].side == "in" else weight.shape[1::-1]
        assert mask.shape == (units, fan)
        assert int(mask.sum()) == exact_count(BUDGET, mask), name


@pytest.mark.parametrize("method", SPARSE)
def test_every_refresh_has_exactly_k_connections_of_its_budget(finished, method):
    done = finished(method)
    for row in done.run.refreshes:
        mask = done.run.masks[row["slab"]]
        assert row["connections"] == exact_count(Decimal(row["budget"]), mask), row
        assert row["density"] == row["connections"] / mask.numel()
    steps = sorted({row["step"] for row in done.run.refreshes})
    # every second of 16 steps until the freeze at step 12, the ramp ending at step 6.4; RigL is sparse from the start
    ramped = done.job.algorithm["algorithm"] != "rigl"
    assert steps == [*([] if ramped else [0]), 2, 4, 6, 8, 10, 12]
    assert len(done.run.refreshes) == len(steps) * len(done.run.masks)
    assert {row["budget"] for row in done.run.refreshes if row["step"] >= 8} == {"0.37"}
    assert (min(float(row["budget"]) for row in done.run.refreshes if row["step"] < 6.4) > 0.37) == ramped


@pytest.mark.parametrize("method", SPARSE)
def test_pruned_weights_are_nought_in_the_selected_weights_and_kept_ones_are_not(finished, slabs_of, method):
    done = finished(method)
    for name, slab in slabs_of(method).items():
        weight = by_connection(done.run.weights[f"{name}.weight"], slab.side)
        assert (weight[~done.run.masks[name]] == 0).all()
        assert (weight[done.run.masks[name]] != 0).any(1).all()


@pytest.mark.parametrize("method", ["dense", "sp_in", "both", "magnitude"])
def test_the_convolution_that_reads_pixels_is_listed_as_left_dense(finished, method):
    done = finished(method)
    assert list(done.run.left_dense) == ["encoder.0.conv1"]
    assert "fan 3" in done.run.left_dense["encoder.0.conv1"]
    assert "encoder.0.conv1" not in done.run.masks


def test_a_dense_run_masks_nothing(finished):
    done = finished("dense")
    assert all(mask.all() for mask in done.run.masks.values())
    assert done.run.refreshes == []
    assert {row["density"] for row in done.run.history} == {1.0}


@pytest.mark.parametrize("method", SPARSE)
def test_the_density_falls_to_the_budget_in_the_history(finished, method):
    done = finished(method)
    density = [row["density"] for row in done.run.history]
    total = sum(mask.numel() for mask in done.run.masks.values())
    assert density[0] == 1.0
    assert density == sorted(density, reverse=True)
    assert density[-1] == sum(exact_count(BUDGET, mask) for mask in done.run.masks.values()) / total


@pytest.mark.parametrize("freeze", [0.75, 0.95])
def test_some_epoch_is_left_to_select_from_or_the_freeze_is_refused(job, warm_start, freeze):
    """Of 8 sparse steps .95 rounds to the last one."""
    training = {"epochs": 3, "batch_size": 3}
    its_job = job("sp_in", **training)
    its_job.config["sparsity"] |= {"freeze": freeze, "every": 1}
    try:
        found = train(its_job, warm_start(**training)).selected_epoch
    except ValueError as error:
        found = str(error)
    assert found == 3 or "freeze" in str(found)


# Units.


@pytest.mark.parametrize("method", SPARSE)
def test_units_have_one_row_each_and_their_degrees_are_those_of_the_mask(finished, slabs_of, method):
    done = finished(method)
    rows = evaluate(done.job, done.folder).units
    for name, mask in done.run.masks.items():
        found = [row for row in rows if row["slab"] == name]
        assert [row["unit"] for row in found] == list(range(len(mask)))
        assert [row["degree"] for row in found] == mask.sum(1).tolist()
        assert sum(row["degree"] for row in found) == exact_count(BUDGET, mask)
        assert {row["fan"] for row in found} == {mask.shape[1]}
        assert {row["side"] for row in found} == {slabs_of(method)[name].side}
    assert len(rows) == sum(len(mask) for mask in done.run.masks.values())


@pytest.mark.parametrize("method", SPARSE)
def test_on_rates_of_units_are_those_counted_on_dev(finished, slabs_of, method):
    done = finished(method)
    naive = naive_on_rates(done, "val")
    rows = evaluate(done.job, done.folder).units
    for name, slab in slabs_of(method).items():
        found = [row for row in rows if row["slab"] == name]
        expected = np.concatenate([naive[unit] for unit in slab.units])
        np.testing.assert_allclose([row["on_rate"] for row in found], expected, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose([row["traffic"] for row in found], [row["on_rate"] * row["degree"] for row in found])


def test_units_of_a_dense_network_are_of_both_sides_and_full_degree(finished):
    done = finished("dense")
    rows = evaluate(done.job, done.folder).units
    keys = [(row["slab"], row["side"], row["unit"]) for row in rows]
    assert len(set(keys)) == len(keys)
    assert {row["side"] for row in rows} == {"in", "out"}
    assert all(row["degree"] == row["fan"] for row in rows)


def test_units_of_the_warm_start_are_measured_like_those_of_a_dense_run(job, finished):
    state, history, rows = warm_up(job())
    dense = evaluate(finished("dense").job, finished("dense").folder).units
    assert [(row["slab"], row["side"], row["unit"], row["degree"]) for row in rows] == [
        (row["slab"], row["side"], row["unit"], row["degree"]) for row in dense
    ]
    assert all(0 <= row["on_rate"] <= 1 for row in rows)
    assert (state["epoch"], len(history)) == (1, 1)


# Scores and costs.


@pytest.mark.parametrize("method", ALL)
def test_a_run_is_scored_with_its_selected_weights_on_test(finished, method):
    done = finished(method)
    found = evaluate(done.job, done.folder)
    images, labels = (np.load(done.job.prepared / f"test_{name}.npy") for name in ("images", "labels"))
    with torch.no_grad():
        predicted = (model_of(done)(torch.from_numpy(images).float()) >= 0).numpy()
    tp, fp, fn = (
        (p & t).sum() for p, t in [(predicted, labels > 0), (predicted, labels == 0), (~predicted, labels > 0)]
    )
    assert found.items["tp"].sum() == tp
    assert len(found.items["tp"]) == len(labels) - 1  # the last image has two tiles
    assert found.metrics["f1"] == pytest.approx(2 * tp / (2 * tp + fp + fn))
    unpacked = np.unpackbits(found.predictions["changed"], axis=1).reshape(labels.shape)
    assert (unpacked == predicted).all()


# Binary weights.


@pytest.mark.parametrize("method", BINARY)
def test_selected_weights_are_the_signs_of_their_latent_ones_times_h(finished, method):
    run = finished(method).run
    convolutions = [name.removesuffix(".weight") for name, value in run.weights.items() if value.dim() == 4]
    assert list(run.latent) == (convolutions if method == "ternary" else convolutions[1:-1])
    for layer, latent in run.latent.items():
        weight = run.weights[f"{layer}.weight"]
        fans = weight[0, 0].numel() * (weight.shape[0] + weight.shape[1])
        h = torch.tensor(1.0 if method == "stochastic" else (1.5 / fans) ** 0.5)
        assert run.half_ranges[layer] == pytest.approx(float(h))
        assert torch.equal(weight, latent.sign() * h)
        assert latent.abs().max() <= h
        live = run.masks[layer] if layer in run.masks else torch.ones(weight.shape[:2], dtype=torch.bool)
        assert not latent[~live].any()


@pytest.mark.parametrize("method", BINARY)
def test_latent_weights_are_scored_beside_the_signs(finished, method):
    done = finished(method)
    found = evaluate(done.job, done.folder)
    rows = {(row["weights"], row["statistics"]): row["value"] for row in found.beside if row["metric"] == "f1"}
    assert set(rows) == {("binary", "anew"), ("latent", "trained"), ("latent", "anew")}
    model = model_of(done)
    model.load_state_dict({f"{layer}.weight": value for layer, value in done.run.latent.items()}, strict=False)
    test = done.job.task.open_split(done.job.prepared, done.job.index, "test")
    items, _ = done.job.task.evaluate(model, test, done.job.device)
    assert rows["latent", "trained"] == pytest.approx(float(done.job.task.metrics(items)["f1"]), nan_ok=True)


def test_the_statistics_of_stochastic_weights_are_those_of_their_signs(finished):
    found = evaluate(finished("stochastic").job, finished("stochastic").folder)
    anew = {
        row["metric"]: row["value"] for row in found.beside if (row["weights"], row["statistics"]) == ("binary", "anew")
    }
    assert anew == pytest.approx(found.metrics, nan_ok=True)


def test_statistics_anew_are_the_means_over_augmented_batches(finished):
    job, model = finished("binary").job, model_of(finished("binary"))
    training = job.task.TrainingSettings(**job.config["training"])
    train_split = job.task.open_split(job.prepared, job.index, "train")
    first, seen = next(module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)), []
    hook = first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].mean((0, 2, 3))))
    take_statistics_anew(job.task, model, train_split, training, 0, job.device)
    hook.remove()
    assert len(seen) % len(train_split.batches(training, torch.Generator())) == 0
    assert not model.training and first.momentum == 0.1
    torch.testing.assert_close(first.running_mean, torch.stack(seen).mean(0))


@pytest.mark.parametrize("method", ALL)
def test_costs_are_counted_from_masks(finished, slabs_of, method):
    done = finished(method)
    cost = done.run.cost
    assert evaluate(done.job, done.folder).sizes == {name: cost[name] for name in cost if name != "flops"}
    model = model_of(done)
    weights = sum(parameter.numel() for parameter in model.parameters())
    pruned = {name: int((~mask).sum()) for name, mask in done.run.masks.items()}
    total = sum(mask.numel() for mask in done.run.masks.values())
    assert cost["weights"] == weights
    assert cost["bytes"] == {"memory": memory_of(model), "stored": stored_of(done, model)}
    assert cost["density"] == pytest.approx(1 - sum(pruned.values()) / total)
    assert cost["net_density"] == pytest.approx(1 - 9 * sum(pruned.values()) / weights)
    assert cost["slabs"] == {
        name: pytest.approx(1 - pruned[name] / mask.numel()) for name, mask in done.run.masks.items()
    }
    sizes = {"encoder.0": 32, "encoder.1": 16, "decoder.0": 16, "decoder.1": 32}
    saved = 0
    for name, count in pruned.items():
        size = next(size for block, size in sizes.items() if name.startswith(block))
        saved += 2 * 9 * count * size * size * (2 if name.startswith("encoder") else 1)
    assert cost["flops"]["dense"] - cost["flops"]["sparse"] == saved
    assert (saved == 0) == (method in ("dense", "binary"))


# Masks in force.


def test_masks_that_are_in_force_pass(finished, slabs_of):
    done = finished("sp_in")
    check_masks_in_force(model_of(done), list(slabs_of("sp_in").values()), done.run.masks)


@pytest.mark.parametrize("method", SPARSE)
def test_a_pruned_weight_that_is_not_nought_is_refused_by_slab(finished, slabs_of, method):
    done = finished(method)
    slab = list(slabs_of(method).values())[-1]
    model = model_of(done)
    unit, connection = (~done.run.masks[slab.name]).nonzero()[0].tolist()
    with torch.no_grad():
        by_connection(model.get_submodule(slab.name).weight, slab.side)[unit, connection, 4] = 1e-30
    with pytest.raises(ValueError, match=f"slab {slab.name}: a pruned weight is not 0"):
        check_masks_in_force(model, list(slabs_of(method).values()), done.run.masks)


def test_masks_of_other_slabs_are_refused_by_name(finished, slabs_of):
    done, other = finished("sp_in"), finished("both")
    with pytest.raises(ValueError, match=r"masks are of other slabs: decoder\.0\.block\.conv2, .*encoder\.1\.conv2"):
        check_masks_in_force(
            model_of(done),
            list(slabs_of("sp_in").values()),
            {name: mask for name, mask in other.run.masks.items() if name.endswith("conv1")},
        )


def test_a_mask_of_another_shape_is_refused_by_slab(finished, slabs_of):
    done = finished("sp_in")
    masks = done.run.masks | {"encoder.1.conv1": torch.ones(4, 4, dtype=torch.bool)}
    with pytest.raises(ValueError, match=r"encoder\.1\.conv1"):
        check_masks_in_force(model_of(done), list(slabs_of("sp_in").values()), masks)


# The same bits.


@pytest.mark.parametrize("method", SPARSE)
def test_the_same_seed_gives_the_same_bits(finished, job, warm_start, method):
    first, again = finished(method).run, train(job(method), warm_start())
    assert first.history == again.history
    assert first.refreshes == again.refreshes
    assert first.selected_epoch == again.selected_epoch
    assert all(torch.equal(first.weights[name], again.weights[name]) for name in first.weights)
    assert all(torch.equal(first.masks[name], again.masks[name]) for name in first.masks)


def test_another_seed_gives_other_weights_and_masks(finished, job, warm_start):
    first, other = finished("sp_in").run, train(job("sp_in", seed=1), warm_start(1))
    assert any(not torch.equal(first.masks[name], other.masks[name]) for name in first.masks)
    assert first.history[-1]["train_loss"] != other.history[-1]["train_loss"]


def test_a_run_at_budget_one_is_the_dense_run(finished, job, warm_start):
    dense, whole = finished("dense").run, train(job("sp_in", budget="1.00"), warm_start())
    assert [row["train_loss"] for row in whole.history] == [row["train_loss"] for row in dense.history]
    assert all(torch.equal(dense.weights[name], whole.weights[name]) for name in dense.weights)


def test_deterministic_asks_torch_for_its_deterministic_algorithms_on_a_gpu_alone(job, prepared, monkeypatch):
    asked = []
    monkeypatch.setattr(runs, "compute_deterministically", lambda: asked.append(True))
    config = job().config | {"deterministic": True}
    Job(config, prepared.folder, prepared.index)
    assert asked == []
    monkeypatch.setattr(runs.ranks, "devices_of_job", lambda *_: [torch.device("cuda", 0)])
    Job(config, prepared.folder, prepared.index)
    assert asked == [True]
    Job(job().config, prepared.folder, prepared.index)
    assert asked == [True]


def test_deterministic_algorithms_are_those_of_torch(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    try:
        runs.compute_deterministically()
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert not torch.backends.cudnn.benchmark
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


@pytest.mark.parametrize(
    ("method", "exempt"), [("dense", None), ("binary", None), ("ternary", slice(None)), ("stochastic", slice(1, -1))]
)
def test_latent_weights_do_not_decay_unless_the_method_says_so(job, method, exempt):
    """`binary` has `latent_decay`, `ternary` all layers binary, and `stochastic` all but the first and the last."""
    its_job = job(method)
    trainer = its_job.trainer()
    its_job.exempt_latent(trainer)
    layers = [module for module in trainer.model.modules() if isinstance(module, torch.nn.Conv2d)]
    groups = trainer.optimizer.param_groups
    decays = {id(weight): group["weight_decay"] for group in groups for weight in group["params"]}
    assert len(decays) == len(list(trainer.model.parameters()))
    expected = [] if exempt is None else layers[exempt]
    assert [decays[id(layer.weight)] for layer in layers] == [0.0 if layer in expected else 0.1 for layer in layers]
