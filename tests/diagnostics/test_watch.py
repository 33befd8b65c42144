"""`bbnet.watch` in training loops: what it records, and that training is the same to the bit."""

import copy
import gc
import io
import tracemalloc
from collections import OrderedDict

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

import bbnet
from bbnet.diagnostics.record import Record
from bbnet.diagnostics.series import BINS

OPTIMIZERS = {
    "sgd": lambda weights: torch.optim.SGD(weights, lr=0.05, momentum=0.9, weight_decay=0.01, foreach=False),
    "sgd_fused": lambda weights: torch.optim.SGD(weights, lr=0.05, momentum=0.9, fused=True),
    "adamw_foreach": lambda weights: torch.optim.AdamW(weights, lr=0.01, weight_decay=0.1, foreach=True),
    "adamw_fused": lambda weights: torch.optim.AdamW(weights, lr=0.01, weight_decay=0.1, fused=True),
    "adagrad": lambda weights: torch.optim.Adagrad(weights, lr=0.01),
    "lbfgs": lambda weights: torch.optim.LBFGS(weights, lr=0.1, max_iter=3),
}


def build():
    torch.manual_seed(0)
    layers = OrderedDict(
        first=nn.Linear(20, 16), on=nn.ReLU(), drop=nn.Dropout(0.2), second=nn.Linear(16, 12), norm=nn.BatchNorm1d(12)
    )
    return nn.Sequential(layers)


def batch(step, size=32):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(size, 20, generator=generator), torch.randint(10, (size,), generator=generator)


def loss_of(model, step, size=32):
    x, y = batch(step, size)
    return nn.functional.cross_entropy(model(x), y)


def train(model, optimizer, steps, each=lambda step: None):
    for step in range(1, steps + 1):
        loss_of(model, step).backward()
        optimizer.step()
        optimizer.zero_grad()
        each(step)


def row_of(record, name):
    (row,) = (row for row in record.rows() if row["parameter"] == name)
    return row


def hooks_of(optimizer):
    return len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks)


# --- What is recorded -----------------------------------------------------------------------------------------------


def test_figures_are_those_of_the_observed_steps():
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    start = {name: each.detach().double().clone() for name, each in model.named_parameters()}
    expected = {name: [] for name in start}
    with bbnet.watch(model, optimizer, every=3) as watched:
        for step in range(1, 9):  # 1, 4 and 7 are observed
            loss_of(model, step).backward()
            before = {name: each.detach().double().clone() for name, each in model.named_parameters()}
            gradients = {name: each.grad.double().clone() for name, each in model.named_parameters()}
            optimizer.step()
            if step in (1, 4, 7):
                for name, each in model.named_parameters():
                    expected[name].append((gradients[name], each.detach().double() - before[name], before[name]))
            optimizer.zero_grad()
    assert (watched.steps, watched.observations) == (8, 3)
    for name, parameter in model.named_parameters():
        row, seen = row_of(watched, name), expected[name]

        def mean(figure, seen=seen):
            return pytest.approx(sum(float(figure(*each)) for each in seen) / len(seen), rel=1e-4, abs=1e-9)

        assert row["gradient_norm"] == mean(lambda g, u, w: g.norm())
        assert row["gradient_norm_largest"] == pytest.approx(max(float(g.norm()) for g, _, _ in seen), rel=1e-4)
        assert row["gradient_rms"] == mean(lambda g, u, w: g.square().mean().sqrt())
        assert row["gradient_mean"] == mean(lambda g, u, w: g.mean())
        assert row["gradient_largest"] == pytest.approx(max(float(g.abs().max()) for g, _, _ in seen), rel=1e-4)
        assert row["gradient_zero_share"] == mean(lambda g, u, w: (g == 0).double().mean())
        assert row["update_norm"] == mean(lambda g, u, w: u.norm())
        assert row["update_rms"] == mean(lambda g, u, w: u.square().mean().sqrt())
        assert row["update_largest"] == pytest.approx(max(float(u.abs().max()) for _, u, _ in seen), rel=1e-4)
        if float(seen[0][2].norm()) > 0:  # the bias of the norm starts at 0
            assert row["update_ratio"] == mean(lambda g, u, w: u.norm() / w.norm())
        change = parameter.detach().double() - start[name]
        assert row["change_norm"] == pytest.approx(float(change.norm()), rel=1e-5)
        assert row["change_largest"] == pytest.approx(float(change.abs().max()), rel=1e-5)
        assert row["change_rms"] == pytest.approx(float(change.square().mean().sqrt()), rel=1e-5)
        assert row["observations"] == 3
        assert row["updates"] == sum(float(u.abs().max()) > 1e-8 for _, u, _ in seen)
        shown = [each["gradient_norm"] for each in watched.series() if each["parameter"] == name]
        assert shown == pytest.approx([float(g.norm()) for g, _, _ in seen], rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions_are_read_in_float32_or_better(dtype):
    model = nn.Linear(300, 300, bias=False, dtype=dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with bbnet.watch(model, optimizer) as watched:
        model.weight.grad = torch.full_like(model.weight, 1e-3)
        before = model.weight.detach().clone()
        optimizer.step()
    (row,) = watched.rows()
    assert row["gradient_rms"] == pytest.approx(float(model.weight.grad[0, 0]), rel=1e-3)
    update = model.weight.detach().double() - before.double()
    assert row["update_norm"] == pytest.approx(float(update.norm()), rel=1e-3)


def test_one_step_is_enough_for_every_table(tmp_path, capsys):
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with bbnet.watch(model, optimizer) as watched:
        train(model, optimizer, 1)
    watched.to_csv(tmp_path / "flow.csv")
    watched.to_json(tmp_path / "flow.json")
    watched.report()
    assert "Gradient flow in 1 of 1 steps" in capsys.readouterr().out
    assert [row["first_step"] for row in watched.series()] == [1] * 6


def test_without_any_step_the_report_says_so():
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with bbnet.watch(model, optimizer) as watched:
        assert watched.text().splitlines()[-1].startswith("not observed: 6 tensors: first.weight")
    assert watched.verdicts() == [] and watched.series() == []


def test_a_missing_gradient_is_no_zero_and_states_are_told_apart():
    model = build()
    model.register_parameter("unused", nn.Parameter(torch.ones(3)))
    model.register_parameter("frozen", nn.Parameter(torch.ones(3), requires_grad=False))
    model.register_parameter("forgotten", nn.Parameter(torch.ones(3)))
    optimizer = torch.optim.SGD([each for name, each in model.named_parameters() if name != "forgotten"], lr=0.1)
    with bbnet.watch(model, optimizer, every=1) as watched:
        train(model, optimizer, 4)
    rows = {row["parameter"]: row for row in watched.rows()}
    unused = rows["unused"]
    assert (unused["gradient_missing"], unused["gradient_norm"], unused["vanishing_share"]) == (4, None, None)
    assert unused["verdicts"] == "never updated; no gradient"
    assert (rows["frozen"]["status"], rows["frozen"]["verdicts"]) == ("frozen", "")
    assert (rows["forgotten"]["status"], rows["forgotten"]["verdicts"]) == ("not in the optimizer", "")
    assert "not in the optimizer: 1 tensor: forgotten" in watched.text()


def test_without_any_gradient_there_are_findings_or_nothing_is_watched():
    model = nn.Linear(3, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with bbnet.watch(model, optimizer, every=1) as watched:
        for _ in range(12):
            optimizer.step()
    assert [row["verdicts"] for row in watched.rows()] == ["never updated; no gradient"] * 2
    model.requires_grad_(False)
    with bbnet.watch(model, optimizer, every=1) as watched:
        optimizer.step()
    assert [row["status"] for row in watched.rows()] == ["frozen"] * 2


def test_parameters_are_observed_while_they_are_trained():
    """As in fine-tuning that frees layers later: of those that are frozen, nothing is copied."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model[1].parameters(), lr=0.01)
    with bbnet.watch(model, optimizer, every=1) as watched:
        for step in range(1, 10):
            if step == 4:
                start = model[0].weight.detach().clone()
                model[0].requires_grad_(True)
                optimizer.add_param_group({"params": list(model[0].parameters())})
            if step == 7:
                model[1].requires_grad_(False)
                optimizer.zero_grad()
            (model(torch.ones(4, 3)) - 1).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            assert len(list(watched._copies)) == (2, 4, 2)[(step - 1) // 3]
    rows = {row["parameter"]: row for row in watched.rows()}
    assert [rows[name]["observations"] for name in rows] == [6] * 4
    assert rows["0.weight"]["change_norm"] == pytest.approx(float((model[0].weight.detach() - start).norm()), rel=1e-5)


class Unusual(nn.Module):
    """Has an empty and complex parameters, a tied weight, and one of whole numbers."""

    def __init__(self):
        super().__init__()
        self.empty = nn.Linear(4, 0)
        self.turn = nn.Linear(4, 4, bias=False, dtype=torch.complex64)
        self.read = nn.Linear(4, 4, bias=False)
        self.again = nn.Linear(4, 4, bias=False)
        self.again.weight = self.read.weight
        self.codes = nn.Parameter(torch.ones(3, dtype=torch.int8), requires_grad=False)

    def forward(self, x):
        return self.again(self.read(self.turn(x.to(torch.complex64)).abs())).sum() + self.empty(x).sum()


def test_unusual_parameters_are_observed_or_named():
    torch.manual_seed(0)
    model = Unusual()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    with bbnet.watch(model, optimizer, every=1) as watched:
        model(torch.randn(5, 4)).backward()
        model.turn.weight.grad[:, 1] = 0.0
        model.turn.weight.grad[:, 2].real = 0.0
        optimizer.step()
    rows = {row["parameter"]: row for row in watched.rows()}
    assert {name: row["status"] for name, row in rows.items()} == {
        "codes": "frozen",
        "empty.weight": "empty",
        "empty.bias": "empty",
        "turn.weight": "watched",
        "read.weight": "watched",
    }
    turn, gradient = rows["turn.weight"], torch.view_as_real(model.turn.weight.grad)
    assert (turn["entries"], turn["units"]) == (32, 4)  # a complex entry counts as two
    assert turn["gradient_norm"] == pytest.approx(float(gradient.norm()), rel=1e-5)
    assert turn["gradient_rms"] == pytest.approx(float(gradient.square().mean().sqrt()), rel=1e-5)
    assert turn["gradient_zero_share"] == pytest.approx(12 / 32)
    assert turn["update_norm"] == pytest.approx(0.001 * turn["gradient_norm"], rel=1e-3)
    assert "empty: 2 tensors: empty.weight, empty.bias" in watched.text()


def test_sparse_gradients_are_read():
    model = nn.Embedding(50, 4, sparse=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with bbnet.watch(model, optimizer) as watched:
        model(torch.tensor([1, 1, 7])).sum().backward()
        optimizer.step()
    (row,) = watched.rows()
    assert row["gradient_norm"] == pytest.approx((4 * (2**2 + 1)) ** 0.5)
    assert row["gradient_zero_share"] == pytest.approx(48 / 50)


@pytest.mark.parametrize("kind", ["sgd", "adamw_fused"])
def test_under_a_grad_scaler_gradients_are_unscaled_and_skipped_steps_unseen(kind):
    """The fused optimiser runs its hooks on skipped steps too. Scales are powers of two, so figures are the same."""
    rows = []
    for scale in (None, 2.0**10):
        model = build().eval()  # without dropout
        optimizer = OPTIMIZERS[kind](model.parameters())
        scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
        with bbnet.watch(model, optimizer, every=2) as watched:
            for step in range(1, 9):
                if scale is not None and step in (1, 4):  # a step ahead that overflows
                    scaler.scale(loss_of(model, step) * float("inf")).backward()
                    scaler.step(optimizer)
                    scaler.update(new_scale=scale)
                    optimizer.zero_grad()
                scaler.scale(loss_of(model, step)).backward()
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
        assert all(row["gradient_non_finite"] == 0 for row in watched.rows())
        rows.append(watched.rows())
    if kind == "sgd":
        for plain, scaled in zip(*rows, strict=True):
            assert {key: scaled[key] for key in plain} == pytest.approx(plain, rel=1e-5)
    else:  # skipped steps count as steps, so that others are observed
        for plain, scaled in zip(*rows, strict=True):
            assert scaled["observations"] >= 4
            assert scaled["gradient_norm_largest"] == pytest.approx(plain["gradient_norm_largest"], rel=0.5)


def test_accumulated_gradients_are_those_of_the_joint_batch():
    norms = []
    for parts in (1, 4):
        model = build().eval().double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with bbnet.watch(model, optimizer, every=1) as watched:
            for step in range(1, 4):
                x, y = batch(step)
                for inputs, labels in zip(x.double().chunk(parts), y.chunk(parts), strict=True):
                    (nn.functional.cross_entropy(model(inputs), labels) / parts).backward()
                optimizer.step()
                optimizer.zero_grad()
        assert watched.observations == 3
        norms.append([row["gradient_norm"] for row in watched.rows()])
    assert norms[0] == pytest.approx(norms[1], rel=1e-9)


class Timed(torch.optim.AdamW):
    """Its step calls that of the base class, so that hooks run twice."""

    def step(self, closure=None):
        return super().step(closure)


def test_a_step_that_calls_that_of_its_base_class_counts_once():
    model = build()
    optimizer = Timed(model.parameters(), lr=0.01)
    with bbnet.watch(model, optimizer, every=2) as watched:
        train(model, optimizer, 5)
    assert (watched.steps, watched.observations) == (5, 3)


# --- Masked and binary weights --------------------------------------------------------------------------------------


def test_pruned_entries_do_not_count_and_refreshes_are_no_updates():
    """RigL at learning rate 0: masks move at every step, and the optimiser moves nothing."""
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    slabs = [bbnet.Slab("first", "in", "first")]
    sparsifier = bbnet.sparsify(
        model, optimizer, slabs, {"algorithm": "rigl", "side": "in"}, 0.25, total_steps=40, every=1
    )
    masks = set()
    with bbnet.watch(model, optimizer, every=1) as watched:
        for step in range(1, 21):
            loss_of(model, step).backward()
            gradient = model.first.weight.grad.clone()
            optimizer.step()
            optimizer.zero_grad()
            masks.add(sparsifier.masks()["first"].numpy().tobytes())
    assert len(masks) > 10
    row = row_of(watched, "first.weight")
    assert (row["live"], row["entries"]) == (80, 320)
    assert row["update_largest"] == 0 and row["updates"] == 0
    assert row["verdicts"].startswith("never updated; stuck")
    assert row["gradient_rms"] == pytest.approx(row["gradient_norm"] / 80**0.5)
    last = [each for each in watched.series() if each["parameter"] == "first.weight"][-1]
    assert last["gradient_norm"] == pytest.approx(float(gradient.norm()), rel=1e-5)


def test_a_pruned_tensor_is_not_ill_and_zeros_of_pruned_weights_do_not_count():
    model = build().eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    slabs = [bbnet.Slab("second", "out", "first")]
    sparsifier = bbnet.sparsify(
        model, optimizer, slabs, {"algorithm": "magnitude", "side": "out"}, 0.1, total_steps=60, ramp_end=0, every=1
    )
    with bbnet.watch(model, optimizer, every=1) as watched:
        train(model, optimizer, 40)
    row = row_of(watched, "second.weight")
    assert sparsifier.masks()["second"].float().mean() < 0.15
    assert row["live"] == int(sparsifier.masks()["second"].sum())
    assert row["gradient_zero_share"] < 0.05
    assert row["verdicts"] == ""


@pytest.mark.parametrize("later", [False, True])
def test_a_sparsifier_that_comes_before_or_later_is_observed_alike(later):
    """Its hooks run ahead of those of the watch from the second step on."""
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watched = bbnet.watch(model, optimizer, every=1)
    if later:
        watched.start()
    sparsifier = bbnet.sparsify(model, optimizer, [bbnet.Slab("first", "in", "first")], "sp_in", 0.25, total_steps=40)
    if not later:
        watched.start()
    train(model, optimizer, 10)
    watched.stop()
    assert watched.observations == 10 - later
    live = row_of(watched, "first.weight")["live"]
    before = watched.steps - 1
    assert live == sum(row["connections"] for row in sparsifier.refreshes if row["step"] == before)


def test_of_binary_layers_the_latent_weight_is_watched():
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    binarizer = bbnet.binarize(model, optimizer, ["first"])
    start = binarizer.latent_weights()["first"]
    before, norms = start, []
    with bbnet.watch(model, optimizer, every=1) as watched:
        for step in range(1, 6):
            loss_of(model, step).backward()
            optimizer.step()
            optimizer.zero_grad()
            after = binarizer.latent_weights()["first"]
            norms.append(float((after - before).norm()))
            before = after
    row = row_of(watched, "first.weight")
    assert row["update_norm"] == pytest.approx(sum(norms) / 5, rel=1e-4)
    assert row["change_norm"] == pytest.approx(float((after - start).norm()), rel=1e-5)
    assert 0 < row["change_largest"] < 2 * binarizer.half_ranges["first"]


def test_a_model_is_watched_of_which_only_a_part_is_binary_or_masked():
    model = nn.Sequential(build(), nn.Linear(12, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    bbnet.sparsify(model[0], optimizer, [bbnet.Slab("first", "in", "first")], "sp_in", 0.5, total_steps=40)
    binarizer = bbnet.binarize(model[0], optimizer, ["second"])
    before = binarizer.latent_weights()["second"]
    with bbnet.watch(model, optimizer, every=1) as outer, bbnet.watch(model[1], optimizer, every=1) as inner:
        train(model, optimizer, 3)
    row = row_of(outer, "0.second.weight")
    assert row["change_norm"] == pytest.approx(float((binarizer.latent_weights()["second"] - before).norm()), rel=1e-5)
    assert row_of(outer, "0.first.weight")["live"] < 320
    assert row_of(outer, "1.weight")["update_norm"] == row_of(inner, "weight")["update_norm"]


def test_a_latent_weight_at_its_bound_that_is_pushed_outwards_is_stuck():
    model = nn.Linear(4, 4, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    binarizer = bbnet.binarize(model, optimizer, "all")
    with binarizer.latent(), torch.no_grad():
        model.weight.fill_(binarizer.half_ranges.get("", 1.0))
    with bbnet.watch(model, optimizer, every=1) as watched:
        for _ in range(8):
            (-model.weight.sum()).backward()
            optimizer.step()
            optimizer.zero_grad()
    (row,) = watched.rows()
    assert row["stuck"] == 8 and row["moves"] == 0


# --- Training is the same -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("acts", ["plain", "sparse", "sparse and binary"])
def test_training_is_the_same_to_the_bit(kind, acts, same):
    if kind == "lbfgs" and acts != "plain":
        pytest.skip("is not supported by sparsify and binarize")
    states = []
    for watches in (False, True):
        model = build()
        optimizer = OPTIMIZERS[kind](model.parameters())
        parts = []
        if acts != "plain":
            slabs = [bbnet.Slab("first", "in", "first")]
            parts.append(
                bbnet.sparsify(model, optimizer, slabs, {"algorithm": "rigl", "side": "in"}, 0.25, total_steps=30)
            )
        if acts == "sparse and binary":
            parts.append(bbnet.binarize(model, optimizer, ["first", "second"], stochastic=True))
        keys, hooks = list(model.state_dict()), hooks_of(optimizer)
        watched = bbnet.watch(model, optimizer, every=2)
        if watches:
            watched.start()
        for step in range(1, 21):
            model.train(step % 3 != 0)

            def closure(step=step, model=model, optimizer=optimizer):
                optimizer.zero_grad()
                for micro in range(2):
                    (loss_of(model, 2 * step + micro) / 2).backward()
                return 0.0

            if kind == "lbfgs" or step % 4 == 0:
                optimizer.step(closure)
            else:
                closure()
                optimizer.step()
        modes = [module.training for module in model.modules()]
        if watches:
            watched.stop()
            assert watched.observations == 10
        assert hooks_of(optimizer) == hooks and list(model.state_dict()) == keys
        states.append(
            (
                model.state_dict(),
                optimizer.state_dict(),
                [each.state_dict() for each in parts],
                torch.get_rng_state(),
                modes,
            )
        )
    assert same(*states)


def test_training_with_autocast_and_a_scaler_is_the_same_to_the_bit(same):
    states = []
    for watches in (False, True):
        model = build()
        optimizer = OPTIMIZERS["adamw_fused"](model.parameters())
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        watched = bbnet.watch(model, optimizer, every=1)
        if watches:
            watched.start()
        for step in range(1, 13):
            x, y = batch(step)
            with torch.autocast("cpu", dtype=torch.float16):
                loss = nn.functional.cross_entropy(model(x).float(), y)
            scaler.scale(loss * (float("inf") if step in (3, 7) else 1)).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        states.append((model.state_dict(), optimizer.state_dict(), scaler.state_dict()))
        assert not watches or watched.observations == 10
    assert same(*states)


def test_under_torch_compile_training_is_the_same_and_nothing_is_compiled_again(same):
    states = []
    for watches in (False, True):
        torch.compiler.reset()
        torch._dynamo.utils.counters.clear()
        model = build()
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        watched = bbnet.watch(compiled, optimizer, every=2)
        for step in range(1, 9):
            if step == 4 and watches:
                watched.start()
            nn.functional.cross_entropy(compiled(batch(step)[0]), batch(step)[1]).backward()
            optimizer.step()
            optimizer.zero_grad()
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
        assert [row["parameter"] for row in watched.rows()] == [name for name, _ in model.named_parameters()]
        states.append((model.state_dict(), optimizer.state_dict()))
    torch.compiler.reset()
    assert same(*states)


def test_a_step_that_is_compiled_is_observed():
    rows = []
    for compiles in (False, True):
        model = build().eval()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        step = torch.compile(optimizer.step, backend="eager") if compiles else optimizer.step
        with bbnet.watch(model, optimizer, every=2) as watched:
            for number in range(1, 6):
                loss_of(model, number).backward()
                step()
                optimizer.zero_grad()
        assert (watched.steps, watched.observations) == (5, 3)
        rows.append(watched.rows())
    torch.compiler.reset()
    for plain, compiled in zip(*rows, strict=True):
        assert compiled == pytest.approx(plain, rel=1e-5, abs=1e-8)


@pytest.fixture
def group_of_one(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_under_ddp_one_rank_is_watched_as_without(group_of_one, same):
    runs = []
    for wraps in (False, True):
        model = build()
        outer = DistributedDataParallel(model, gradient_as_bucket_view=True) if wraps else model
        optimizer = torch.optim.AdamW(outer.parameters(), lr=0.01)
        with bbnet.watch(outer, optimizer, every=2) as watched:
            for step in range(1, 8):
                loss_of(outer, step).backward()
                optimizer.step()
                optimizer.zero_grad()
        runs.append((model.state_dict(), watched.rows(), watched.series()))
    assert same(*runs)


def test_hooks_end_with_an_error_too_and_a_watch_starts_once():
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watched = bbnet.watch(model, optimizer)
    with pytest.raises(ZeroDivisionError), watched:
        train(model, optimizer, 2)
        raise ZeroDivisionError
    assert hooks_of(optimizer) == 0
    other = bbnet.watch(model, optimizer)
    with pytest.raises(RuntimeError), other:
        train(model, optimizer, 1)
        model.norm.bias.data = torch.ones(5)
    assert hooks_of(optimizer) == 0
    model.norm.bias.data = torch.ones(12)
    with pytest.raises(RuntimeError, match="started before"):
        watched.start()
    parameters = dict(model.named_parameters())
    train(model, optimizer, 1)
    assert all(parameters[name] is each for name, each in model.named_parameters())


def test_two_watches_see_the_same():
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    bbnet.sparsify(model, optimizer, [bbnet.Slab("first", "in", "first")], "sp_in", 0.5, total_steps=40)
    with bbnet.watch(model, optimizer, every=1) as one, bbnet.watch(model, optimizer, every=1) as other:
        train(model, optimizer, 6)
    assert one.rows() == other.rows() and one.observations == 6


@pytest.mark.parametrize("every", [0, -1, 2.5, True])
def test_intervals_that_are_no_number_of_steps_are_refused(every):
    model = build()
    with pytest.raises(ValueError, match="every must be a whole number"):
        bbnet.watch(model, torch.optim.SGD(model.parameters(), lr=0.1), every=every)


def test_what_cannot_be_watched_is_refused_by_name():
    model = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(ValueError, match=r"parameter 0\.weight has no shape yet"):
        bbnet.watch(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="no parameters"):
        bbnet.watch(nn.ReLU(), torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1))
    watched = bbnet.watch(build(), torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1))
    with pytest.raises(TypeError, match="cannot be copied"):
        copy.deepcopy(watched)


# --- Memory and states ----------------------------------------------------------------------------------------------


def memory_over(steps, early):
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x = torch.ones(2, 4)
    with bbnet.watch(model, optimizer, every=1) as watched:
        for step in range(1, steps + 1):
            model(x).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            if step == early:
                tracemalloc.start()
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0]  # by allocations since the early step that are still alive
        tracemalloc.stop()
    assert watched.observations == steps
    assert len(watched.series()) <= 2 * BINS
    return grown


def test_memory_does_not_grow_with_the_number_of_steps():
    assert memory_over(1500, 500) < 20_000


@pytest.mark.thorough
def test_memory_is_flat_over_10000_steps():
    assert memory_over(10_000, 1000) < 20_000


def test_series_cover_all_steps_in_at_most_64_bins():
    model = nn.Linear(2, 2, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with bbnet.watch(model, optimizer, every=1) as watched:
        for step in range(1, 301):
            model.weight.grad = torch.full_like(model.weight, float(step))
            optimizer.step()
    rows = watched.series()
    assert BINS // 2 < len(rows) <= BINS
    ends = [(row["first_step"], row["last_step"]) for row in rows]
    assert ends[0][0] == 1 and ends[-1][1] == 300
    assert all(last + 1 == first for (_, last), (first, _) in zip(ends, ends[1:], strict=False))
    for row in rows:
        middle = (row["first_step"] + row["last_step"]) / 2
        assert row["gradient_rms"] == pytest.approx(middle) and row["gradient_norm"] == pytest.approx(2 * middle)


def watched_for(steps, factor=1.0, every=1):
    model = nn.Linear(3, 2, bias=False)
    nn.init.ones_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with bbnet.watch(model, optimizer, every=every) as watched:
        for step in range(1, steps + 1):
            model.weight.grad = torch.full_like(model.weight, factor * step)
            model.weight.grad[1] = 0.0
            if factor == 2.0 and step == steps:
                model.weight.grad[1] = 1.0
            optimizer.step()
    return watched


def test_states_survive_a_file_and_ranks_are_joined():
    first, second = watched_for(150), watched_for(140, 2.0)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    loaded = Record.of_state(torch.load(file, weights_only=True))
    assert loaded.rows() == first.rows() and loaded.series() == first.series()
    joined = Record.merged([first.state_dict(), second.state_dict()])
    (row,), (one,), (other,) = joined.rows(), first.rows(), second.rows()
    assert row["observations"] == 290
    both = (one["gradient_norm"] * 150 + other["gradient_norm"] * 140) / 290
    assert row["gradient_norm"] == pytest.approx(both)
    assert row["gradient_largest"] == 280.0
    assert (one["dead_units"], other["dead_units"], row["dead_units"]) == (1, 0, 0)
    assert joined.series()[-1]["last_step"] == 150
    total = sum((row["last_step"] - row["first_step"] + 1) * row["gradient_norm"] for row in loaded.series())
    assert total == pytest.approx(one["gradient_norm"] * 150)


def test_what_is_no_state_of_the_same_training_is_refused():
    with pytest.raises(ValueError, match="not a state of bbnet.watch"):
        Record.of_state({"weight": 1})
    with pytest.raises(ValueError, match="no states"):
        Record.merged([])
    with pytest.raises(ValueError, match="every=1 and every=2"):
        Record.merged([watched_for(2).state_dict(), watched_for(2, every=2).state_dict()])
    model = build()
    other = bbnet.watch(model, torch.optim.SGD(model.parameters(), lr=0.1), every=1)
    with pytest.raises(ValueError, match="they differ in weight"):
        Record.merged([watched_for(2).state_dict(), other.state_dict()])
