"""A detector starts from a backbone that was trained to classify; slabs and decay of that classifier."""

import pytest
import torch

from bbnet.sparsity.slab import choose_slabs, slab_shape
from bbnet.tasks.classification import task as classification
from bbnet.tasks.classification.settings import HybridBackbone
from bbnet.tasks.detection import task as detection
from bbnet.tasks.detection.settings import Model
from bbnet.training.pretrained import load_matching
from bbnet.training.runs import sizes
from tests.tasks.detection.test_task import TINY

CPU = torch.device("cpu")
PIXELS = {"mean": [100.0, 110.0, 120.0], "sd": [50.0, 60.0, 70.0]}
FLAGS = [{}, {"gatefuse": True}, {"operator": "deformable_attention"}, {"cross_scale_injection": True}]


def classifier(**flags):
    settings = HybridBackbone(architecture="hybrid_backbone", sizes=TINY, **flags)
    return classification.build_model(settings, PIXELS | {"classes": ["a", "b", "c"]}, CPU)


def detector(**flags):
    settings = Model(sizes=TINY, **flags)
    return detection.build_model(settings, PIXELS | {"classes": ["car", "tree"]}, CPU)


@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_all_of_the_backbone_is_loaded_and_nothing_else(flags):
    source, model = classifier(**flags), detector(**flags)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    loaded, _ = load_matching(model, source.state_dict())
    assert set(loaded) == {name for name in before if name.startswith("backbone.")}
    for name, tensor in model.state_dict().items():
        expected = source.state_dict()[name] if name in loaded else before[name]
        assert torch.equal(tensor, expected), name


def test_a_classifier_has_the_slabs_of_the_backbone_and_its_other_weights_do_not_decay():
    model = classifier()
    for which, side in (("paper", "in"), ("wide", "in"), ("wide", "out")):
        slabs, left_dense = choose_slabs(model, classification.slabs(model, which, side), 0.5)
        own = {slab.name for slab in detection.slabs(detector(), "wide", side) if slab.name.startswith("backbone.")}
        assert {slab.name for slab in slabs} | set(left_dense) == own
    weights = {name for name, each in model.named_modules() if isinstance(each, torch.nn.Linear | torch.nn.Conv2d)}
    exempt = {id(each) for each in classification.without_decay(model)}
    decayed = {name for name, each in model.named_parameters() if id(each) not in exempt}
    assert decayed == {f"{name}.weight" for name in weights}


def test_images_of_any_size_are_classified():
    model = classifier().eval()
    assert model(torch.rand(2, 3, 32, 48) * 255).shape == (2, 3)
    assert model(torch.rand(1, 3, 20, 20) * 255).isfinite().all()


def test_costs_do_not_count_what_training_alone_calls():
    whole, plain = detector(reversible_branch=True), detector(denoising=0)
    binary = [
        f"reversible.{name}" for name, each in whole.reversible.named_modules() if isinstance(each, torch.nn.Linear)
    ]
    slabs, _ = choose_slabs(whole, detection.slabs(whole, "wide", "in"), 0.5)
    masks = {
        slab.name: torch.ones(slab_shape(whole.get_submodule(slab.name).weight, slab.side), dtype=torch.bool)
        for slab in slabs
    }
    found = sizes(detection, whole, masks, binary)
    assert binary and found == sizes(detection, plain, masks, [])
    assert found["weights"] == sum(each.numel() for each in plain.parameters())
