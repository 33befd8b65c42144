"""Masks against plain loops: sort by score descending, then by index."""

import math
from itertools import accumulate

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bbnet.sparsity.masks import (
    _keep_by_partition,
    _keep_by_sort,
    drop_and_grow,
    keep_largest,
    keep_largest_of_all,
    keep_largest_of_slabs,
    pack_masks,
    project_to_pattern,
    unpack_masks,
)

IMPLEMENTATIONS = (keep_largest, _keep_by_partition, _keep_by_sort)


def naive_mask(scores, degrees):
    mask = [[False] * len(row) for row in scores]
    for unit, row in enumerate(scores):
        ranked = sorted(range(len(row)), key=lambda index: (-row[index], index))
        for index in ranked[: degrees[unit]]:
            mask[unit][index] = True
    return mask


@st.composite
def rows_and_degrees(draw, most_rows=7, most_columns=12):
    columns = draw(st.integers(1, most_columns))
    score = st.one_of(st.integers(0, 3).map(float), st.floats(0, 2**20, width=32), st.floats(0, 2**-20, width=32))
    rows = draw(st.lists(st.lists(score, min_size=columns, max_size=columns), min_size=1, max_size=most_rows))
    return rows, [draw(st.integers(0, columns)) for _ in rows]


@pytest.mark.parametrize("keep", IMPLEMENTATIONS)
@given(case=rows_and_degrees())
def test_each_row_keeps_exactly_its_largest(keep, case):
    rows, degrees = case
    assert keep(torch.tensor(rows), torch.tensor(degrees)).tolist() == naive_mask(rows, degrees)


@pytest.mark.parametrize("keep", IMPLEMENTATIONS)
@pytest.mark.parametrize("degree", [0, 1, 5, 9])
def test_among_equal_scores_the_lower_index_stays(keep, degree):
    mask = keep(torch.full((3, 9), 0.5), torch.full((3,), degree))
    assert mask.tolist() == [[index < degree for index in range(9)]] * 3


@pytest.mark.parametrize("columns", [33, 500])
def test_both_implementations_agree_on_larger_rows_full_of_ties(columns):
    scores = torch.randint(0, 6, (64, columns)).float()
    degrees = torch.randint(0, columns + 1, (64,))
    by_partition = _keep_by_partition(scores, degrees)
    assert torch.equal(by_partition, _keep_by_sort(scores, degrees))
    assert by_partition.tolist() == naive_mask(scores.tolist(), degrees.tolist())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_scores_may_have_any_floating_type(dtype):
    scores = torch.rand(5, 40).to(dtype)
    degrees = torch.tensor([0, 1, 17, 39, 40])
    assert keep_largest(scores, degrees).tolist() == naive_mask(scores.tolist(), degrees.tolist())


def test_scores_need_not_be_contiguous():
    scores = torch.rand(40, 5).T
    degrees = torch.tensor([3, 0, 40, 20, 1])
    assert keep_largest(scores, degrees).tolist() == naive_mask(scores.tolist(), degrees.tolist())


def test_scores_are_left_as_they_were():
    scores = torch.rand(6, 30)
    before = scores.clone()
    keep_largest(scores, torch.full((6,), 11))
    assert torch.equal(scores, before)


@given(case=rows_and_degrees(), data=st.data())
def test_the_largest_of_all_ignore_rows(case, data):
    rows, _ = case
    flat = [score for row in rows for score in row]
    count = data.draw(st.integers(0, len(flat)))
    mask = keep_largest_of_all(torch.tensor(rows), count)
    assert mask.shape == (len(rows), len(rows[0]))
    assert mask.flatten().tolist() == naive_mask([flat], [count])[0]


@given(first=rows_and_degrees(), second=rows_and_degrees(), third=rows_and_degrees(), data=st.data())
def test_the_largest_of_all_slabs_are_those_of_one_joint_sort(first, second, third, data):
    slabs = [case[0] for case in (first, second, third)]
    places = [
        (slab, row, column)
        for slab, rows in enumerate(slabs)
        for row, of in enumerate(rows)
        for column in range(len(of))
    ]
    kernels = data.draw(st.lists(st.sampled_from([1, 4, 9]), min_size=3, max_size=3))
    total = data.draw(st.integers(0, sum(kernels[slab] for slab, _, _ in places)))
    ordered = sorted(places, key=lambda place: -slabs[place[0]][place[1]][place[2]])
    weights = list(accumulate(kernels[slab] for slab, _, _ in ordered))
    kept = {place for place, so_far in zip(ordered, weights, strict=True) if so_far <= total}
    masks = keep_largest_of_slabs([torch.tensor(rows) for rows in slabs], kernels, total)
    found = [(slab, *place) for slab, mask in enumerate(masks) for place in map(tuple, mask.nonzero().tolist())]
    assert set(found) == kept
    assert [list(mask.shape) for mask in masks] == [[len(rows), len(rows[0])] for rows in slabs]


def literal_drop_and_grow(mask, magnitudes, growth, count, share):
    """Evci et al., algorithm 1, over flat lists; a list of n largest is one of a stable sort."""
    live = [place for place, is_live in enumerate(mask) if is_live]
    grows = 0 if growth is None else math.floor(share * count)
    kept = sorted(live, key=lambda place: -magnitudes[place])[: count - grows]
    others = [place for place in range(len(mask)) if place not in kept]
    grown = sorted(others, key=lambda place: -growth[place])[:grows] if grows else []
    return [place in kept or place in grown for place in range(len(mask))]


@st.composite
def masks_to_move(draw):
    rows, fan = draw(st.integers(1, 6)), draw(st.integers(1, 10))
    size = rows * fan
    count = draw(st.integers(0, size))
    live = draw(st.permutations(range(size)))[: draw(st.integers(count, size))]
    score = st.one_of(st.integers(0, 3).map(float), st.floats(0, 100, width=32))
    scores = st.lists(score, min_size=size, max_size=size)
    growth = draw(st.one_of(st.none(), scores))
    share = draw(st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.999, 1.0]))
    return (rows, fan), [place in live for place in range(size)], draw(scores), growth, count, share


@given(masks_to_move())
def test_drop_and_grow_is_the_published_loop(case):
    shape, mask, magnitudes, growth, count, share = case
    moved = drop_and_grow(
        torch.tensor(mask).reshape(shape),
        torch.tensor(magnitudes).reshape(shape),
        None if growth is None else torch.tensor(growth).reshape(shape),
        count,
        share,
    )
    assert moved.flatten().tolist() == literal_drop_and_grow(mask, magnitudes, growth, count, share)
    assert (moved.shape, int(moved.sum())) == (shape, count)


def test_what_was_dropped_competes_for_growth_at_once():
    mask = torch.tensor([[True, True, True, True, False, False]])
    magnitudes = torch.tensor([[4.0, 3.0, 2.0, 1.0, 0.0, 0.0]])
    # The two smallest go, of which the smaller has the largest gradient of all that are then pruned.
    growth = torch.tensor([[9.0, 9.0, 1.0, 8.0, 7.0, 2.0]])
    assert drop_and_grow(mask, magnitudes, growth, 4, 0.5).int().tolist() == [[1, 1, 0, 1, 1, 0]]


def naive_pattern(mask, ranking, kept, size):
    """By groups: entries of the mask first, then by rank, then by index; the surplus to the mask's others by rank."""
    chosen = set()
    for unit, row in enumerate(mask):
        for start in range(0, len(row), size):
            group = range(start, start + size)
            best = sorted(group, key=lambda at: (not row[at], -ranking[unit][at], at))
            chosen |= {(unit, at) for at in best[:kept]}
    others = [(unit, at) for unit, row in enumerate(mask) for at in range(len(row)) if row[at]]
    others = sorted((place for place in others if place not in chosen), key=lambda place: -ranking[place[0]][place[1]])
    chosen |= set(others[: sum(map(sum, mask)) - len(chosen)])
    return [[(unit, at) in chosen for at in range(len(row))] for unit, row in enumerate(mask)]


@st.composite
def masks_to_project(draw):
    size = draw(st.integers(2, 6))
    kept = draw(st.integers(1, size - 1))
    units, groups = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    fan = groups * size
    exact = draw(st.booleans())
    count = units * groups * kept if exact else draw(st.integers(units * groups * kept, units * fan))
    live = draw(st.permutations(range(units * fan)))[:count]
    rank = st.one_of(st.integers(0, 3).map(float), st.floats(0, 100, width=32))
    ranking = draw(st.lists(st.lists(rank, min_size=fan, max_size=fan), min_size=units, max_size=units))
    mask = [[unit * fan + at in live for at in range(fan)] for unit in range(units)]
    return mask, ranking, kept, size, exact


@given(masks_to_project())
def test_a_projection_keeps_the_count_and_fills_every_group_by_mask_then_rank(case):
    mask, ranking, kept, size, exact = case
    projected = project_to_pattern(torch.tensor(mask), torch.tensor(ranking), kept, size)
    assert projected.tolist() == naive_pattern(mask, ranking, kept, size)
    in_groups = projected.reshape(-1, size).sum(1)
    assert int(projected.sum()) == sum(map(sum, mask))
    assert bool((in_groups == kept).all() if exact else (in_groups >= kept).all())


def test_a_projection_worked_by_hand():
    # Group 1 of 2:4 has three in the mask: the two that rank higher stay. Group 2 has one: it stays, although it ranks
    # last, and the best of the others joins it.
    mask = torch.tensor([[1, 1, 0, 1, 0, 0, 1, 0]]).bool()
    ranking = torch.tensor([[3.0, 1.0, 9.0, 2.0, 6.0, 8.0, 0.0, 8.0]])
    assert project_to_pattern(mask, ranking, 2, 4).int().tolist() == [[1, 0, 0, 1, 0, 1, 1, 0]]
    # One more in the mask, as on the ramp: it stays too.
    mask[0, 4] = True
    assert project_to_pattern(mask, ranking, 2, 4).int().tolist() == [[1, 1, 0, 1, 1, 0, 1, 0]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("keep", [keep_largest, lambda scores, degrees: keep_largest_of_all(scores, 2)])
def test_scores_that_are_not_finite_are_refused(keep, bad):
    scores = torch.rand(3, 8)
    scores[1, 5] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        keep(scores, torch.full((3,), 2))


def bits_by_hand(mask):
    flat = [bit for row in mask for bit in row]
    flat += [False] * (-len(flat) % 8)
    return [sum(1 << (7 - place) for place in range(8) if flat[at + place]) for at in range(0, len(flat), 8)]


@given(st.integers(1, 9), st.integers(1, 20), st.integers(0, 2**16))
def test_packed_masks_are_bits_in_c_order_and_come_back(units, fan, seed):
    mask = torch.rand(units, fan, generator=torch.Generator().manual_seed(seed)) < 0.5
    packed, shapes = pack_masks({"layer.0": mask, "flipped": mask.T})
    assert packed["layer.0"].dtype == torch.uint8
    assert packed["layer.0"].tolist() == bits_by_hand(mask.tolist())
    assert packed["flipped"].tolist() == bits_by_hand(mask.T.tolist())
    assert shapes == {"layer.0": f"[{units}, {fan}]", "flipped": f"[{fan}, {units}]"}
    back = unpack_masks(packed, shapes)
    assert torch.equal(back["layer.0"], mask)
    assert torch.equal(back["flipped"], mask.T)
    assert back["layer.0"].dtype == torch.bool


def test_packed_masks_survive_safetensors(tmp_path):
    """Which is a package of the study, and not one that the core depends on."""
    safetensors = pytest.importorskip("safetensors.torch")
    masks = {"a": torch.rand(5, 13) < 0.3, "b.c": torch.rand(3, 8) < 0.9}
    packed, shapes = pack_masks(masks)
    safetensors.save_file(packed, tmp_path / "masks.safetensors", metadata=shapes)
    with safetensors.safe_open(tmp_path / "masks.safetensors", "pt") as file:
        back = unpack_masks({name: file.get_tensor(name) for name in masks}, file.metadata())
    assert all(torch.equal(back[name], masks[name]) for name in masks)
