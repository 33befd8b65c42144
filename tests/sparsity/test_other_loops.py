"""Training loops of others: wrapped optimisers, gradients and weights from elsewhere, copies, and what stays alive."""

import copy
import gc
import pickle
import warnings
import weakref

import pytest
import torch
from torch import nn

import bbnet
from bbnet.sparsity.masked_weight import SQUARE_OF_PRUNED, SQUARES, MaskedWeight

METHODS = ["sp_in", "magnitude", {"algorithm": "rigl"}]
INPUTS = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
TARGETS = torch.randint(4, (64,), generator=torch.Generator().manual_seed(1))


class Wrapper:
    """As accelerate's AcceleratedOptimizer: holds the optimizer, and steps it."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.param_groups = optimizer.param_groups

    def step(self):
        self.optimizer.step()

    def zero_grad(self):
        self.optimizer.zero_grad()


class Sam(torch.optim.Optimizer):
    """Sharpness-aware minimisation with two steps, as its common implementation."""

    def __init__(self, parameters, **options):
        super().__init__(parameters, {"rho": 0.05, **options})
        self.base_optimizer = torch.optim.SGD(self.param_groups, lr=0.1)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self):
        for group in self.param_groups:
            for weight in group["params"]:
                self.state[weight]["old"] = weight.clone()
                weight.add_(0.05 * weight.grad)
        self.zero_grad()

    @torch.no_grad()
    def second_step(self):
        for group in self.param_groups:
            for weight in group["params"]:
                weight.copy_(self.state[weight]["old"])
        self.base_optimizer.step()
        self.zero_grad()


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))


def loss_of(model):
    return nn.functional.cross_entropy(model(INPUTS), TARGETS)


def sparsified(method="sp_in", optimizer=None, steps=20, every=2, budget=0.25):
    model = network()
    optimizer = (optimizer or (lambda weights: torch.optim.AdamW(weights, lr=0.01)))(model.parameters())
    slabs = [bbnet.Slab("0", "in", "0")]
    return model, optimizer, bbnet.sparsify(model, optimizer, slabs, method, budget, total_steps=steps, every=every)


def train(model, optimizer, steps):
    for _ in range(steps):
        loss_of(model).backward()
        optimizer.step()
        optimizer.zero_grad()


def share_of(model) -> float:
    return float((model[0].weight != 0).float().mean())


# Wrapped optimisers.


@pytest.mark.parametrize("wrap", [Wrapper, lambda optimizer: Wrapper(Wrapper(optimizer))])
def test_a_wrapped_optimizer_is_found_by_its_attribute(wrap):
    model, optimizer, sparsifier = sparsified(optimizer=lambda weights: wrap(torch.optim.SGD(weights, lr=0.1)))
    train(model, optimizer, 20)
    assert sparsifier.step == 20
    assert share_of(model) == 0.25


def test_two_calls_of_sam_are_one_step():
    model, optimizer, sparsifier = sparsified(optimizer=Sam)
    for _ in range(20):
        loss_of(model).backward()
        optimizer.first_step()
        loss_of(model).backward()
        optimizer.second_step()
    assert sparsifier.step == 20
    assert share_of(model) == 0.25


def test_what_holds_no_optimizer_is_refused():
    model = network()
    with pytest.raises(ValueError, match="object is no torch.optim.Optimizer and holds none"):
        bbnet.sparsify(model, object(), [bbnet.Slab("0", "in", "0")], total_steps=20)


@pytest.mark.parametrize("method", [*METHODS, "topk"])
def test_a_loop_that_steps_another_optimizer_is_warned_and_ended(method):
    model, _, sparsifier = sparsified(method)
    other = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match="20 gradients came without a step of the AdamW"):
        train(model, other, 25)
    with pytest.raises(RuntimeError, match="100 gradients came without a step"):
        train(model, other, 80)
    assert sparsifier.step == 0


def test_accumulation_and_skipped_steps_are_not_warned_of():
    model, optimizer, _ = sparsified()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(200):
            loss_of(model).backward()
            if step % 40 == 39:
                optimizer.step()
                optimizer.zero_grad()
        for step in range(60):
            loss_of(model).backward()
            if step % 10 == 9:
                optimizer.step()
            optimizer.zero_grad()


# Gradients from elsewhere.


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("how", ["autograd.grad", "noise", "functional"])
def test_gradients_that_backward_did_not_make_are_masked(method, how):
    model, optimizer, sparsifier = sparsified(method, optimizer=lambda weights: torch.optim.SGD(weights, lr=0.1))
    weights = dict(model.named_parameters())
    for _ in range(20):
        if how == "noise":
            loss_of(model).backward()
            for weight in weights.values():
                weight.grad = weight.grad + 0.1
        elif how == "functional":
            copies = {name: weight.detach().clone().requires_grad_() for name, weight in weights.items()}
            outputs = torch.func.functional_call(model, copies, INPUTS)
            nn.functional.cross_entropy(outputs, TARGETS).backward()
            for name, weight in weights.items():
                weight.grad = copies[name].grad
        else:
            gradients = torch.autograd.grad(loss_of(model), list(weights.values()))
            for weight, gradient in zip(weights.values(), gradients, strict=True):
                weight.grad = gradient
        optimizer.step()
        optimizer.zero_grad()
    assert sparsifier.step == 20
    assert share_of(model) == 0.25


# Weights from elsewhere.


def test_a_dense_checkpoint_in_mid_run_is_found_with_its_remedy():
    model, optimizer, sparsifier = sparsified()
    train(model, optimizer, 10)
    model.load_state_dict(network().state_dict())
    with pytest.raises(ValueError, match=r"slab 0: a pruned weight is not 0.*sparsifier.apply_to\(model\)"):
        train(model, optimizer, 2)
    sparsifier.apply_to(model)
    train(model, optimizer, 10)


@pytest.mark.parametrize("how", ["assign", "layer", "gone"])
def test_another_weight_is_found_at_the_next_refresh(how):
    model, optimizer, _ = sparsified()
    train(model, optimizer, 4)
    if how == "assign":
        model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    else:
        model[0] = nn.Linear(16, 32) if how == "layer" else nn.Identity()
    with pytest.raises(ValueError, match="slab 0: the model has another weight or layer there now"):
        for _ in range(2):
            optimizer.step()


# Copies, and what stays alive.


@pytest.mark.parametrize("duplicate", [copy.deepcopy, copy.copy, pickle.dumps])
def test_a_copy_of_a_sparsifier_is_refused_and_names_its_state(duplicate):
    model, optimizer, sparsifier = sparsified()
    with pytest.raises(TypeError, match=r"state_dict\(\)"):
        duplicate([model, optimizer, sparsifier] if duplicate is not copy.copy else sparsifier)


@pytest.mark.parametrize("method", [*METHODS, "topk", "dense"])
def test_a_training_whose_references_are_dropped_is_freed(method):
    made = sparsified(method, budget=1.0 if method == "dense" else 0.25)
    train(*made[:2], 6)
    alive = [weakref.ref(each) for each in (*made, made[0][0].weight)]
    del made
    gc.collect()
    assert [reference() for reference in alive] == [None] * 4


# States in any order.


@pytest.mark.parametrize(
    "method", [*METHODS, {"algorithm": "set"}, {"algorithm": "wanda"}, {"algorithm": "random"}, "sp_out", "topk"]
)
@pytest.mark.parametrize("order", ["mos", "mso", "oms", "osm", "smo", "som"])
def test_a_rollback_in_any_order_ends_in_the_same_bits(method, order):
    def build():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        side = "out" if method == "sp_out" else "in"
        slab = bbnet.Slab("2", side, "0" if side == "out" else "2")
        return model, optimizer, bbnet.sparsify(model, optimizer, [slab], method, 0.25, total_steps=40, every=2)

    model, optimizer, sparsifier = build()
    train(model, optimizer, 9)
    parts = {"m": model, "o": optimizer, "s": sparsifier}
    saved = {key: copy.deepcopy(part.state_dict()) for key, part in parts.items()}
    train(model, optimizer, 25)
    straight = copy.deepcopy(model.state_dict())
    for key in order:
        parts[key].load_state_dict(copy.deepcopy(saved[key]))
    train(model, optimizer, 25)
    assert all(torch.equal(model.state_dict()[name], weight) for name, weight in straight.items())


def test_a_trainer_resumed_without_the_sparsifiers_state_is_warned():
    model, optimizer, _ = sparsified()
    train(model, optimizer, 8)
    saved = copy.deepcopy(optimizer.state_dict())
    model, optimizer, sparsifier = sparsified()
    optimizer.load_state_dict(saved)
    with pytest.warns(UserWarning, match="load also the sparsifier's state_dict"):
        train(model, optimizer, 1)


# What a unit is.


def test_a_convolution_without_a_batch_axis_has_its_units_on_the_first():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Conv2d(12, 4, 3))
    twin = copy.deepcopy(model)
    images = torch.randn(8, 20, 20, generator=torch.Generator().manual_seed(0))
    masks = []
    for each, inputs in ((model, images), (twin, images[None])):
        optimizer = torch.optim.SGD(each.parameters(), lr=0.01)
        slab = bbnet.Slab("0", "in", "0")
        sparsifier = bbnet.sparsify(each, optimizer, [slab], "sp_in", 0.5, total_steps=20, every=2)
        for _ in range(16):
            each(inputs).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        masks.append(sparsifier.masks()["0"])
    assert torch.equal(*masks)


def test_inference_mode_between_steps_changes_nothing():
    masks = []
    for infers in (False, True):
        model, optimizer, sparsifier = sparsified()
        for _ in range(16):
            if infers:
                with torch.inference_mode():
                    model(INPUTS)
            train(model, optimizer, 1)
        masks.append(sparsifier.masks()["0"])
    assert torch.equal(*masks)


@pytest.mark.parametrize(
    "method",
    ["sp_in", {"algorithm": "set"}, {"algorithm": "random"}, {"algorithm": "budgeted_broadcast", "law": "shuffled"}],
)
def test_another_default_device_changes_nothing(method):
    model, optimizer, sparsifier = sparsified(method, optimizer=lambda weights: torch.optim.SGD(weights, lr=0.1))
    torch.set_default_device("meta")
    try:
        train(model, optimizer, 16)
    finally:
        torch.set_default_device(None)
    assert share_of(model) == pytest.approx(0.25, abs=0.2)
    assert sparsifier.step == 16


def test_a_slab_that_a_global_mask_empties_twice_has_no_churn():
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    with torch.no_grad():
        model[0].weight *= 1e-4
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    slabs = [bbnet.Slab("0", "in", "0"), bbnet.Slab("2", "in", "2")]
    method = {"algorithm": "magnitude", "distribution": "global"}
    sparsifier = bbnet.sparsify(model, optimizer, slabs, method, 0.25, total_steps=20, every=2, ramp_end=0)
    train(model, optimizer, 12)
    assert not sparsifier.masks()["0"].any()
    assert [row["churn"] for row in sparsifier.refreshes if row["slab"] == "0"][-1] == 0


def test_the_projection_of_an_attention_is_refused_at_once():
    model = nn.TransformerEncoderLayer(16, 2, 32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"slab self_attn.out_proj: the projection of an attention"):
        bbnet.sparsify(model, optimizer, [bbnet.Slab("self_attn.out_proj", "in", "self_attn.out_proj")], total_steps=20)


def test_the_public_names_are_listed():
    assert {"sparsify", "find_slabs", "export", "Slab", "Sparsifier", "allocate_degrees"} <= set(dir(bbnet))


def test_gradients_that_a_closure_changes_are_masked():
    model, optimizer, sparsifier = sparsified()

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        for weight in model.parameters():
            weight.grad.add_(0.1)
        return loss.detach()

    for step in range(20):
        assert float(optimizer.step(closure) if step % 2 else optimizer.step(closure=closure)) > 0
    assert int((model[0].weight != 0).sum()) == int(sparsifier.masks()["0"].sum()) == 32 * 16 // 4


def test_an_optimizer_in_a_private_attribute_is_found():
    """As in Lookahead of timm."""

    class Lookahead(torch.optim.Optimizer):
        def __init__(self, base):
            self._base_optimizer = base
            self.param_groups, self.state, self.defaults = base.param_groups, base.state, base.defaults

    model = network()
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    slabs = [bbnet.Slab("0", "in", "0")]
    assert bbnet.sparsify(model, Lookahead(inner), slabs, "magnitude", 0.5, total_steps=20).optimizer is inner


def test_batch_norms_kept_in_evaluation_mode_still_count():
    """Their units are on at other rates after a change, which the averages follow."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 16, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    sparsifier = bbnet.sparsify(model, optimizer, [bbnet.Slab("0", "in", "1")], "sp_in", 0.5, total_steps=20, every=2)
    model.train()
    model[1].eval()
    for sign in (-5.0, 5.0):
        with torch.no_grad():
            model[1].bias.fill_(sign)
        for _ in range(5):
            model(torch.randn(64, 8, 2, 2)).sum().backward()
            optimizer.step()
        rates, _ = sparsifier.on_rates.of(("1",))
        assert bool((rates < 0.1).all() if sign < 0 else (rates > 0.4).all())
    model.eval()
    seen = sparsifier.on_rates.since(("1",))[1].clone()
    model(torch.randn(64, 8, 2, 2))
    sparsifier.on_rates.fold()
    assert torch.equal(sparsifier.on_rates.since(("1",))[1], seen)


@pytest.mark.filterwarnings("ignore:.*nested tensors is in prototype stage")
def test_gates_act_inside_the_fast_path_of_a_transformer_encoder():
    """With padding, and in evaluation mode, it passes nested tensors."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    slabs = [bbnet.Slab(f"layers.{index}.linear1", "in", f"layers.{index}.linear1") for index in (0, 1)]
    bbnet.sparsify(model, optimizer, slabs, "topk", 0.25, total_steps=20, ramp_end=0.0, every=2)
    padded = torch.arange(7) >= torch.tensor([7, 4, 5])[:, None]
    inputs = torch.randn(3, 7, 16)
    for _ in range(2):
        model(inputs, src_key_padding_mask=padded).sum().backward()
        optimizer.step()
    with torch.no_grad():
        gated, plain = (model.train(mode)(inputs, src_key_padding_mask=padded) for mode in (False, True))
    torch.testing.assert_close(gated[~padded], plain[~padded])
    assert not gated[padded].any()


def test_layers_that_are_called_by_keyword_have_input_norms():
    class Keyword(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(16, 32), nn.Linear(32, 4)

        def forward(self, x):
            return self.last(torch.relu(self.first(input=x)))

    model = Keyword()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    slabs = [bbnet.Slab("first", "in", "first")]
    sparsifier = bbnet.sparsify(model, optimizer, slabs, "wanda", 0.25, total_steps=20, every=2)
    train(model, optimizer, 20)
    assert int(sparsifier.masks()["first"].sum()) == 32 * 16 // 4


@pytest.mark.parametrize("holds", [False, True])
def test_export_warns_of_an_unfinished_schedule(holds):
    """Whether or not the model holds its sparsifier as an attribute."""
    model, optimizer, sparsifier = sparsified()
    if holds:
        model.sparsifier = sparsifier
    train(model, optimizer, 6)
    with pytest.warns(UserWarning, match="the sparse phase is at step 6 of 20: its masks change until step 15"):
        bbnet.export(model)
    train(model, optimizer, 9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exported = bbnet.export(model)
    assert torch.equal(exported(INPUTS), model.eval()(INPUTS))
    assert not holds or (exported.sparsifier is None and model.sparsifier is sparsifier)


@pytest.mark.parametrize("method", [*METHODS, "topk"])
@pytest.mark.parametrize("same_optimizer", [False, True])
def test_a_cell_of_a_notebook_may_run_again(method, same_optimizer):
    """The second run finds the model sparsified by an object that nothing holds any more, and says so."""
    model, optimizer, sparsifier = sparsified(method)
    train(model, optimizer, 10)
    del sparsifier
    if not same_optimizer:
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    with pytest.warns(UserWarning, match="a sparsifier of this model, at step 10, is removed"):
        again = bbnet.sparsify(model, optimizer, [bbnet.Slab("0", "in", "0")], method, 0.25, total_steps=20, every=2)
    train(model, optimizer, 20)
    assert again.step == 20
    assert method == "topk" or int((model[0].weight != 0).sum()) == 32 * 16 // 4
    for _ in range(2):
        with pytest.raises(ValueError, match="already"):
            bbnet.sparsify(model, optimizer, [bbnet.Slab("0", "in", "0")], method, 0.25, total_steps=20, every=2)
    again.remove()
    bbnet.sparsify(model, optimizer, [bbnet.Slab("0", "in", "0")], method, 0.25, total_steps=20, every=2)


@pytest.mark.parametrize("method", METHODS)
def test_a_weight_average_over_moving_masks_warns_until_it_is_masked(method):
    model, optimizer, sparsifier = sparsified(method)
    averages = [torch.optim.swa_utils.AveragedModel(model) for _ in range(2)]
    for _ in range(10):
        train(model, optimizer, 2)
        for average in averages:
            average.update_parameters(model)
    with pytest.warns(UserWarning, match="non-zero weights at 0 where connections are pruned.*apply_to"):
        averages[0](INPUTS)
    sparsifier.apply_to(averages[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        averages[1](INPUTS)
        copy.deepcopy(model)(INPUTS)
        model(INPUTS)


@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated")
@pytest.mark.parametrize("method", [*METHODS, "topk"])
def test_a_live_model_is_not_scripted_and_its_export_is(method):
    model, optimizer, _sparsifier = sparsified(method)
    with pytest.raises(Exception, match="torch.jit.script cannot compile a model with hooks of bbnet"):
        torch.jit.script(model)
    train(model, optimizer, 20)
    if method != "topk":
        torch.jit.script(bbnet.export(model))


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.NAdam])
@pytest.mark.parametrize("method", METHODS)
def test_averages_of_squares_of_pruned_weights_are_no_zeros_and_change_nothing(method, optimizer, monkeypatch):
    """A CPU takes 30 times as long for the square root of 0."""
    runs = []
    for squares in (SQUARES, ()):
        monkeypatch.setattr("bbnet.sparsity.masked_weight.SQUARES", squares)
        model, used, sparsifier = sparsified(method, lambda weights: optimizer(weights, lr=0.01), steps=40)
        for _ in range(40):
            train(model, used, 1)
            (held,) = [value for key, value in used.state[model[0].weight].items() if key in SQUARES]
            pruned = held[~sparsifier.masks()["0"]]
            assert bool((pruned > 0).all() and (pruned <= SQUARE_OF_PRUNED).all() if squares else (pruned == 0).all())
        runs.append((model.state_dict(), sparsifier.masks()["0"]))
    assert all(torch.equal(runs[0][0][name], runs[1][0][name]) for name in runs[0][0])
    assert torch.equal(runs[0][1], runs[1][1]) and not runs[0][1].all()


@pytest.mark.parametrize("method", ["sp_in", "sp_out", "magnitude", "wanda", "set", "random", {"algorithm": "rigl"}])
def test_a_slab_weight_costs_at_most_six_bytes_and_a_refresh_the_scores_of_one_slab(method, monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 64))
    side = "out" if method == "sp_out" else "in"
    slabs = bbnet.find_slabs(model, side)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = bbnet.sparsify(model, optimizer, slabs, method, 0.25, total_steps=40, every=2)
    computed, compute = [], MaskedWeight.scores

    def scores(masked):
        assert not any(earlier() is not None for earlier in computed), "scores of another slab are still there"
        found = compute(masked)
        computed.append(weakref.ref(found))
        return found

    monkeypatch.setattr(MaskedWeight, "scores", scores)
    for _ in range(20):
        optimizer.zero_grad()
        model(torch.randn(32, 64)).square().mean().backward()
        optimizer.step()
    assert len(computed) >= 2 * len(slabs) or method == "random"
    for masked in sparsifier.weights:
        tensors = {id(each): each for each in vars(masked).values() if torch.is_tensor(each)}
        del tensors[id(masked.weight)]
        matrices = [each for each in tensors.values() if each.numel() >= masked.weight.numel()]
        assert sum(each.numel() * each.element_size() for each in matrices) <= 6 * masked.weight.numel()


@pytest.mark.parametrize("method", [*METHODS, "set", "wanda"])
def test_a_hook_registered_before_that_makes_the_step_in_the_backward_pass(method):
    """The masks and weights are those of a step after the backward pass."""
    runs = []
    for in_backward in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
        optimizer = torch.optim.SGD([model[0].weight], lr=0.1, momentum=0.9)

        def step(weight, optimizer=optimizer):
            optimizer.step()
            optimizer.zero_grad()

        if in_backward:
            model[0].weight.register_post_accumulate_grad_hook(step)
        slabs = [bbnet.Slab("0", "in", "0")]
        sparsifier = bbnet.sparsify(model, optimizer, slabs, method, 0.25, total_steps=40, every=2)
        for _ in range(40):
            loss_of(model).backward()
            if not in_backward:
                step(model[0].weight)
        assert sparsifier.step == 40
        runs.append((model[0].weight, sparsifier.masks()["0"], [row["regrown"] for row in sparsifier.refreshes]))
    assert torch.equal(runs[0][0], runs[1][0]) and torch.equal(runs[0][1], runs[1][1]) and runs[0][2] == runs[1][2]
    assert any(runs[0][2]) or method in ("magnitude", "wanda")


@pytest.mark.parametrize("method", ["sp_in", "wanda"])
def test_transforms_of_torch_func_count_what_plain_forward_passes_count(method):
    """grad of a functional call, and per-sample gradients by vmap, of which the mean is used."""
    figures = []
    for how in ("plain", "grad", "per sample"):
        model, optimizer, sparsifier = sparsified(method)
        named = dict(model.named_parameters())

        def loss(weights, inputs, targets, model=model):
            return nn.functional.cross_entropy(torch.func.functional_call(model, weights, (inputs,)), targets)

        detached = {name: weight.detach() for name, weight in named.items()}
        if how == "plain":
            loss_of(model).backward()
        else:
            if how == "grad":
                gradients = torch.func.grad(loss)(detached, INPUTS, TARGETS)
            else:
                each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
                gradients = {
                    name: every.mean(0) for name, every in each(detached, INPUTS[:, None], TARGETS[:, None]).items()
                }
            for name, weight in named.items():
                weight.grad = gradients[name]
        (averages,) = sparsifier._averages()
        figures.append([averages.sums["0"].total.clone(), averages.sums["0"].seen.clone(), model[0].weight.grad])
        optimizer.step()
    for other in figures[1:]:
        for mine, plain in zip(other, figures[0], strict=True):
            torch.testing.assert_close(mine, plain, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", ["sp_in", "topk"])
@pytest.mark.parametrize("after", [nn.InstanceNorm2d(16), nn.PReLU(), nn.Identity()], ids=["norm", "prelu", "conv"])
def test_units_of_a_convolution_without_a_batch_axis_are_on_the_first_axis(method, after):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 16, 1), after, nn.ReLU(), nn.Flatten(0), nn.Linear(16 * 9, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    slabs = [bbnet.Slab("0", "in", "0" if isinstance(after, nn.Identity) else "1")]
    sparsifier = bbnet.sparsify(model, optimizer, slabs, method, 0.25, total_steps=20, ramp_end=0.0, every=2)
    for _ in range(20):
        model(torch.randn(8, 3, 3)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    if method == "topk":
        outputs = model[:2](torch.randn(8, 3, 3)) if slabs[0].units == ("1",) else model[0](torch.randn(8, 3, 3))
        assert bool(((outputs != 0).sum(0) == 4).all())
    else:
        assert int(sparsifier.masks()["0"].sum()) == 16 * 8 // 4


def test_a_single_position_counts_once():
    model, optimizer, sparsifier = sparsified()
    model(INPUTS[0]).sum().backward()
    assert int(sparsifier.on_rates.sums["0"].seen) == 1
    optimizer.step()


def test_a_loop_that_zeroes_gradients_in_place_and_never_steps_is_warned():
    model, optimizer, _sparsifier = sparsified()
    with pytest.warns(UserWarning, match="20 gradients came without a step of the AdamW"):
        for _ in range(20):
            loss_of(model).backward()
            optimizer.zero_grad(set_to_none=False)


@pytest.mark.parametrize("method", ["sp_in", "topk"])
def test_a_module_of_units_that_is_replaced_is_found_at_the_next_refresh(method):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    slabs = [bbnet.Slab("0", "in", "1")]
    _sparsifier = bbnet.sparsify(model, optimizer, slabs, method, 0.25, total_steps=20, every=2)
    train(model, optimizer, 4)
    model[1] = nn.LayerNorm(32)
    with pytest.raises(ValueError, match="module 1 was replaced since bbnet.sparsify was called"):
        train(model, optimizer, 2)


@pytest.mark.parametrize("assign", [False, True])
def test_a_dense_checkpoint_loaded_after_the_training_is_not_exported(assign):
    model, optimizer, _sparsifier = sparsified()
    dense = copy.deepcopy(model.state_dict())
    train(model, optimizer, 20)
    model.load_state_dict(dense, assign=assign)
    remedy = "the model has another weight" if assign else r"a pruned weight is not 0.*sparsifier.apply_to\(model\)"
    with pytest.raises(ValueError, match=f"slab 0: {remedy}"):
        bbnet.export(model)


def test_the_export_of_an_average_over_moving_masks_warns():
    model, optimizer, _sparsifier = sparsified("magnitude")
    average = torch.optim.swa_utils.AveragedModel(model)
    for _ in range(20):
        train(model, optimizer, 1)
        average.update_parameters(model)
    with pytest.warns(UserWarning, match="non-zero weights at 0"):
        bbnet.export(average)


@pytest.mark.parametrize("how", ["autograd.grad", "first slab frozen"])
def test_a_loop_without_gradients_of_the_first_slab_is_warned(how):
    model, optimizer, _sparsifier = sparsified()
    other = torch.optim.SGD(model.parameters(), lr=0.1)
    if how == "first slab frozen":
        model[0].weight.requires_grad_(False)
    with pytest.warns(UserWarning, match="20 forward passes came without a step of the AdamW"):
        for _ in range(20):
            weights = [weight for weight in model.parameters() if weight.requires_grad]
            for weight, gradient in zip(weights, torch.autograd.grad(loss_of(model), weights), strict=True):
                weight.grad = gradient
            other.step()


def test_momentum_alone_is_a_loaded_training_too():
    model, optimizer, _sparsifier = sparsified(optimizer=lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9))
    train(model, optimizer, 5)
    state = copy.deepcopy(optimizer.state_dict())
    model, optimizer, _sparsifier = sparsified(optimizer=lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9))
    optimizer.load_state_dict(state)
    with pytest.warns(UserWarning, match="load also the sparsifier's state_dict"):
        train(model, optimizer, 1)


def test_a_copy_that_was_in_order_is_checked_again_after_refreshes():
    model, optimizer, _sparsifier = sparsified("magnitude")
    train(model, optimizer, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        copied = copy.deepcopy(model)
        copied(INPUTS)
    train(model, optimizer, 18)
    with pytest.warns(UserWarning, match="non-zero weights at 0"):
        copied(INPUTS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        copied(INPUTS)


def test_the_precision_may_change_in_mid_run():
    model, optimizer, sparsifier = sparsified(optimizer=lambda weights: torch.optim.SGD(weights, lr=0.1))
    train(model, optimizer, 8)
    model.double()
    for _ in range(12):
        nn.functional.cross_entropy(model(INPUTS.double()), TARGETS).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert int((model[0].weight != 0).sum()) == int(sparsifier.masks()["0"].sum()) == 32 * 16 // 4
