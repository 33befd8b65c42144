"""timm: slabs, densities and exports of ResNet-50, ConvNeXt, ViT and EfficientNet; its optimizers and averages."""

import pytest
import torch
from torch import nn

import bbnet

timm = pytest.importorskip("timm")
optimizers = pytest.importorskip("timm.optim")

BUDGET, STEPS = 0.3, 8
IMAGES = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
TARGETS = torch.arange(4)

# The least shares of the parameters that the slabs of side in, of side out and of both sides hold.
SHARES = {
    "resnet50": (0.61, 0.64, 0.80),
    "convnext_tiny": (0.45, 0.45, 0.90),
    "vit_small_patch16_224": (0.32, 0.32, 0.64),
    "efficientnet_b0": (0.36, 0.33, 0.70),
}
# The largest share of the parameters that remains after the removal of half of the units of the slabs of side in.
TRAINED = {"resnet50": 0.50, "convnext_atto": 0.56, "vit_tiny_patch16_224": 0.68, "efficientnet_b0": 0.93}
# By default the blocks of a new ResNet or ConvNeXt hardly change its outputs, so that no error in them would be seen.
OPTIONS = {"resnet50": {"zero_init_last": False}, "convnext_atto": {"ls_init_value": 1.0}}
METHODS = {"in": "sp_in", "out": "sp_out", "both": {"algorithm": "budgeted_broadcast", "side": "both"}}


def network(name):
    """A model for images of 64 pixels and ten classes."""
    torch.manual_seed(0)
    size = {"img_size": 64} if name.startswith("vit") else {}
    return timm.create_model(name, pretrained=False, num_classes=10, **size, **OPTIONS.get(name, {}))


def train(model, slabs, method, each=lambda sparsifier: None):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    sparsifier = bbnet.sparsify(model, optimizer, slabs, method, BUDGET, total_steps=STEPS, every=1)
    model.train()
    for _ in range(STEPS):
        nn.functional.cross_entropy(model(IMAGES), TARGETS).backward()
        optimizer.step()
        optimizer.zero_grad()
        each(sparsifier)
    return sparsifier


def size_of(model):
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def check_outputs(exported, model, tolerance=1e-5):
    """Checks that the outputs of an export are those of the model, which differ between the images."""
    images = IMAGES.to(next(model.parameters()).dtype)
    expected, outputs = model.eval()(images), exported(images)
    assert expected.std(0).amax() > 1e-4
    assert float((outputs - expected).abs().amax()) <= tolerance * max(1.0, float(expected.abs().amax()))


@pytest.mark.parametrize("name", SHARES)
def test_the_slabs_hold_at_least_a_share_of_the_parameters(name):
    model = timm.create_model(name, pretrained=False)
    shares = []
    for side in METHODS:
        slabs = bbnet.find_slabs(model, side=side)
        assert {slab.side for slab in slabs} == ({"in", "out"} if side == "both" else {side})
        shares.append(sum(model.get_submodule(slab.name).weight.numel() for slab in slabs) / size_of(model))
    assert all(share >= least for share, least in zip(shares, SHARES[name], strict=True)), shares


@pytest.mark.parametrize(
    ("name", "side"), [(name, side) for name in TRAINED for side in METHODS if name != "resnet50" or side == "both"]
)
def test_every_refresh_meets_its_budget_and_the_export_has_the_models_outputs(name, side, check_exact):
    model = network(name)
    slabs = bbnet.find_slabs(model, side=side)
    budgets = []

    def each(sparsifier):
        budgets.append(sparsifier.refreshes[-1]["budget"])
        check_exact(model, sparsifier, slabs, budgets[-1])

    sparsifier = train(model, slabs, METHODS[side], each)
    assert sorted(budgets, key=float, reverse=True) == budgets
    assert budgets[3:] == [str(BUDGET)] * 5
    check_exact(model, sparsifier, slabs, BUDGET)
    check_outputs(bbnet.export(model), model)
    check_outputs(bbnet.export(model, remove_units=True), model)


@pytest.mark.parametrize("name", TRAINED)
def test_units_without_connections_are_removed_from_the_export(name, check_exact):
    model = network(name)
    slabs = bbnet.find_slabs(model, side="in")
    with torch.no_grad():
        for slab in slabs:
            weight = model.get_submodule(slab.name).weight
            pruned = len(weight) // 2
            weight[:pruned] *= 1e-4  # magnitude prunes these units first
            if name == "resnet50":
                # ReLU turns a negative bias to zero, and the unit is removed. A positive constant is not the same at
                # the border of a padded convolution, so its unit stays. A bias that starts at zero would be trained
                # to either side, by the rounding of the processor.
                bias = model.get_submodule(slab.name.replace("conv", "bn")).bias
                bias[:pruned] = -0.01
                bias[:pruned:4] = 0.01
    sparsifier = train(model, slabs, "magnitude")
    check_exact(model, sparsifier, slabs, BUDGET)
    smaller = bbnet.export(model, remove_units=True)
    assert size_of(smaller) <= TRAINED[name] * size_of(model)
    check_outputs(smaller, model)
    # An error in a single block may be below 1e-5 in the outputs.
    check_outputs(bbnet.export(model.double(), remove_units=True), model, tolerance=1e-12)


# Optimizers and weight averages.


def small_training(name, steps=40):
    """Returns a small network, its optimizer of timm and its sparsifier, after as many steps."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 4))
    optimizer = optimizers.create_optimizer_v2(model, opt=name, lr=0.01, weight_decay=0.05)
    slabs = bbnet.find_slabs(model)
    sparsifier = bbnet.sparsify(model, optimizer, slabs, "sp_in", BUDGET, total_steps=40, every=2)
    for _ in range(steps):
        train_once(model, optimizer)
    return model, optimizer, slabs, sparsifier


def train_once(model, optimizer):
    inputs = torch.randn(32, 16)
    nn.functional.cross_entropy(model(inputs), inputs[:, :4].argmax(1)).backward()
    optimizer.step()
    optimizer.zero_grad()


NAMES = "adafactor adan adopt adamp cadamw lamb laprop larc lion madgrad mars nadamw novograd rmsproptf sgdw"


@pytest.mark.parametrize("name", [*NAMES.split(), "lookahead_adamw", "lookahead_sgd"])
def test_pruned_weights_stay_zero_under_optimizers_of_timm(name, check_exact):
    model, _, slabs, sparsifier = small_training(name)
    assert sparsifier.step == 40
    check_exact(model, sparsifier, slabs, BUDGET)


def test_muon_of_timm_is_refused():
    with pytest.raises(ValueError, match="cannot sparsify under the optimizer Muon"):
        small_training("muon")


def test_a_weight_average_of_timm_is_masked_by_the_sparsifier(check_exact):
    model, optimizer, slabs, sparsifier = small_training("adamw", steps=0)
    average = timm.utils.ModelEmaV3(model, decay=0.9)
    for _ in range(40):
        train_once(model, optimizer)
        average.update(model)
    pruned = {name: ~mask for name, mask in sparsifier.masks().items()}
    assert all(average.module.get_submodule(name).weight[mask].any() for name, mask in pruned.items())
    sparsifier.apply_to(average.module)
    check_exact(average.module, sparsifier, slabs, BUDGET)
