"""The hybrid detector: sizes, shapes, what each flag changes and leaves, denoising, slabs, and costs."""

from decimal import Decimal

import pytest
import torch
from torch import nn

import bbnet
from bbnet.models.hybrid_detector.boxes import corners
from bbnet.models.hybrid_detector.denoising import group_mask, noised
from bbnet.models.hybrid_detector.detector import HybridDetector, deployed, slabs, without_decay
from bbnet.models.hybrid_detector.encoder import anchors
from bbnet.models.hybrid_detector.gatefuse import GateFuse
from bbnet.models.hybrid_detector.injection import CrossScaleInjection, GradientInjection
from bbnet.models.hybrid_detector.outputs import Rated, Targets, Unrated
from bbnet.models.hybrid_detector.reversible import unshuffled
from bbnet.models.settings.hybrid_detector import NAMED, Sizes, Stage, strides
from bbnet.models.settings.hybrid_detector import HybridDetector as Settings
from bbnet.sparsity.cost import flops_by_module
from bbnet.sparsity.on_rate import OnRates
from bbnet.sparsity.slab import choose_slabs, slab_shape, slab_weight
from bbnet.sparsity.sparsifier import sparsify
from bbnet.tasks.detection.losses import detection_loss

CLASSES = 7
SIDES = ("in", "out", "both")
# Every kind of block and layer, with narrow channels.
TINY = Sizes(
    stem=((8, 2), (8, 1)),
    stages=(
        Stage(width=16, blocks=("convolution", "deformable_convolution"), squeeze=True, expansion=0),
        Stage(width=32, blocks=("deformable_convolution",), split=True, separable=True, joined=True),
        Stage(width=32, blocks=("depthwise", "operator", "operator"), joined=True),
    ),
    levels=3,
    kernel=3,
    head_width=8,
    width=16,
    rounds=2,
    encoder_layers=2,
    encoder_levels=2,
    decoder_layers=2,
    heads=2,
    points=2,
    hidden=24,
    gated=True,
    queries=6,
)
FLAGS = {
    "gatefuse": {"gatefuse": True},
    "cross_scale_injection": {"cross_scale_injection": True},
    "gradient_injection": {"gradient_injection": True},
    "reversible_branch": {"reversible_branch": True},
    "iou_scoring": {"iou_scoring": True},
    "no_denoising": {"denoising": 0},
    "deformable_attention": {"operator": "deformable_attention"},
    "deformable_convolution": {"operator": "deformable_convolution"},
    "depthwise": {"operator": "depthwise"},
    "tap_scale": {"tap_scale": 0.1},
}

# Parameters of each part, for 7 classes.
SMALL_PARTS = {
    "backbone": 302_660,
    "neck": 125_140,
    "encoder": 31_392,
    "proposals": 9_163,
    "decoder": 115_094,
    "denoising": 448,
}
THESIS_PARTS = {
    "backbone": 21_532_412,
    "neck": 13_593_080,
    "encoder": 2_199_872,
    "proposals": 209_611,
    "decoder": 6_679_788,
    "denoising": 2_240,
}


def network(sizes="small", **flags) -> HybridDetector:
    torch.manual_seed(0)
    return HybridDetector(Settings(sizes=sizes, **flags), CLASSES)


def batch(images: int = 2, size=(64, 64)) -> tuple[torch.Tensor, Targets]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.tensor([[0, 6, -1], [3, -1, -1]])[:images]
    boxes = torch.rand(*labels.shape, 4, generator=generator) * 0.3 + 0.2
    return torch.randn(images, 3, *size, generator=generator), Targets(boxes, labels)


def trained_step(made: HybridDetector, images: torch.Tensor, targets: Targets) -> dict[str, torch.Tensor]:
    torch.manual_seed(2)
    losses = detection_loss(made.train()(images, targets), targets)
    losses["total"].backward()
    return losses


def count(module: nn.Module) -> int:
    return sum(each.numel() for each in module.parameters())


# Sizes.


def test_the_small_detector_has_fewer_than_600_000_parameters():
    made = network()
    assert {name: count(module) for name, module in made.named_children()} == SMALL_PARTS
    assert count(made) == sum(SMALL_PARTS.values()) < 600_000


def test_the_detector_of_the_thesis_has_the_size_that_its_notebooks_build():
    made = network("thesis")
    parts = {name: count(module) for name, module in made.named_children()}
    assert parts == THESIS_PARTS
    # Those of the notebooks: backbone 22,388,632, neck 13,513,358, all 43,836,340.
    assert parts["backbone"] == pytest.approx(22_388_632, rel=0.05)
    assert parts["neck"] == pytest.approx(13_513_358, rel=0.02)
    assert sum(parts.values()) == pytest.approx(43_836_340, rel=0.02)


@pytest.mark.thorough
def test_the_detector_of_the_thesis_learns_from_images_of_128_pixels():
    made = network("thesis")
    images, targets = batch(size=(128, 128))
    losses = trained_step(made, images, targets)
    assert all(each.isfinite() for each in losses.values())
    missing = {name for name, each in made.named_parameters() if each.grad is None or not each.grad.any()}
    assert missing == set()
    with torch.no_grad():
        assert made.eval()(images).boxes.shape == (2, 200, 4)


def test_strides_and_reference_boxes():
    assert strides(NAMED["small"]) == [8, 16]
    assert strides(NAMED["thesis"]) == [4, 8, 16, 32]
    found = anchors([torch.zeros(1, 2, 4, 8), torch.zeros(1, 1, 8, 8)])
    assert found.shape == (1, 16, 4)
    assert found[0, 5].tolist() == [0.375, 0.75, 1.0, 1.0]  # the second place of the second row
    assert found[0, 8].tolist() == [0.0625, 0.5, 0.5, 1.0]


# Shapes.


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (16, 16), (33, 47), (8, 100), (1, 1)])
def test_images_of_any_size_have_boxes_within_the_image(size):
    made = network(TINY, reversible_branch=True)
    images, targets = batch(size=size)
    losses = trained_step(made, images, targets)
    assert losses["total"].isfinite()
    assert all(each.grad.isfinite().all() for each in made.parameters() if each.grad is not None)
    with torch.no_grad():
        found = made.eval()(images)
    tokens = sum(-(-size[0] // stride) * -(-size[1] // stride) for stride in strides(TINY))
    assert found.logits.shape == (2, min(6, tokens), CLASSES)
    assert found.boxes.shape == (2, min(6, tokens), 4) and isinstance(found, Unrated)
    assert ((found.boxes >= 0) & (found.boxes <= 1)).all()


def test_outputs_of_training_and_evaluation():
    made = network(TINY, iou_scoring=True, reversible_branch=True)
    images, targets = batch()
    found = made.train()(images, targets)
    tokens = sum((64 // stride) ** 2 for stride in strides(TINY))
    shapes = {name: head.logits.shape[1] for name, head in found.auxiliary.items()}
    assert shapes == {"proposals": tokens, "decoder.0": 6, "reversible": tokens}
    assert len(found.denoising.layers) == 2 and found.denoising.groups == 2
    for head in (found.last, *found.auxiliary.values(), *found.denoising.layers):
        assert head.logits.shape == (*head.boxes.shape[:2], CLASSES) and head.iou.shape == head.boxes.shape[:2]
    assert found.denoising.layers[0].logits.shape[1] == 2 * 2 * 3
    assert made(images).denoising is None
    assert made(images, Targets(torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.int64))).denoising is None
    evaluated = made.eval()(images, targets)
    assert isinstance(evaluated, Rated) and evaluated.iou.shape == (2, 6)


@torch.no_grad()
def test_each_image_is_predicted_alone():
    made = network(TINY).eval()
    images, _ = batch()
    together, alone = made(images), made(images[1:])
    torch.testing.assert_close(together.boxes[1:], alone.boxes, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together.logits[1:], alone.logits, atol=1e-4, rtol=1e-4)


def test_every_parameter_has_a_gradient_and_no_tensor_is_dead_at_initialisation():
    for flags in ({}, *FLAGS.values()):
        made = network(TINY, **flags)
        trained_step(made, *batch(size=(96, 96)))
        dead = {name for name, each in made.named_parameters() if each.grad is None or not each.grad.any()}
        assert dead == set(), flags


def test_what_watch_says_of_the_first_steps():
    made = network()
    optimizer = torch.optim.AdamW(made.parameters(), lr=1e-3)
    images, targets = batch(size=(96, 96))
    with bbnet.watch(made, optimizer, every=1) as watched:
        for _ in range(3):
            trained_step(made, images, targets)
            optimizer.step()
            optimizer.zero_grad()
    never = [row["name"] for row in watched.rows() if row["updates"] == 0]
    assert never == []


def test_half_precision_trains_with_finite_gradients_and_boxes_in_float32():
    made = network(TINY, gatefuse=True, iou_scoring=True, reversible_branch=True)
    images, targets = batch()
    with torch.autocast("cpu", torch.bfloat16):
        found = made.train()(images, targets)
        loss = detection_loss(found, targets)["total"]
    loss.backward()
    assert found.last.boxes.dtype == torch.float32 and loss.dtype == torch.float32 and loss.isfinite()
    assert all(each.grad.isfinite().all() for each in made.parameters())


# Flags.


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("sizes", ["small", TINY], ids=["small", "tiny"])
def test_a_flag_changes_no_weight_that_it_shares_with_the_baseline(flag, sizes):
    baseline, made = network(sizes).state_dict(), network(sizes, **FLAGS[flag]).state_dict()
    shared = baseline.keys() & made.keys()
    # Projections of other operators may have the same names, such as `output`, and other shapes.
    same = {name for name in shared if baseline[name].shape == made[name].shape}
    assert all(torch.equal(baseline[name], made[name]) for name in same)
    changed = {*baseline, *made} - same
    places = {
        "gatefuse": ("mixer.beside", "mixer.gate"),
        "cross_scale_injection": (".cross.",),
        "gradient_injection": (".gradient.",),
        "reversible_branch": ("reversible.",),
        "iou_scoring": ("heads.iou", "heads.0.iou", "heads.1.iou"),
        "no_denoising": ("denoising.label",),
        "tap_scale": (),
    }.get(flag, ("mixer.operator",))
    assert bool(changed) == bool(places)
    assert all(any(place in name for place in places) for name in changed)


def test_two_networks_of_one_seed_are_equal_and_other_seeds_differ():
    baseline = network(TINY).state_dict()
    again = network(TINY, denoising=2).state_dict()
    assert all(torch.equal(baseline[name], again[name]) for name in baseline)
    torch.manual_seed(1)
    other = HybridDetector(Settings(sizes=TINY), CLASSES)
    assert not torch.equal(other.encoder.layers[0].ffn.expand.weight, baseline["encoder.layers.0.ffn.expand.weight"])
    same_shape = [made.weight for made in (other.encoder.layers[0].ffn.expand, other.encoder.layers[1].ffn.expand)]
    assert not torch.equal(*same_shape)


def test_flags_are_off_by_default_but_denoising():
    assert Settings() == Settings(
        sizes="small",
        operator="neighbourhood",
        tap_scale=1.0,
        gatefuse=False,
        cross_scale_injection=False,
        gradient_injection=False,
        reversible_branch=False,
        denoising=2,
        iou_scoring=False,
    )


IN_TRAINING_ALONE = ("no_denoising", "reversible_branch")


@pytest.mark.parametrize("flag", FLAGS)
def test_a_flag_changes_the_losses_that_it_should(flag):
    images, targets = batch()
    baseline, made = (trained_step(network(TINY, **flags), images, targets) for flags in ({}, FLAGS[flag]))
    added, removed = made.keys() - baseline.keys(), baseline.keys() - made.keys()
    heads = ("", ".proposals", ".decoder.0", ".denoising")
    assert added == {
        "reversible_branch": {f"{part}.reversible" for part in ("class", "l1", "giou")},
        "iou_scoring": {f"iou{head}" for head in heads},
    }.get(flag, set())
    assert removed == ({f"{part}.denoising" for part in ("class", "l1", "giou")} if flag == "no_denoising" else set())
    same = {name for name in baseline.keys() & made.keys() if torch.equal(baseline[name], made[name])}
    kept = [name for name in baseline if name in made and name != "total"]
    if flag in (*IN_TRAINING_ALONE, "iou_scoring"):
        # The other losses are those of the baseline: to the bit, but for another shape of the decoder's inputs.
        assert all(torch.allclose(baseline[name], made[name], rtol=1e-5) for name in kept)
        assert flag == "no_denoising" or same == {*kept}
    else:
        assert not any(torch.allclose(baseline[name], made[name], rtol=1e-6) for name in kept)


@pytest.mark.parametrize("flag", FLAGS)
@torch.no_grad()
def test_a_flag_changes_the_predictions_that_it_should(flag):
    images, _ = batch()
    baseline, made = (network(TINY, **flags).eval()(images) for flags in ({}, FLAGS[flag]))
    unchanged = (*IN_TRAINING_ALONE, "iou_scoring")
    equal = torch.equal(baseline.boxes, made.boxes) and torch.equal(baseline.logits, made.logits)
    assert equal == (flag in unchanged)
    assert isinstance(made, Rated) == (flag == "iou_scoring")


def test_true_deformable_attention_is_every_second_block_and_the_last():
    def operators(sizes, operator: str) -> list[str]:
        blocks = network(sizes, operator=operator).backbone.stages[-1].blocks
        return [type(block.mixer.operator).__name__ for block in blocks]

    assert operators(TINY, "deformable_attention") == ["Convolution", "NeighbourhoodAttention", "DeformableAttention"]
    assert operators(TINY, "deformable_convolution") == [
        "Convolution",
        "DeformableConvolution",
        "DeformableConvolution",
    ]
    assert operators("small", "deformable_attention") == ["Convolution", "DeformableAttention"]


@torch.no_grad()
def test_the_injected_gradient_is_a_skip_of_training_alone():
    made = GradientInjection(4, 8)
    maps, source, other = torch.randn(2, 3, 3, 8), torch.randn(2, 6, 6, 4), torch.randn(2, 6, 6, 4)
    assert torch.equal(made.eval()(maps, source), made(maps, other))
    made.train()
    dropped = torch.stack([made(maps, source) == maps for _ in range(200)]).flatten(2).all(-1)
    assert 0.03 < dropped.float().mean() < 0.2  # a tenth of the images
    torch.manual_seed(0)
    first = made(maps, source)
    torch.manual_seed(0)
    assert not torch.equal(first, made(maps, other))
    strength = 0.2 + 0.5 * made.strength.sigmoid()
    assert strength.item() == pytest.approx(0.5, abs=1e-3) and made.gain.unique().tolist() == [0.5]


@torch.no_grad()
def test_cross_scale_injection_begins_at_54_percent():
    made = CrossScaleInjection(4, 8)
    maps, source = torch.randn(2, 3, 5, 8), torch.randn(2, 6, 10, 4)
    added = made(maps, source) - maps
    pooled = nn.functional.avg_pool2d(made.adapter(source).permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
    torch.testing.assert_close(added, 0.54 * made.norm(pooled), atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_gatefuse_follows_its_equations():
    made = GateFuse(16, 2)
    assert torch.isclose(0.1 + 0.7 * made.of_convolution.sigmoid(), torch.tensor(0.24), atol=1e-3)
    assert torch.allclose(0.15 + 0.7 * made.of_attention.sigmoid(), torch.tensor(0.63), atol=1e-3)
    nn.init.normal_(made.place.weight)
    nn.init.normal_(made.of_attention)
    convolved, attended = torch.randn(2, 4, 5, 16), torch.randn(2, 4, 5, 16)
    joined = made.norm(made.project(torch.cat([convolved, attended, convolved - attended], -1)))
    joined = joined + 0.05 * made.contract(nn.functional.gelu(made.expand(joined)))
    found = made(convolved, attended)
    for image in range(2):
        weights = 0.05 + 0.9 * made.choice(joined[image].mean((0, 1))).reshape(2, 16).softmax(0)
        mixed = weights[0] * made.near(joined)[image] + weights[1] * made.far(joined)[image]
        gate = 0.02 + 0.96 * torch.sigmoid(made.place(joined)[image])
        refined = gate * mixed + (1 - gate) * joined[image]
        shares = (0.15 + 0.7 * made.of_attention.sigmoid()).flatten().repeat_interleave(8)
        expected = 0.24 * convolved[image] + 0.7 * refined + shares * attended[image]
        torch.testing.assert_close(found[image], expected, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_the_auxiliary_branch_can_be_inverted_so_it_loses_nothing():
    made = network(TINY, reversible_branch=True).double()
    images = torch.randn(2, 3, 32, 48, dtype=torch.float64)
    branch, maps = made.reversible, made.backbone(images)
    states, halves = [], images.permute(0, 2, 3, 1)
    for coupling, each, factor in zip(branch.couplings, maps, (4, 2, 2), strict=True):
        states.append(unshuffled(halves, factor))
        halves = coupling(states[-1], each)
    for coupling, each, state, factor in reversed(list(zip(branch.couplings, maps, states, (4, 2, 2), strict=True))):
        halves = coupling.inverse(halves, each)
        torch.testing.assert_close(halves, state, atol=1e-10, rtol=1e-10)
        halves = nn.functional.pixel_shuffle(halves.permute(0, 3, 1, 2), factor).permute(0, 2, 3, 1)
    torch.testing.assert_close(halves.permute(0, 3, 1, 2), images, atol=1e-10, rtol=1e-10)


def test_the_auxiliary_branch_gives_gradients_to_the_backbone_alone_and_evaluation_never_calls_it():
    made = network(TINY, reversible_branch=True)
    images, targets = batch()
    losses = detection_loss(made.train()(images, targets), targets)
    sum(each for name, each in losses.items() if name.endswith(".reversible")).backward()
    with_gradient = {name.split(".")[0] for name, each in made.named_parameters() if each.grad is not None}
    assert with_gradient == {"backbone", "reversible"}
    assert all(each.grad.any() for each in made.backbone.parameters())
    called = seen_modules(made.eval(), images)
    assert not any(name.startswith(("reversible", "denoising")) for name in called)
    made.reversible = None
    with torch.no_grad():
        assert made(images).boxes.shape == (2, 6, 4)


def seen_modules(made: nn.Module, images: torch.Tensor) -> set[str]:
    called = set()
    handles = [
        module.register_forward_hook(lambda *given, name=name: called.add(name))
        for name, module in made.named_modules()
    ]
    with torch.no_grad():
        made(images)
    for handle in handles:
        handle.remove()
    return called


# Denoising.


def test_noise_is_relative_to_the_box_and_differs_between_groups():
    boxes = torch.tensor([[[0.5, 0.5, 0.4, 0.1], [0.3, 0.6, 0.05, 0.3]]]).repeat(500, 1, 1)
    found = noised(boxes, 3).reshape(500, 3, 2, 2, 4)
    halves = (boxes[..., 2:] / 2).repeat(1, 1, 2)[:, None, None]
    shifts = (corners(found) - corners(boxes)[:, None, None]) / halves
    little, more = shifts[:, :, 0].abs(), shifts[:, :, 1].abs()
    assert little.amax() <= 0.4 + 1e-5 and more.amin() >= 0.4 - 1e-4 and more.amax() <= 0.8 + 1e-4
    assert little.mean() == pytest.approx(0.2, abs=0.01) and more.mean() == pytest.approx(0.6, abs=0.01)
    assert (shifts > 0).float().mean() == pytest.approx(0.5, abs=0.02)
    groups = shifts[:, :, 0].reshape(500, 3, -1)
    assert torch.corrcoef(groups.permute(1, 0, 2).flatten(1)).triu(1).abs().amax() < 0.1
    assert (found[..., 2:] >= 0.2 * boxes[:, None, None, :, 2:] - 1e-6).all()


def test_noised_boxes_stay_within_the_image():
    sides = corners(noised(torch.tensor([[[0.05, 0.95, 0.1, 0.1]]]), 100))
    assert sides.amin() >= 0 and sides.amax() <= 1
    assert noised(torch.zeros(2, 0, 4), 2).shape == (2, 0, 4)


def test_who_sees_whom():
    allowed = group_mask(torch.tensor([[4, -1]]), groups=2, queries=3)[0, 0]
    assert allowed.shape == (11, 11)
    first, padding, others = [0, 2], [1, 3, 5, 7], [8, 9, 10]
    for query in range(11):
        sees = set(allowed[query].nonzero().flatten().tolist())
        if query in others:
            assert sees == {*others}
        elif query in padding:
            assert query in sees
        else:
            assert sees == {*(first if query in first else [4, 6]), *others}
    assert not any(allowed[query, hidden] for query in range(11) for hidden in padding if query != hidden)


def test_a_fifth_of_the_labels_is_drawn_anew():
    made = network(TINY).denoising
    labels = torch.full((50, 40), 3)
    states, _ = made(Targets(torch.rand(50, 40, 4) / 4 + 0.2, labels))
    kept = (states == made.label.weight[3]).all(-1).float().mean().item()
    assert kept == pytest.approx(0.8 + 0.2 / CLASSES, abs=0.02)


def test_denoising_changes_no_other_prediction_and_padding_no_noised_one():
    made = network(TINY).train()
    images, targets = batch()
    torch.manual_seed(3)
    noisy, quiet = made(images, targets), made(images)
    for with_it, without in (
        (noisy.last, quiet.last),
        *((noisy.auxiliary[name], quiet.auxiliary[name]) for name in quiet.auxiliary),
    ):
        torch.testing.assert_close(with_it.boxes, without.boxes, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(with_it.logits, without.logits, atol=1e-4, rtol=1e-4)
    # What stands in the rows of padding changes nothing.
    others = Targets(torch.where(targets.labels[..., None] < 0, 0.77, targets.boxes), targets.labels)
    torch.manual_seed(3)
    found = made(images, others)
    real = (targets.labels >= 0).repeat(1, 4)
    torch.testing.assert_close(found.denoising.layers[-1].boxes[real], noisy.denoising.layers[-1].boxes[real])


# Slabs, decay and costs.


@pytest.mark.parametrize("sizes", ["small", TINY, "thesis"], ids=["small", "tiny", "thesis"])
def test_slabs_are_feed_forward_layers_and_projections_and_the_settings_know_their_fans(sizes):
    made, settings = network(sizes), Settings(sizes=sizes)
    for which in ("ffn", "wide"):
        found = {}
        for side in SIDES:
            chosen, dense = choose_slabs(made, slabs(made, which, side), Decimal("0.5"))
            assert all("below 8" in why for why in dense.values())
            found[side] = {slab.name: slab_shape(slab_weight(made, slab), slab.side)[1] for slab in chosen}
        assert found["both"] == found["in"] | found["out"] and not found["in"].keys() & found["out"].keys()
        fans = {fan for side in found.values() for fan in side.values()}
        assert fans == settings.fans(which)
        parts = {name.split(".")[0] for name in found["both"]}
        assert parts == ({"backbone", "encoder", "decoder"} | ({"neck", "proposals"} if which == "wide" else set()))
        layers = {name.split(".")[-1] for name in found["both"]}
        assert layers.isdisjoint({"query_key_value", "value", "output", "query_key", "offset_mask", "offset", "weight"})


def test_names_of_slabs_have_the_prefix_of_the_network():
    made = network(TINY)
    model = nn.ModuleDict({"network": made})
    for side in SIDES:
        plain, inside = slabs(made, "wide", side), slabs(made, "wide", side, "network.")
        assert [f"network.{slab.name}" for slab in plain] == [slab.name for slab in inside]
        assert all(model.get_submodule(name) for slab in inside for name in (slab.name, *slab.units))


@torch.no_grad()
def test_on_rates_are_those_after_each_units_own_activation():
    made, (images, _) = network(TINY).eval(), batch()
    rates = OnRates.of_slabs(made, slabs(made, "wide", "both"), stride=1, in_training=False)
    outputs = outputs_of(made, images)
    rates.remove()
    rates.fold()
    for slab in slabs(made, "wide", "both"):
        (units,) = slab.units
        gated = units.endswith("ffn.expand") and made.get_submodule(units.removesuffix(".expand")).factor is not None
        function = nn.functional.silu if gated or ".norm" in units else nn.functional.gelu
        on = (function(outputs[units]) > 0).double().flatten(0, -2).mean(0)
        torch.testing.assert_close(rates.of(slab.units)[0], on, atol=1e-9, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 64), (17, 9)])
def test_on_rates_in_training_do_not_count_the_queries_for_noised_objects(size):
    made, (images, targets) = network(TINY).train(), batch(size=size)
    of_decoder = [slab for slab in slabs(made, "wide", "in") if slab.name.startswith("decoder.")]
    rates = OnRates.of_slabs(made, of_decoder, stride=1)
    own = made.own_queries(images, targets)
    with rates.valid({"decoder": own}):
        outputs = outputs_of(made, images, targets)
    rates.remove()
    rates.fold()
    queries = made.eval()(images).logits.shape[1]
    noised_objects = 2 * made.denoising.groups * targets.labels.shape[1]
    assert own.shape == (2, noised_objects + queries) and own.tolist() == 2 * [
        [False] * noised_objects + [True] * queries
    ]
    for slab in of_decoder:
        (units,) = slab.units
        silu = units.endswith("ffn.expand")
        on = ((nn.functional.silu if silu else nn.functional.gelu)(outputs[units]) > 0).double()[:, noised_objects:]
        assert on.shape[1] == queries
        torch.testing.assert_close(rates.of(slab.units)[0], on.flatten(0, -2).mean(0), atol=1e-9, rtol=0)


def test_all_queries_are_the_own_ones_without_noised_objects():
    images, targets = batch()
    nothing = Targets(targets.boxes[:, :0], targets.labels[:, :0])
    assert network(TINY).train().own_queries(images, nothing) is None
    assert network(TINY).eval().own_queries(images, targets) is None
    assert network(TINY, denoising=0).train().own_queries(images, targets) is None


def outputs_of(made: nn.Module, images: torch.Tensor, targets: Targets | None = None) -> dict[str, torch.Tensor]:
    found = {}
    handles = [
        module.register_forward_hook(lambda _, __, output, name=name: found.update({name: output}))
        for name, module in made.named_modules()
    ]
    made(images, targets)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("method", ["sp_in", "magnitude", "rigl"])
def test_the_detector_is_sparsified_at_the_exact_budget(method):
    made = network(TINY)
    optimizer = torch.optim.AdamW(made.parameters(), lr=1e-3)
    chosen, _ = choose_slabs(made, slabs(made, "wide", "in"), Decimal("0.5"))
    sparsifier = sparsify(made, optimizer, chosen, method, "0.5", total_steps=8, every=1)
    images, targets = batch()
    for _ in range(8):
        trained_step(made, images, targets)
        optimizer.step()
        optimizer.zero_grad()
    masks = sparsifier.masks()
    assert masks.keys() == {slab.name for slab in chosen}
    total = sum(mask.numel() for mask in masks.values())
    assert sum(int(mask.sum()) for mask in masks.values()) == pytest.approx(total / 2, abs=len(masks) / 2)


def test_only_weights_of_linear_layers_and_convolutions_decay():
    for flags in FLAGS.values():
        made = network(TINY, **flags)
        exempt = {id(each) for each in without_decay(made)}
        for name, each in made.named_parameters():
            parent = made.get_submodule(name.rpartition(".")[0])
            decays = name.endswith(".weight") and isinstance(parent, nn.Linear | nn.Conv2d)
            assert (id(each) in exempt) != decays, name


def test_operations_are_counted_by_module_and_do_not_depend_on_training_flags():
    images, _ = batch(1, (96, 96))
    counts = {flag: flops_by_module(network(**FLAGS.get(flag, {})), (images,)) for flag in ("", *IN_TRAINING_ALONE)}
    assert counts[""][""] == counts["no_denoising"][""] == counts["reversible_branch"][""]
    layer = network().neck.lateral[0]
    assert counts[""]["neck.lateral.0"] == 2 * 12 * 12 * layer.in_features * layer.out_features
    stem = 2 * 48 * 48 * 3 * 16 * 9
    assert counts[""]["backbone.stem.0"] == stem


@pytest.mark.parametrize("flag", ["", "gatefuse", "iou_scoring"])
def test_the_detector_can_be_traced(flag):
    made = network(TINY, **FLAGS.get(flag, {})).eval()
    images, _ = batch(1)
    traced = torch.jit.trace(made, (images,))
    found, expected = traced(images), made(images)
    torch.testing.assert_close(found[1], expected.boxes)


@torch.no_grad()
def test_the_deployed_detector_predicts_the_same_without_what_training_alone_calls():
    made, (images, targets) = network(TINY, reversible_branch=True), batch()
    bare = deployed(made.eval())
    assert {name for name, _ in bare.named_children()} == {"backbone", "neck", "encoder", "proposals", "decoder"}
    assert all(torch.equal(*each) for each in zip(bare(images), made(images), strict=True))
    assert count(bare) == count(deployed(network(TINY))) < count(made)
    assert set(made.train()(images, targets).auxiliary) == {"proposals", "decoder.0", "reversible"}


# Settings.


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"levels": 3}, "levels 3 exceeds the 2 stages"),
        ({"encoder_levels": 3}, "encoder_levels 3 exceeds levels 2"),
        ({"heads": 5}, "width 64 must be a multiple of heads 5"),
        ({"head_width": 36}, "width 96 of stage 2 must be a multiple of head_width 36"),
        ({"stages": [{"width": 24}, {"width": 24, "blocks": ["operator"]}]}, "width 24 of stage 2 .* multiple of 16"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Sizes(**wrong)


def test_gatefuse_of_a_depthwise_convolution_is_refused():
    with pytest.raises(ValueError, match="gatefuse joins an attention and a deformable convolution"):
        Settings(gatefuse=True, operator="depthwise")
