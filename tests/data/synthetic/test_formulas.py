"""Random formulas against a naive evaluation of their truth tables, and splits without a common input."""

import json
import math
from itertools import product

import numpy as np
import pytest

from bbnet.data.synthetic.formulas import FILE, SPLITS, distinct_inputs, dnf_values, random_dnf, write, xor_values

COUNTS = {"train": 300, "val": 60, "test": 40}


def all_inputs(bits: int) -> np.ndarray:
    return np.array(list(product((0, 1), repeat=bits)), dtype=np.uint8)


def naive_dnf(row: list[int], variables: list[list[int]], wanted: list[list[int]]) -> bool:
    """The definition, literal by literal."""
    for bits, values in zip(variables, wanted, strict=True):
        met = 0
        for bit, value in zip(bits, values, strict=True):
            met += row[bit] == value
        if met == len(bits):
            return True
    return False


@pytest.mark.parametrize("literals", [2, 3, 4])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_dnf_is_true_where_its_definition_says(literals, seed):
    table = all_inputs(10)
    variables, wanted = random_dnf(table, literals, np.random.default_rng(seed))
    expected = [naive_dnf(row, variables.tolist(), wanted.tolist()) for row in table.tolist()]
    assert dnf_values(table, variables, wanted).tolist() == expected
    assert all(len(set(bits)) == literals for bits in variables.tolist())


def test_truth_tables_by_hand():
    """(x0 and not x1) or x2; and x0 xor x2."""
    table = all_inputs(3)
    dnf = dnf_values(table, np.array([[0, 1], [2, 2]]), np.array([[1, 0], [1, 1]]))
    assert dnf.tolist() == [False, True, False, True, True, True, False, True]
    assert xor_values(table, [0, 2]).tolist() == [False, True, False, True, True, False, True, False]


@pytest.mark.parametrize("relevant", [[1], [0, 3], [0, 1, 2, 3, 4]])
def test_the_xor_is_true_for_exactly_half_of_all_inputs_and_changes_with_each_relevant_bit(relevant):
    table = all_inputs(5)
    values = xor_values(table, relevant)
    assert values.sum() == 16
    for bit in range(5):
        flipped = table.copy()
        flipped[:, bit] ^= 1
        assert (xor_values(flipped, relevant) != values).all() == (bit in relevant)


@pytest.mark.parametrize("literals", [2, 3, 4, 5])
def test_about_half_of_the_inputs_are_true_and_one_term_fewer_would_be_no_nearer(literals):
    """A term is true for at most 2 ** -literals of all inputs, so the nearest number of terms is off by half of it."""
    table = all_inputs(12)
    for seed in range(5):
        variables, wanted = random_dnf(table, literals, np.random.default_rng(seed))
        share = dnf_values(table, variables, wanted).mean()
        without_last = dnf_values(table, variables[:-1], wanted[:-1]).mean()
        assert abs(share - 0.5) <= 2.0 ** -(literals + 1)
        assert abs(share - 0.5) <= abs(without_last - 0.5)


@pytest.mark.parametrize(("bits", "count"), [(8, 256), (24, 5000), (62, 100)])
def test_inputs_are_different_and_their_bits_are_fair(bits, count):
    inputs = distinct_inputs(count, bits, seed=0)
    assert inputs.shape == (count, bits)
    assert set(np.unique(inputs)) == {0, 1}
    assert len({tuple(row) for row in inputs.tolist()}) == count
    assert np.abs(inputs.mean(0) - 0.5).max() < 4 * 0.5 / math.sqrt(count)


def test_splits_have_their_sizes_and_no_input_in_common(tmp_path):
    write(tmp_path, seed=0, bits=9, xor_bits=3, dnf_literals=3, counts=COUNTS)
    parts = {split: [tuple(row) for row in np.load(tmp_path / f"{split}.npy").tolist()] for split in SPLITS}
    assert {split: len(rows) for split, rows in parts.items()} == COUNTS
    assert len(set().union(*parts.values())) == sum(COUNTS.values())
    formulas = json.loads((tmp_path / FILE).read_text(encoding="utf-8"))
    assert len(set(formulas["xor"])) == 3 and max(formulas["xor"]) < 9


def test_equal_arguments_give_equal_files_and_another_seed_others(tmp_path):
    written = []
    for number, seed in enumerate((0, 0, 1)):
        target = tmp_path / str(number)
        target.mkdir()
        write(target, seed=seed, bits=16, xor_bits=2, dnf_literals=3, counts=COUNTS)
        written.append({path.name: path.read_bytes() for path in target.iterdir()})
    assert written[0] == written[1]
    assert all(written[0][name] != written[2][name] for name in written[0])
