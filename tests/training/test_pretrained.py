"""Weights of a run of another architecture: what fits is loaded, to the bit, and everything else is named."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

from bbnet.training.pretrained import load_matching


class Normalising(nn.Module):
    """A network with a buffer of the data, `mean`, and a parameter beside it."""

    def __init__(self, mean: float, classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([mean]))
        self.token = nn.Parameter(torch.randn(4))
        self.backbone = nn.Sequential(OrderedDict(conv=nn.Conv1d(1, 3, 1), norm=nn.BatchNorm1d(3)))
        self.head = nn.Linear(3, classes)


@pytest.fixture
def source():
    network = Normalising(5.0, classes=7)
    network.backbone(torch.randn(8, 1, 6))  # so that the running statistics are not the first ones
    return network.state_dict()


def test_parameters_and_running_statistics_of_equal_names_and_shapes_are_loaded(source):
    model = Normalising(2.0, classes=4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    places = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    loaded, unused = load_matching(model, source)
    backbone = [name for name in source if name.startswith("backbone.")]
    assert "backbone.norm.running_mean" in backbone
    assert "backbone.norm.num_batches_tracked" in backbone
    assert loaded == sorted([*backbone, "token"])
    assert unused == ["head.bias", "head.weight", "mean"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, source[name] if name in loaded else before[name]), name
    # Loaded in place, so that an optimiser that was made before trains them.
    assert {name: parameter.data_ptr() for name, parameter in model.named_parameters()} == places


def test_a_tensor_of_equal_size_but_another_shape_stays(source):
    model = Normalising(2.0, classes=7)
    model.token = nn.Parameter(torch.zeros(2, 2))
    loaded, unused = load_matching(model, source)
    assert "token" in unused
    assert "token" not in loaded
    assert "head.weight" in loaded


def test_weights_of_half_precision_become_those_of_the_model(source):
    model = Normalising(2.0, classes=4)
    load_matching(model, {name: tensor.half() for name, tensor in source.items()})
    weight = model.backbone.conv.weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, source["backbone.conv.weight"].half().float())


@pytest.mark.parametrize("weights", [{}, {"mean": torch.zeros(1)}, {"encoder.weight": torch.zeros(3, 1, 1)}])
def test_without_any_parameter_that_fits_it_is_refused(weights):
    with pytest.raises(ValueError, match="no parameter has name and shape of one of the model"):
        load_matching(Normalising(2.0, classes=4), weights)
