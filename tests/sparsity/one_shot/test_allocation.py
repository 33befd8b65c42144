"""OWL: densities by the outliers of each block, with exactly the budget as their mean."""

import math
from decimal import Decimal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bbnet.sparsity.one_shot.allocation import owl_counts
from bbnet.sparsity.one_shot.prune import prune_one_shot

SHAPES = st.lists(st.tuples(st.integers(1, 70), st.integers(8, 70)), min_size=1, max_size=12)


@given(SHAPES, st.integers(13, 100), st.data())
def test_the_mean_density_is_exactly_the_budget(shapes, cents, data):
    names = [f"l{index}" for index in range(len(shapes))]
    cuts = sorted(data.draw(st.sets(st.integers(1, len(names)), max_size=3)) - {len(names)})
    stages = [names[start:end] for start, end in zip([0, *cuts], [*cuts, len(names)], strict=True)]
    ratios = data.draw(st.lists(st.floats(0, 0.2), min_size=len(stages), max_size=len(stages)))
    budget = Decimal(cents) / 100
    counts = owl_counts(dict(zip(names, shapes, strict=True)), budget, stages, ratios)
    total = sum(units * fan for units, fan in shapes)
    assert sum(counts.values()) == math.floor(budget * total + Decimal("0.5"))
    densities = {}
    for stage, members in enumerate(stages):
        for name in members:
            units, fan = dict(zip(names, shapes, strict=True))[name]
            # at least k_min of every unit, at most everything; a connection more or less is rounding
            assert math.ceil(fan / 20) / fan * units * fan - 1 <= counts[name] <= units * fan
            densities.setdefault(stage, []).append((counts[name] / (units * fan), 1 / (units * fan)))
    order = sorted(range(len(stages)), key=lambda stage: ratios[stage])
    for lower, higher in zip(order, order[1:], strict=False):
        assert min(d - r for d, r in densities[lower]) <= max(d + r for d, r in densities[higher])


def test_blocks_of_equal_size_follow_the_formula_of_the_paper():
    ratios = [0.02, 0.05, 0.03, 0.04]
    counts = owl_counts({f"l{i}": (100, 1000) for i in range(4)}, Decimal("0.3"), [[f"l{i}"] for i in range(4)], ratios)
    scaled = [(ratio - 0.02) / 0.03 * 0.16 for ratio in ratios]
    expected = [each - sum(scaled) / 4 + 0.3 for each in scaled]
    assert [counts[f"l{i}"] / 100_000 for i in range(4)] == pytest.approx(expected, abs=1e-5)


def test_equal_ratios_mean_equal_densities():
    counts = owl_counts({"a": (10, 20), "b": (30, 40)}, Decimal("0.5"), [["a"], ["b"]], [0.1, 0.1])
    assert counts == {"a": 100, "b": 600}


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_a_block_with_more_outliers_keeps_more(method):
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 20)) for _ in range(3)]
    with torch.no_grad():
        blocks[1][0].weight[:4, :3] *= 30
    model = nn.Sequential(*blocks)
    inputs = torch.randn(50, 20)
    # The ratios by plain loops over the dense model.
    ratios, hidden = [], inputs
    for block in blocks:
        scores = []
        for index in (0, 2):
            read = block[:index](hidden)
            norms = [float(sum(value.double() ** 2 for value in column)) ** 0.5 for column in read.detach().T]
            weight = block[index].weight.detach().tolist()
            scores.append([abs(row[j]) * norms[j] for row in weight for j in range(len(norms))])
        mean = sum(map(sum, scores)) / sum(map(len, scores))
        ratios.append(sum(score > 5 * mean for each in scores for score in each) / sum(map(len, scores)))
        hidden = block(hidden)
    done = prune_one_shot(model, [inputs], method, 0.4, allocation="owl")
    shapes = {f"{block}.{index}": blocks[block][index].weight.shape for block in range(3) for index in (0, 2)}
    expected = owl_counts(shapes, Decimal("0.4"), [[f"{block}.0", f"{block}.2"] for block in range(3)], ratios)
    assert {row["slab"]: row["connections"] for row in done.rows} == expected
    assert sum(expected.values()) == round(0.4 * 4800)
    assert expected["1.0"] > expected["0.0"]
