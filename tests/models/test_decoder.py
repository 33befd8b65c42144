"""The causal decoder against its equations written as loops, and the properties that rotary positions promise."""

import math

import pytest
import torch
from torch.nn import functional

from bbnet.models.decoder import EPSILON, CausalAttention, CausalDecoder, rotary_angles, rotated, slabs
from bbnet.models.settings.decoder import fans, parameter_count
from bbnet.sparsity.on_rate import OnRates
from bbnet.sparsity.slab import check_slabs, layer_shape
from tests.networks import seen

KINDS = ("swiglu", "gelu", "relu")
SIDES = ("in", "out", "both")


def restless_decoder(kind: str, **sizes) -> CausalDecoder:
    """A decoder in float64 whose weights, also those of the norms, are far from their initial values."""
    torch.manual_seed(0)
    sizes = {"vocabulary": 11, "width": 12, "hidden": 20, "layers": 2, "heads": 3} | sizes
    network = CausalDecoder(kind=kind, **sizes).double().eval()
    for weight in network.parameters():
        torch.nn.init.normal_(weight, mean=1.0 if weight.dim() == 1 else 0.0, std=0.5)
    return network


def by_hand(network: CausalDecoder, tokens: list[int]) -> torch.Tensor:
    """The logits [length, vocabulary] of one sequence, position by position and head by head."""

    def normed(vector, norm):
        return vector / (sum(value**2 for value in vector) / len(vector) + EPSILON).sqrt() * norm.weight

    def turned(vector, place):
        half, found = len(vector) // 2, vector.clone()
        for pair in range(half):
            angle = place * 10_000 ** (-2 * pair / len(vector))
            first, second = vector[pair], vector[pair + half]
            found[pair] = first * math.cos(angle) - second * math.sin(angle)
            found[pair + half] = second * math.cos(angle) + first * math.sin(angle)
        return found

    states = [network.embedding.weight[token] for token in tokens]
    for block in network.blocks:
        attention, ffn = block.attention, block.ffn
        before = [normed(state, block.attention_norm) for state in states]
        mixed = []
        for place in range(len(states)):
            heads = []
            for head in range(attention.heads):
                rows = slice(head * network.head_width, (head + 1) * network.head_width)
                query = turned(attention.query.weight[rows] @ before[place], place)
                keys = [turned(attention.key.weight[rows] @ before[at], at) for at in range(place + 1)]
                scores = torch.stack([query @ key / math.sqrt(network.head_width) for key in keys]).softmax(0)
                values = [attention.value.weight[rows] @ before[at] for at in range(place + 1)]
                heads.append(sum(score * value for score, value in zip(scores, values, strict=True)))
            mixed.append(attention.output.weight @ torch.cat(heads))
        states = [state + own for state, own in zip(states, mixed, strict=True)]
        for place, state in enumerate(states):
            read = normed(state, block.ffn_norm)
            gate = ffn.gate.weight @ read
            if ffn.up is not None:
                hidden = gate * gate.sigmoid() * (ffn.up.weight @ read)
            elif isinstance(ffn.activation, torch.nn.ReLU):
                hidden = gate.clamp(min=0)
            else:
                hidden = gate * (1 + torch.erf(gate / math.sqrt(2))) / 2
            states[place] = state + ffn.down.weight @ hidden
    return torch.stack([network.head.weight @ normed(state, network.norm) for state in states])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("tied", "length"), [(True, 1), (False, 7)])
def test_logits_are_those_of_the_equations(kind, tied, length):
    network = restless_decoder(kind, tied=tied)
    tokens = torch.randint(11, (2, length))
    with torch.no_grad():
        expected = torch.stack([by_hand(network, row.tolist()) for row in tokens])
        # angles are float32, as in half precision
        torch.testing.assert_close(network(tokens), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_later_tokens_change_nothing(kind):
    network, tokens = restless_decoder(kind), torch.randint(11, (3, 9))
    with torch.no_grad():
        before = network(tokens)
        for place in range(1, 9):
            other = tokens.clone()
            other[:, place:] = (tokens[:, place:] + 1 + torch.arange(9 - place)) % 11
            after = network(other)
            torch.testing.assert_close(after[:, :place], before[:, :place])
            assert not torch.allclose(after[:, place], before[:, place])


def test_rotated_features_meet_by_the_distance_of_their_positions_alone():
    torch.manual_seed(1)
    query, key = torch.randn(2, 16)
    angles = rotary_angles(64, 16, query.device)
    scores = rotated(query.expand(64, 16), angles) @ rotated(key.expand(64, 16), angles).T
    for distance in (0, 1, 5, 40):
        along = scores.diagonal(-distance)
        torch.testing.assert_close(along, along[:1].expand_as(along), rtol=1e-4, atol=1e-4)
    assert scores[:, 0].std() > 0.1
    torch.testing.assert_close(rotated(query.expand(64, 16), angles).norm(dim=1), query.norm().expand(64))
    half = rotated(query.half().expand(64, 16), angles)
    assert half.dtype == torch.float16 and torch.allclose(half.float(), rotated(query, angles), atol=2e-2)


def test_attention_depends_on_the_order_of_earlier_positions_and_weighs_them_by_one_in_all():
    torch.manual_seed(2)
    attention = CausalAttention(8, 2).double()
    states, angles = torch.randn(1, 5, 8).double(), rotary_angles(5, 4, torch.device("cpu"))
    swapped = attention(states[:, [1, 0, 2, 3, 4]], angles)
    assert not torch.allclose(swapped[:, 4], attention(states, angles)[:, 4])
    same = states[:, :1].expand(1, 5, 8)  # of equal values, the mean is their value
    expected = attention.output(attention.value(same))
    torch.testing.assert_close(attention(same, angles), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_those_counted_by_hand(kind, tied):
    network = CausalDecoder(100, 16, 40, 3, 2, kind, tied)
    matrices = 3 if kind == "swiglu" else 2
    expected = 100 * 16 * (1 if tied else 2) + 3 * (4 * 16 * 16 + matrices * 16 * 40 + 2 * 16) + 16
    assert sum(weight.numel() for weight in network.parameters()) == expected
    assert parameter_count(100, 16, 40, 3, kind, tied) == expected


def test_initial_weights_are_those_of_gpt_2():
    torch.manual_seed(3)
    network = CausalDecoder(500, 64, 256, 8, 4)
    for name, weight in network.named_parameters():
        expected = 0.02 / 4 if name.endswith(("output.weight", "down.weight")) else 0.02
        if weight.dim() > 1:
            assert weight.std().item() == pytest.approx(expected, rel=0.05), name
    logits = network(torch.randint(500, (2, 32))).flatten(0, 1)
    assert functional.cross_entropy(logits, torch.randint(500, (64,))).item() == pytest.approx(math.log(500), abs=0.2)


def test_heads_must_divide_the_width_into_pairs():
    with pytest.raises(ValueError, match="width 12 is not a multiple of twice the 4 heads"):
        CausalDecoder(11, 12, 20, 1, 4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", ["wide", "all"])
def test_all_sides_have_the_same_matrices(kind, which):
    network = CausalDecoder(11, 16, 40, 2, 2, kind)
    found = {side: slabs(network, which, side) for side in SIDES}
    names = {side: {slab.name for slab in of_side} for side, of_side in found.items()}
    ffn = ("gate", "up", "down") if kind == "swiglu" else ("gate", "down")
    layers = {f"ffn.{layer}" for layer in ffn}
    if which == "all":
        layers |= {f"attention.{layer}" for layer in ("query", "key", "value", "output")}
    expected = {f"blocks.{number}.{layer}" for number in (0, 1) for layer in layers}
    assert names == dict.fromkeys(SIDES, expected)
    for side, of_side in found.items():
        assert len(check_slabs(network, of_side, 0.5)) == len(expected)
        own = {slab.side for slab in of_side}
        assert own == ({"in", "out"} if side == "both" else {side})
        assert {layer_shape(network.get_submodule(slab.name), slab.side)[1] for slab in of_side} <= fans(16, 40)


@pytest.mark.parametrize("kind", KINDS)
def test_units_are_on_where_their_pre_activation_is_positive(kind):
    network, tokens = restless_decoder(kind), torch.randint(11, (2, 6))
    inputs, outputs = seen(network, tokens)
    for side in SIDES:
        chosen = slabs(network, "all", side)
        rates = OnRates.of_slabs(network, chosen, stride=1, in_training=False)
        with torch.no_grad():
            network(tokens)
        rates.fold()
        for slab in chosen:
            block, _, layer = slab.name.rpartition(".")
            expected = (outputs if slab.side == "in" else inputs)[slab.name]
            if (layer, slab.side) in (("up", "in"), ("down", "out")):  # of hidden units the gate decides
                expected = outputs[f"{block}.gate"]
            torch.testing.assert_close(rates.of(slab.units)[0], (expected > 0).double().mean((0, 1)))
        rates.remove()
