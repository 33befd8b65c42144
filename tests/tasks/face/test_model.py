"""The network of faces against torchvision's and by hand, and that units are what a weight reads or writes."""

import itertools
import math
from decimal import Decimal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from bbnet.models.bottleneck_resnet import Bottleneck, BottleneckResNet
from bbnet.models.settings.bottleneck_resnet import PUBLISHED
from bbnet.sparsity.degrees import connection_count
from bbnet.sparsity.on_rate import OnRates
from bbnet.sparsity.slab import check_slabs, choose_slabs, connections, slab_shape, slab_weight
from bbnet.sparsity.sparsifier import METHODS, sparsify
from bbnet.tasks.face import task
from bbnet.tasks.face.data.batches import Batch
from bbnet.tasks.face.model import CosineHead, FaceNetwork, load_pretrained
from bbnet.tasks.face.settings import ResNet, Settings
from bbnet.training.units import measure_units
from tests.networks import restless, seen

CPU = torch.device("cpu")
MEAN, SD = [120.0, 110.0, 100.0], [50.0, 40.0, 30.0]
SIDES = ("in", "out", "both")


def small(classes: int = 7, **changed) -> FaceNetwork:
    """Three stages, the first of two bottlenecks."""
    sizes = {"widths": [16, 12, 20], "blocks": [2, 1, 2]}
    return FaceNetwork(ResNet(architecture="small", **sizes | changed), classes, MEAN, SD)


@pytest.fixture
def model() -> FaceNetwork:
    return restless(small())


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (6, 3, 24, 24)).float()


@pytest.fixture(scope="module")
def paper_network() -> FaceNetwork:
    """The notebook's, without memory for its weights."""
    with torch.device("meta"):
        return FaceNetwork(ResNet(architecture="resnet101"), 7001, MEAN, SD)


def blocks_of(model: FaceNetwork) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, Bottleneck)]


# The notebook's network.


def test_the_notebooks_network_has_56_845_209_weights(paper_network):
    assert sum(parameter.numel() for parameter in paper_network.parameters()) == 56_845_209


def test_the_papers_slabs_are_33_of_8_128_units_and_8_785_920_weights(paper_network):
    for side in SIDES:
        slabs = task.slabs(paper_network, "paper", side)
        weights = [slab_weight(paper_network, slab) for slab in slabs]
        assert len(slabs) == len({slab.name for slab in slabs}) == 33
        assert sum(weight.numel() for weight in weights) == 8_785_920
        assert sum(weight.shape[0] for weight in weights) == 8_128
        if side == "in":
            assert sum(slab_shape(weight, "in")[0] for weight in weights) == 8_128
        assert all(weight.shape[2:] == (1, 1) for weight in weights)


def test_the_wide_slabs_of_the_notebooks_network_are_its_70_convolutions_of_1x1(paper_network):
    found = {slab.name for slab in task.slabs(paper_network, "wide", "in")}
    assert len(found) == 33 + 33 + 4
    assert found == {
        name
        for name, module in paper_network.named_modules()
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)
    }


def test_the_settings_know_its_stages(paper_network):
    stages = ResNet(architecture="resnet101").stages()
    assert sum(blocks for _, blocks in stages) == len(blocks_of(paper_network)) == 33
    widths = [width for width, blocks in stages for _ in range(blocks)]
    assert widths == [paper_network.get_submodule(name).conv1.out_channels for name in blocks_of(paper_network)]


# Against torchvision.


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A saved state of torchvision's ResNet-101, its features of two images, and a network to load it into."""
    from torchvision.models import resnet101

    torch.manual_seed(1)
    theirs = resnet101()
    theirs.train()(torch.randn(8, 3, 64, 64))  # batch norms see something
    theirs.eval()
    path = tmp_path_factory.mktemp("weights") / "resnet101-01234567.pth"
    torch.save(theirs.state_dict(), path)
    theirs.fc = nn.Identity()
    weights = {"pack": "imagenet_resnet101", "path": str(path)}
    yield path, theirs, FaceNetwork(ResNet(architecture="resnet101", weights=weights), 5, MEAN, SD).eval()
    path.unlink()


@pytest.mark.thorough
def test_the_backbone_starts_from_the_weights_of_torchvision(pretrained):
    path, theirs, model = pretrained
    head = model.head.weight.clone()
    assert not torch.equal(model.backbone.layer3[7].conv1.weight, theirs.layer3[7].conv1.weight)
    load_pretrained(model, path)
    expected, found = theirs.state_dict(), model.backbone.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert torch.equal(model.head.weight, head)
    pixels = torch.randint(0, 256, (2, 3, 40, 40)).float()
    mean, sd = (torch.tensor(values).reshape(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        expected = theirs((pixels / 255 - mean) / sd)
        torch.testing.assert_close(model.features(pixels), expected, atol=1e-3, rtol=1e-3)
    assert expected.std() > 0.1


def test_weights_are_loaded_into_the_backbone_without_their_classifier(model, tmp_path):
    """With a small network in place of ResNet-101, whose real weights are loaded in a thorough test."""
    source = restless(BottleneckResNet(model.settings.stages(), "small")).state_dict()
    torch.save(source | {"fc.weight": torch.ones(1000, 80), "fc.bias": torch.ones(1000)}, tmp_path / "weights.pth")
    head = model.head.weight.clone()
    load_pretrained(model, tmp_path / "weights.pth")
    found = model.backbone.state_dict()
    assert source.keys() == found.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in source.items())
    assert torch.equal(model.head.weight, head)


def test_pretrained_models_normalise_as_imagenet_does(monkeypatch):
    monkeypatch.setitem(PUBLISHED, "resnet101", [(4, 1)])
    weights = {"pack": "imagenet_resnet101", "path": "resnet101-01234567.pth"}
    for chosen, mean, sd in (
        (weights, [0.485 * 255, 0.456 * 255, 0.406 * 255], [0.229 * 255, 0.224 * 255, 0.225 * 255]),
        (None, MEAN, SD),
    ):
        network = FaceNetwork(ResNet(architecture="resnet101", weights=chosen), 5, MEAN, SD)
        assert network.mean.flatten().tolist() == pytest.approx(mean)
        assert network.sd.flatten().tolist() == pytest.approx(sd)


def test_a_file_without_the_weights_of_the_backbone_is_refused_by_name(model, tmp_path):
    path = tmp_path / "some-weights.pth"
    norms = {name: tensor for name, tensor in model.backbone.state_dict().items() if ".bn" in name}
    for content in (None, "not weights", torch.zeros(3), BottleneckResNet([(8, 1)], "small").state_dict(), norms):
        if isinstance(content, str):
            path.write_text(content)
        elif content is not None:
            torch.save(content, path)
        with pytest.raises(ValueError, match=r"some-weights\.pth: contains no weights of ResNet-101"):
            load_pretrained(model, path)


# The network around the backbone.


def test_pixels_are_standardised_before_the_first_convolution(model, images):
    first = seen(model, images)[0]["backbone.conv1"]
    expected = (images.permute(0, 2, 3, 1) - torch.tensor(MEAN)) / torch.tensor(SD)
    torch.testing.assert_close(first, expected.permute(0, 3, 1, 2))


def test_images_are_not_changed(model, images):
    before = images.clone()
    model(images)
    assert torch.equal(images, before)


def test_the_task_builds_the_network_for_its_index():
    for head in ("linear", "arcface"):
        index = {"identities": ["a", "b", "c"], "mean": MEAN, "sd": SD, "size": 32}
        model = task.build_model(ResNet(architecture="small", widths=[8, 16], blocks=[1, 1], head=head), index, CPU)
        (example,) = task.example_inputs(index, CPU)
        assert model.eval()(example).shape == (1, 3)
        assert model.features(example).shape == (1, 64)
        assert isinstance(model.head, nn.Linear) == (head == "linear")


# Slabs.


def test_both_sides_have_the_same_weights(model):
    for which in ("paper", "wide"):
        by_side = {side: task.slabs(model, which, side) for side in SIDES}
        names = {side: [slab.name for slab in slabs] for side, slabs in by_side.items()}
        assert names["in"] == names["out"] == names["both"]
        assert {slab.side for slab in by_side["in"]} == {"in"}
        assert {slab.side for slab in by_side["out"]} == {"out"}


def test_on_side_both_bottlenecks_take_turns(model):
    for which in ("paper", "wide"):
        sides = {}
        for slab in task.slabs(model, which, "both"):
            sides.setdefault(next(block for block in blocks_of(model) if slab.name.startswith(f"{block}.")), set()).add(
                slab.side
            )
        assert [sides[block] for block in blocks_of(model)] == [{"in"}, {"out"}, {"in"}, {"out"}, {"in"}]


def test_the_papers_slabs_are_the_convolutions_that_reduce(model):
    for side in SIDES:
        assert [slab.name for slab in task.slabs(model, "paper", side)] == [
            f"{block}.conv1" for block in blocks_of(model)
        ]


def test_the_wide_slabs_are_all_convolutions_of_1x1_of_the_blocks_once(model):
    for side in SIDES:
        expected = [
            name
            for name, module in model.named_modules()
            if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and ".layer" in name
        ]
        found = [slab.name for slab in task.slabs(model, "wide", side)]
        assert sorted(found) == sorted(expected)
        assert len(found) == 5 + 5 + 3
        assert len(check_slabs(model, task.slabs(model, "wide", side), Decimal("0.5"))) == len(found)


def test_the_settings_know_the_fans_of_slabs():
    for which, blocks in itertools.product(("paper", "wide"), ([1, 1, 1], [2, 1, 2])):
        sizes = {"widths": [16, 12, 20], "blocks": blocks}
        data = {"pack": "faces", "path": "somewhere"}
        training = {"epochs": 2, "warm_up_epochs": 1, "learning_rate": 0.1, "batch_size": 2}
        settings = Settings(
            data=data, size=32, slabs=which, models={"tiny": {"architecture": "small"} | sizes}, training=training
        )
        model = small(**sizes)
        found = {
            slab_shape(slab_weight(model, slab), side)[1]
            for side in SIDES[:2]
            for slab in task.slabs(model, which, side)
        }
        assert settings.fans() == {"tiny": found}


BRANCHED = {"architecture": "big_little", "widths": [8, 12], "blocks": [3, 1], "alpha": 2, "beta": 2}


def test_a_big_little_network_is_one_backbone_of_the_task():
    data = {"pack": "faces", "path": "somewhere"}
    training = {"epochs": 2, "warm_up_epochs": 1, "learning_rate": 0.1, "batch_size": 2}
    published = {"architecture": "bl_resnet50", "alpha": 2, "beta": 4}
    models = {"tiny": BRANCHED, "published": published}
    settings = Settings(data=data, size=32, slabs="wide", models=models, training=training)
    made = {label: FaceNetwork(each, 5, MEAN, SD).eval() for label, each in settings.models.items()}
    weights = sum(each.numel() for each in made["published"].backbone.parameters())
    assert weights / 1e6 == pytest.approx(26.695 - 2.049, abs=5e-4)  # without the layer of 1,000 classes
    for label, model in made.items():
        assert model(torch.zeros(1, 3, 33, 33)).shape == (1, 5)
        slabs = {side: task.slabs(model, "wide", side) for side in SIDES[:2]}
        found = {slab_shape(slab_weight(model, slab), side)[1] for side, each in slabs.items() for slab in each}
        assert settings.fans()[label] == found


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"alpha": None}, "alpha is missing for architecture big_little"),
        ({"widths": None}, "widths is missing for architecture big_little"),
        ({"architecture": "small"}, "alpha is not allowed with architecture small"),
        ({"architecture": "bl_resnet50"}, "widths is not allowed with architecture bl_resnet50"),
        ({"blocks": [1, 1]}, "stage 1 of a Big-Little network has 1 bottleneck"),
    ],
)
def test_sizes_that_do_not_belong_to_the_architecture_are_refused(changed, problem):
    with pytest.raises(ValueError, match=problem):
        ResNet(**BRANCHED | changed)


def test_units_are_those_that_the_weight_writes_or_reads(model, images):
    for side in SIDES:
        inputs, outputs = seen(model, images)
        for slab in task.slabs(model, "wide", side):
            (unit,) = slab.units
            block, _, layer = slab.name.removesuffix(".0").rpartition(".")
            assert slab.normalised == (slab.side == "in")
            if slab.side == "out":
                assert torch.equal(outputs[unit].relu(), inputs[slab.name]), slab
            elif layer == "conv1":
                assert torch.equal(inputs[unit], outputs[slab.name]), slab
                assert torch.equal(outputs[unit].relu(), inputs[f"{block}.conv2"])
            else:
                assert unit == block


def activations(model: FaceNetwork, images: torch.Tensor) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """What every convolution of 1x1 reads, and the activation into which its output goes, from the weights alone."""

    def normed(maps, norm):
        return functional.batch_norm(
            maps, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0, norm.eps
        )

    read, written = {}, {}
    backbone = model.backbone
    maps = (images - model.mean) / model.sd
    maps = normed(functional.conv2d(maps, backbone.conv1.weight, stride=2, padding=1), backbone.bn1).relu()
    for name in blocks_of(model):
        block = model.get_submodule(name)
        stride = block.conv2.stride[0]
        first = normed(functional.conv2d(maps, block.conv1.weight), block.bn1).relu()
        second = normed(functional.conv2d(first, block.conv2.weight, stride=stride, padding=1), block.bn2).relu()
        third = normed(functional.conv2d(second, block.conv3.weight), block.bn3)
        beside = maps
        if block.downsample is not None:
            convolution, norm = block.downsample
            beside = normed(functional.conv2d(maps, convolution.weight, stride=stride), norm)
            read[f"{name}.downsample.0"] = maps
        read |= {f"{name}.conv1": maps, f"{name}.conv3": second}
        maps = (third + beside).relu()
        written |= {f"{name}.conv1": first, f"{name}.conv3": maps, f"{name}.downsample.0": maps}
    return read, written


@pytest.mark.parametrize("side", SIDES)
@torch.no_grad()
def test_a_shared_relu_gives_each_unit_its_own_on_rate(model, images, side):
    read, written = activations(model, images)
    labels = torch.zeros(len(images), dtype=torch.int64)
    split = SimpleNamespace(
        in_order=lambda: [torch.arange(4), torch.arange(4, 6)],
        batch=lambda indices, device: Batch(images[indices], labels[indices]),
    )
    slabs = task.slabs(model, "wide", side)
    rows, _ = measure_units(task, model, split, CPU, slabs, {})
    rates = OnRates.of_slabs(model, slabs, stride=1, in_training=False)
    model(images)
    rates.remove()
    rates.fold()
    distinct = set()
    for slab in slabs:
        activation = written[slab.name] if slab.side == "in" else read[slab.name]
        expected = (activation > 0).double().mean((0, 2, 3)).numpy()
        found = [row["on_rate"] for row in rows if row["slab"] == slab.name]
        tolerance = 1.01 / activation[:, 0].numel()  # one position within rounding of 0
        np.testing.assert_allclose(found, expected, atol=tolerance, err_msg=slab.name)
        np.testing.assert_allclose(rates.of(slab.units)[0].numpy(), expected, atol=tolerance, err_msg=slab.name)
        distinct.add(tuple(expected))
        assert np.ptp(expected) > 0.1
    assert len(distinct) >= len({slab.units for slab in slabs}) > len(blocks_of(model)) - 1


@pytest.mark.parametrize(
    "method",
    [
        method if method in ("sp_in", "sp_out", "topk") else pytest.param(method, marks=pytest.mark.thorough)
        for method in METHODS
    ],
)
def test_every_method_of_the_default_study_trains_it_at_its_budget(method, images):
    model = small(widths=[24, 32], blocks=[2, 1]).train()
    side = METHODS[method].get("side", "in")
    slabs, left = choose_slabs(model, task.slabs(model, "wide", side), Decimal("0.2"))
    assert not left
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    budget = "1" if method == "dense" else "0.2"
    sparsifier = sparsify(model, optimizer, slabs, method, budget, total_steps=10, every=1)
    batch = Batch(images, torch.arange(6))
    for _ in range(10):
        with sparsifier.valid(task.valid_positions(model, batch)):
            loss = task.loss(model, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        assert loss.isfinite()
    masks = sparsifier.masks()
    kept, whole = sum(int(mask.sum()) for mask in masks.values()), sum(mask.numel() for mask in masks.values())
    share = Decimal("0.2") if method in ("sp_in", "sp_out", "magnitude", "rigl") else Decimal(1)
    counts = {slab.name: connection_count(share, *slab_shape(slab_weight(model, slab), side)) for slab in slabs}
    assert kept == sum(counts.values())
    assert abs(kept - share * whole) <= Decimal("0.5") * len(masks)
    for slab in slabs:
        weight = connections(slab_weight(model, slab), side)
        assert (weight[~masks[slab.name]] == 0).all()
        assert (weight[masks[slab.name]] != 0).float().mean() > 0.9
    if method == "topk":
        outputs = seen(model.eval(), images)[1]
        for slab in slabs:
            output = outputs[slab.units[0]]
            assert (output != 0).sum(1).max() == round(0.2 * output.shape[1])


# Heads and loss.


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    one, other = one.double().tolist(), other.double().tolist()
    product = sum(left * right for left, right in zip(one, other, strict=True))
    return product / math.sqrt(sum(left**2 for left in one) * sum(right**2 for right in other))


def test_arcface_adds_its_margin_to_the_angle_of_the_true_class_alone():
    head, features = CosineHead(6, 4, scale=30.0, margin=0.5), torch.randn(5, 6)
    labels = torch.tensor([0, 3, 2, 2, 1])
    with torch.no_grad():
        found, plain = head(features, labels), head(features)
    for row in range(5):
        for label in range(4):
            cos = cosine(features[row], head.weight[label])
            assert plain[row, label].item() == pytest.approx(30 * cos, abs=1e-4)
            if label == labels[row]:
                cos = math.cos(min(math.acos(cos) + 0.5, math.pi))
            assert found[row, label].item() == pytest.approx(30 * cos, abs=1e-4)


def test_the_angle_of_arcface_ends_at_pi():
    head = CosineHead(2, 3, scale=10.0, margin=0.5)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
        features = torch.tensor([[math.cos(angle), math.sin(angle)] for angle in (2.0, 2.7, 3.0, math.pi)])
        found = head(features, torch.zeros(4, dtype=torch.int64))[:, 0]
    assert found.tolist() == pytest.approx([10 * math.cos(2.5), -10, -10, -10], abs=1e-4)


def test_gradients_of_arcface_are_finite_at_its_corners():
    for corner in ([1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]):
        head = CosineHead(2, 2, scale=10.0, margin=0.5)
        with torch.no_grad():
            head.weight.copy_(torch.eye(2))
        features = torch.tensor([corner], requires_grad=True)
        head(features, torch.tensor([0])).log_softmax(1)[0, 0].backward()
        assert features.grad.isfinite().all()
        assert head.weight.grad.isfinite().all()


def smoothed(logits: torch.Tensor, labels: torch.Tensor, smoothing: float) -> float:
    logs = logits.double().log_softmax(1)
    rows = [
        -(1 - smoothing) * own[label] - smoothing * own.mean() for own, label in zip(logs, labels.tolist(), strict=True)
    ]
    return torch.stack(rows).mean().item()


@torch.no_grad()
def test_labels_are_smoothed_over_all_identities(images):
    for smoothing in (0.0, 0.1, 0.4):
        model, labels = restless(small(label_smoothing=smoothing)), torch.tensor([0, 6, 3, 3, 1, 2])
        found = task.loss(model, Batch(images.to(torch.uint8), labels))
        assert found.item() == pytest.approx(smoothed(model(images), labels, smoothing), rel=1e-5)
        expected = functional.cross_entropy(model(images), labels, label_smoothing=smoothing)
        assert found.item() == pytest.approx(expected.item(), rel=1e-6)


@torch.no_grad()
def test_arcface_has_its_margin_in_training_alone(images):
    model = restless(small(head="arcface", arcface_scale=12.0, arcface_margin=0.3, label_smoothing=0.2))
    batch = Batch(images, torch.tensor([0, 6, 3, 3, 1, 2]))
    features = model.features(images)
    plain = torch.tensor([[12 * cosine(own, weight) for weight in model.head.weight] for own in features])
    torch.testing.assert_close(model(images), plain, atol=1e-4, rtol=1e-4)
    assert task.loss(model, batch).item() == pytest.approx(smoothed(plain, batch.labels, 0.2), rel=1e-4)
    for module in model.modules():
        module.training = not isinstance(module, nn.BatchNorm2d)
    for row, label in enumerate(batch.labels.tolist()):
        plain[row, label] = 12 * math.cos(min(math.acos(plain[row, label] / 12) + 0.3, math.pi))
    assert task.loss(model, batch).item() == pytest.approx(smoothed(plain, batch.labels, 0.2), rel=1e-4)


def test_the_gradient_reaches_every_parameter(images):
    for head in ("linear", "arcface"):
        model = small(head=head).train()
        task.loss(model, Batch(images, torch.arange(6))).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().sum() > 0, name
