"""Draws distinct inputs of bits and two formulas of them: the XOR of some bits, and a random DNF.

A DNF (disjunctive normal form) is true if one of its terms is, and a term if all its literals are: bits, or negated
bits. Equal arguments give equal files.
"""

import json
import random
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy import ndarray

SPLITS = ("train", "val", "test")
FILE = "formulas.json"


def write(target: Path, *, seed: int, bits: int, xor_bits: int, dnf_literals: int, counts: Mapping[str, int]) -> None:
    """Writes the inputs of each split, `{split}.npy`, uint8 [inputs, bits], and the formulas, `formulas.json`.

    No input is in two splits, or twice in one.

    Args:
        counts: number of inputs of each split; together at most 2 ** bits.
    """
    inputs = distinct_inputs(sum(counts.values()), bits, seed)
    generator = np.random.default_rng(seed)
    relevant = generator.choice(bits, xor_bits, replace=False)
    variables, wanted = random_dnf(inputs, dnf_literals, generator)
    formulas = {"xor": sorted(relevant.tolist()), "dnf": {"variables": variables.tolist(), "wanted": wanted.tolist()}}
    (target / FILE).write_text(json.dumps(formulas), encoding="utf-8")
    ends = np.cumsum([counts[split] for split in SPLITS])
    for split, part in zip(SPLITS, np.split(inputs, ends[:-1]), strict=True):
        np.save(target / f"{split}.npy", part)


def distinct_inputs(count: int, bits: int, seed: int) -> ndarray:
    """Returns different inputs in random order, uint8 [count, bits] of 0 and 1."""
    numbers = np.array(random.Random(seed).sample(range(2**bits), count), dtype=np.int64)
    return (numbers[:, None] >> np.arange(bits) & 1).astype(np.uint8)


def random_dnf(inputs: ndarray, literals: int, generator: np.random.Generator) -> tuple[ndarray, ndarray]:
    """Draws terms of `literals` different bits each until the share of true inputs is as near to one half as it gets.

    Args:
        inputs: [inputs, bits], on which the share is counted.
    Returns: the bit of each literal, int64 [terms, literals], and the value with which it is true, of the same shape.
    """
    variables, wanted = (np.empty((0, literals), dtype=np.int64) for _ in range(2))
    true = np.zeros(len(inputs), dtype=bool)
    while true.mean() < 0.5:
        bits = generator.choice(inputs.shape[1], literals, replace=False)[None]
        values = generator.integers(0, 2, (1, literals))
        after = true | dnf_values(inputs, bits, values)
        if after.mean() - 0.5 > 0.5 - true.mean():
            break
        variables, wanted, true = np.concatenate([variables, bits]), np.concatenate([wanted, values]), after
    return variables, wanted


def xor_values(inputs: ndarray, relevant: ndarray) -> ndarray:
    """Returns whether an odd number of the relevant bits is 1, bool [inputs]."""
    return inputs[:, relevant].sum(1) % 2 == 1


def dnf_values(inputs: ndarray, variables: ndarray, wanted: ndarray) -> ndarray:
    """Returns whether all literals of any term are true, bool [inputs]; arguments as `random_dnf` returns them."""
    true = np.zeros(len(inputs), dtype=bool)
    for bits, values in zip(variables, wanted, strict=True):
        true |= (inputs[:, bits] == values).all(1)
    return true
