"""Masks against a plain loop: per row, sort by score descending, then by index."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from bbnet.sparsity.masks import (
    _keep_by_partition,
    _keep_by_sort,
    keep_largest,
    keep_largest_of_all,
    pack_masks,
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
    masks = {"a": torch.rand(5, 13) < 0.3, "b.c": torch.rand(3, 8) < 0.9}
    packed, shapes = pack_masks(masks)
    save_file(packed, tmp_path / "masks.safetensors", metadata=shapes)
    with safe_open(tmp_path / "masks.safetensors", "pt") as file:
        back = unpack_masks({name: file.get_tensor(name) for name in masks}, file.metadata())
    assert all(torch.equal(back[name], masks[name]) for name in masks)
