"""Which layers are pruned in which order, on which inputs, and what stays as it was."""

import copy
import json

import pytest
import torch
from torch import nn
from torch.nn import functional

import bbnet
from bbnet.sparsity.one_shot.prune import prune_one_shot
from bbnet.sparsity.one_shot.settings import METHODS

WIDTH, TOKENS = 16, 11


class Block(nn.Module):
    """A residual block with dropout, a scale as an argument, and an output that is a tuple."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH)
        self.dropout = nn.Dropout(0.5)

    def forward(self, hidden, scale, *, shift=None):
        between = self.dropout(functional.relu(self.up(self.norm(hidden)) * scale))
        return hidden + self.down(between) + (0 if shift is None else shift), scale


class Decoder(nn.Module):
    """An embedding, blocks, and a head that has the weight of the embedding; every second block gets a shift."""

    def __init__(self, depth=3):
        super().__init__()
        self.embedding = nn.Embedding(TOKENS, WIDTH)
        self.pair = nn.ModuleList([nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)])  # not one after the other
        self.blocks = nn.ModuleList([Block() for _ in range(depth)])
        self.head = nn.Linear(WIDTH, TOKENS, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens, attention_mask=None):
        hidden = self.embedding(tokens)
        hidden = hidden + sum(each(hidden) for each in self.pair)
        scale = torch.linspace(0.5, 1.5, hidden.shape[1])[:, None]
        for index, block in enumerate(self.blocks):
            shift = torch.full((1,), 0.1) if index % 2 else None
            hidden, _ = block(hidden, scale, shift=shift)
        return self.head(hidden)


def decoder(**options):
    torch.manual_seed(0)
    return Decoder(**options)


def batches(count=4, length=9):
    generator = torch.Generator().manual_seed(1)
    return [{"tokens": torch.randint(TOKENS, (2, length + each), generator=generator)} for each in range(count)]


LAYERS = [f"blocks.{block}.{layer}" for block in range(3) for layer in ("up", "down")]


def pruned_one_after_the_other(model, given, method, budget):
    """The layers of each block pruned together on the whole model, with the blocks before it pruned."""
    masks = {}
    for block in range(len(model.blocks)):
        before = copy.deepcopy(model)
        for layer in ("up", "down"):
            # A deep copy for each layer, so that both see the inputs of the block while it is dense.
            single = copy.deepcopy(before)
            name = f"blocks.{block}.{layer}"
            masks |= prune_one_shot(single, given, method, budget, layers=[name]).masks()
            model.get_submodule(name).load_state_dict(single.get_submodule(name).state_dict())
    return masks


@pytest.mark.parametrize("method", ["sparsegpt", "wanda", "ria", "budgeted_broadcast"])
@pytest.mark.parametrize("keep_on", [None, "cpu"])
def test_each_block_is_calibrated_on_the_outputs_of_the_pruned_blocks_before_it(method, keep_on):
    model, expected = decoder(), decoder()
    masks = pruned_one_after_the_other(expected, batches(), method, 0.4)
    done = prune_one_shot(model, iter(batches()), method, 0.4, keep_on=keep_on)
    assert [row["slab"] for row in done.rows] == LAYERS
    for name, mask in done.masks().items():
        assert torch.equal(mask, masks[name])
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, expected.state_dict()[name], msg=name)
    untouched = ("embedding", "pair", "head", "norm", "bias")
    for name, value in decoder().state_dict().items():
        assert torch.equal(value, model.state_dict()[name]) == any(part in name for part in untouched)


@pytest.mark.parametrize("method", METHODS)
def test_modes_hooks_and_gradients_are_as_before_and_equal_calls_give_equal_bits(method):
    models = [decoder(), decoder()]
    for model in models:
        model.train()
        model.blocks[1].eval()
        torch.manual_seed(len(models))  # which must not matter
        done = prune_one_shot(model, batches(), method, 0.4)
        assert model.training
        assert not model.blocks[1].dropout.training
        assert model.blocks[0].dropout.training
        for module in model.modules():
            assert not (module._forward_hooks or module._forward_pre_hooks)
        assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
        assert model.head.weight is model.embedding.weight
    first, second = (model.state_dict() for model in models)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    json.dumps(done.record())


def test_padding_does_not_count():
    masks = []
    for padding in (0, 3):
        given = [
            {
                "tokens": functional.pad(batch["tokens"], (0, padding), value=5),
                "attention_mask": functional.pad(torch.ones_like(batch["tokens"]), (0, padding)),
            }
            for batch in batches()
        ]
        model = decoder()
        # The scale of a position depends on the length, so that it is made constant here.
        model.forward = lambda tokens, attention_mask, model=model: _constant_scale(model, tokens)
        done = prune_one_shot(model, given, "sparsegpt", 0.5)
        masks.append(done.masks())
        assert done.calibration["positions"] == {"": sum(batch["tokens"].numel() for batch in batches())}
        assert done.calibration["sequences"] == 8
    assert all(torch.equal(mask, masks[1][name]) for name, mask in masks[0].items())


def _constant_scale(model, tokens):
    hidden = model.embedding(tokens)
    for block in model.blocks:
        hidden, _ = block(hidden, torch.ones(1))
    return model.head(hidden)


def test_the_record_tells_calibration_sets_and_their_order_apart():
    hashes = {
        prune_one_shot(decoder(), given, "wanda", 0.5).calibration["sha256"]
        for given in (batches(), batches(), batches()[::-1], batches(3))
    }
    assert len(hashes) == 3


def test_a_network_without_blocks_is_pruned_layer_by_layer_in_the_order_of_its_calls():
    class Crossed(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.first = nn.Linear(12, 12), nn.Linear(12, 12)

        def forward(self, inputs):
            return self.last(self.first(inputs).relu()) + inputs

    torch.manual_seed(0)
    model = Crossed()
    expected, inputs = copy.deepcopy(model), torch.randn(30, 12)
    done = prune_one_shot(model, [inputs], "sparsegpt", 0.5, layers=["*"])
    assert [slab.name for slab in done.slabs] == ["first", "last"]
    for name in ("first", "last"):
        prune_one_shot(expected, [inputs], "sparsegpt", 0.5, layers=[name])
    assert all(torch.equal(value, expected.state_dict()[name]) for name, value in model.state_dict().items())


def test_blocks_of_a_sequential_in_a_sequential_are_found():
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)) for _ in range(4)]
    model = nn.Sequential(nn.Linear(8, 16), nn.Sequential(*blocks), nn.Linear(16, 8))
    done = prune_one_shot(model, [torch.randn(5, 8)], "wanda", 0.5)
    assert list(done.densities) == [f"1.{block}.{layer}" for block in range(4) for layer in (0, 2)]


def test_layers_that_no_input_reaches_stay_dense_or_are_refused_if_named():
    model = decoder()
    model.blocks[1].spare = nn.Linear(WIDTH, WIDTH)
    dense = copy.deepcopy(model.blocks[1].spare)
    done = prune_one_shot(model, batches(), "sparsegpt", 0.5, allocation="uniform")
    assert done.left_dense == {"blocks.1.spare": "no calibration input reaches it"}
    assert list(done.densities) == LAYERS
    assert torch.equal(model.blocks[1].spare.weight, dense.weight)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"layer blocks\.1\.spare: no calibration input reaches it"):
        prune_one_shot(model, batches(), "sparsegpt", 0.3, layers=["blocks.*"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_exported_model_is_smaller_and_computes_the_same():
    model = decoder()
    prune_one_shot(model, batches(), "budgeted_broadcast", 0.2, side="in")
    tokens = batches()[0]["tokens"]
    expected = model.eval()(tokens)
    torch.testing.assert_close(bbnet.export(model)(tokens), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "rigl"}, "unknown method 'rigl' of one-shot pruning, allowed: budgeted_broadcast, magnitude"),
        ({"method": "wanda", "law": "uniform"}, "algorithm wanda: law: Extra inputs are not permitted"),
        ({"method": "magnitude", "distribution": "global"}, "use allocation owl"),
        ({"allocation": "erk"}, "unknown allocation 'erk', allowed: uniform, owl"),
        ({"pattern": "2:4", "budget": 0.3}, "pattern 2:4 implies budget 2/4 below 1, not 0.3"),
        ({"pattern": "2:4", "allocation": "owl"}, "pattern 2:4 needs the same density everywhere"),
        ({"pattern": "3:6"}, r"layer blocks\.0\.up: its 16 inputs do not fit pattern 3:6"),
        ({"budget": 0}, r"budget 0 is outside \(0, 1\]"),
        ({"budget": 0.01}, "no layer in the blocks blocks.0 to blocks.2 can be pruned"),
        ({"layers": ["blocks.*.middle"]}, "layers: 'blocks.*.middle' matches no linear layer or convolution"),
        ({"layers": ["head"]}, "slab head: its weight is also that of embedding"),
        ({"layers": [bbnet.Slab("blocks.0.up", "out", "blocks.0.norm")]}, "has side out, but the method has side in"),
        ({"layers": ["blocks.0.up"], "side": "both"}, "side both needs layers that are given as slabs"),
        ({"blocks": "layers"}, "blocks: Decoder has no attribute `layers`"),
        ({"blocks": "pair", "layers": ["blocks.0.up"]}, "some layers or their units are not in the blocks"),
        ({"batches": []}, "sparsegpt needs calibration inputs, but there is no batch"),
        ({"batches": [], "method": "magnitude"}, "no stack of blocks was found in Decoder: name the module"),
    ],
)
def test_wrong_requests_are_refused_before_anything_changes(options, message):
    model = decoder()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        prune_one_shot(model, **{"batches": batches()} | options)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_model_in_training_with_masks_is_refused():
    model = decoder()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    slabs = [bbnet.Slab("blocks.0.up", "in", "blocks.0.up")]
    sparsifier = bbnet.sparsify(model, optimizer, slabs, "magnitude", 0.5, total_steps=40)
    with pytest.raises(ValueError, match="a sparsifier or binarizer acts on its weight"):
        prune_one_shot(model, batches(), "wanda", 0.5)
    sparsifier.remove()
    prune_one_shot(model, batches(), "wanda", 0.5)
