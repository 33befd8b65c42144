"""The classifiers: what of each architecture is built, how pixels enter, and which weights are slabs."""

from decimal import Decimal

import pytest
import torch
from torch import nn

from bbnet.models.big_little import BigLittleResNet
from bbnet.models.bottleneck_resnet import BottleneckResNet
from bbnet.models.cifar_resnet import CifarResNet
from bbnet.sparsity.degrees import connection_count
from bbnet.sparsity.slab import choose_slabs, connections, slab_shape, slab_weight
from bbnet.sparsity.sparsifier import METHODS, sparsify
from bbnet.tasks.batches import LabelledImages
from bbnet.tasks.classification import task
from bbnet.tasks.classification.model import Classifier
from bbnet.tasks.classification.settings import Settings
from tests.networks import macs, restless, seen

CPU = torch.device("cpu")
MEAN, SD = [120.0, 110.0, 100.0], [50.0, 40.0, 30.0]
MODELS = {
    "cifar": {"architecture": "cifar_resnet", "depth": 14, "width": 10},
    "small": {"architecture": "bottleneck_resnet", "widths": [16, 12, 20], "blocks": [2, 1, 2]},
    "imagenet": {"architecture": "resnet50"},
    "branched": {"architecture": "big_little", "widths": [16, 12, 20], "blocks": [4, 2, 1], "alpha": 2, "beta": 2},
    "published": {"architecture": "bl_resnet50", "alpha": 4, "beta": 4},
}


def settings(which: str = "wide", **models: dict) -> Settings:
    return Settings.model_validate(
        {
            "data": {"pack": "rendered_objects", "train": 100, "val": 10, "test": 10},
            "slabs": which,
            "models": models or MODELS,
            "training": {"epochs": 2, "warm_up_epochs": 1, "learning_rate": 0.1, "batch_size": 4},
        }
    )


def build(label: str, classes: int = 7, **changed) -> Classifier:
    index = {"classes": [""] * classes, "mean": MEAN, "sd": SD}
    return task.build_model(settings(it=MODELS[label] | changed).models["it"], index, CPU)


def test_every_architecture_is_a_backbone_and_a_head_of_its_classes():
    kinds = {"cifar": CifarResNet, "small": BottleneckResNet, "imagenet": BottleneckResNet}
    kinds |= {"branched": BigLittleResNet, "published": BigLittleResNet}
    features = {"cifar": 40, "small": 80, "branched": 80, "imagenet": 2048, "published": 2048}
    for label, kind in kinds.items():
        model = build(label).eval()
        assert isinstance(model.backbone, kind)
        assert model(torch.zeros(2, 3, 33, 33)).shape == (2, 7)
        assert model.head.weight.shape == (7, features[label])


def test_the_default_network_is_resnet_20_and_the_classifier_adds_no_weight_to_it():
    model = build("cifar", classes=10, depth=20, width=16)
    assert sum(each.numel() for each in model.parameters()) == 269_722
    (example,) = task.example_inputs({"input_size": 32}, CPU)
    assert macs(model.eval(), example) / 1e6 == pytest.approx(40.551, abs=5e-4)
    assert settings(it={"architecture": "cifar_resnet"}).models["it"] == model.settings.model_copy(
        update={"depth": 20, "width": 16}
    )


def test_it_starts_from_the_weights_of_the_plain_network(same):
    torch.manual_seed(5)
    model = build("cifar", stem_stride=2)
    torch.manual_seed(5)
    plain = CifarResNet(14, classes=7, width=10, stem_stride=2).to(memory_format=torch.channels_last)
    head = {f"fc.{name}": tensor for name, tensor in model.head.state_dict().items()}
    assert same(dict(model.backbone.state_dict()) | head, dict(plain.state_dict()))
    pixels = torch.randint(0, 256, (3, 3, 16, 16)).float()
    standardised = (pixels - torch.tensor(MEAN).reshape(3, 1, 1)) / torch.tensor(SD).reshape(3, 1, 1)
    torch.testing.assert_close(model.eval()(pixels), plain.eval()(standardised))


@pytest.mark.parametrize("label", MODELS)
def test_the_settings_know_the_fans_of_slabs(label):
    model = build(label)
    for which in ("paper", "wide"):
        slabs = {side: task.slabs(model, which, side) for side in ("in", "out")}
        found = {slab_shape(slab_weight(model, slab), side)[1] for side, each in slabs.items() for slab in each}
        assert settings(which).fans()[label] == found


def test_units_of_slabs_are_what_the_weight_reads_or_writes():
    for label in ("cifar", "small"):
        model = restless(build(label))
        inputs, outputs = seen(model, torch.randint(0, 256, (3, 3, 16, 16)).float())
        for side in ("in", "out", "both"):
            slabs = task.slabs(model, "wide", side)
            kernel = 3 if label == "cifar" else 1
            layers = (module for name, module in model.named_modules() if ".layer" in name)
            expected = [each for each in layers if isinstance(each, nn.Conv2d) and each.kernel_size == (kernel, kernel)]
            assert {id(model.get_submodule(slab.name)) for slab in slabs} == set(map(id, expected))
            for slab in slabs:
                if slab.side == "out":
                    assert torch.equal(outputs[slab.units[0]].relu(), inputs[slab.name]), slab


NARROW = {"cifar": {"depth": 8, "width": 16}, "branched": {"widths": [32, 32], "blocks": [3, 1]}}


@pytest.mark.parametrize("label", NARROW)
@pytest.mark.parametrize(
    "method",
    [
        method if method in ("sp_in", "sp_out", "topk") else pytest.param(method, marks=pytest.mark.thorough)
        for method in METHODS
    ],
)
def test_every_method_of_the_default_study_trains_it_at_its_budget(method, label):
    model, side = build(label, **NARROW[label]).train(), METHODS[method].get("side", "in")
    slabs, left = choose_slabs(model, task.slabs(model, "wide", side), Decimal("0.2"))
    assert not left
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    budget = "1" if method == "dense" else "0.2"
    sparsifier = sparsify(model, optimizer, slabs, method, budget, total_steps=8, every=1)
    batch = LabelledImages(torch.randint(0, 256, (6, 3, 16, 16)), torch.arange(6))
    for _ in range(8):
        with sparsifier.valid(task.valid_positions(model, batch)):
            loss = task.loss(model, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        assert loss.isfinite()
    masks = sparsifier.masks()
    share = Decimal("0.2") if method in ("sp_in", "sp_out", "magnitude", "rigl") else Decimal(1)
    counts = [connection_count(share, *slab_shape(slab_weight(model, slab), side)) for slab in slabs]
    assert sum(int(mask.sum()) for mask in masks.values()) == sum(counts)
    for slab in slabs:
        weight = connections(slab_weight(model, slab), side)
        assert (weight[~masks[slab.name]] == 0).all()
        assert (weight[masks[slab.name]] != 0).float().mean() > 0.9
