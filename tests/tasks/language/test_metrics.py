"""Perplexities from sums over documents, also of resampled ones, and their buckets."""

import numpy as np
import pytest

from bbnet.tasks.language import metrics as own
from bbnet.tasks.language.metrics import METRICS, PARTS, metrics, relative_metrics
from bbnet.tasks.task import load_metrics

RNG = np.random.default_rng(0)


def items(documents: int = 9) -> dict[str, np.ndarray]:
    tokens = {f"{part}_tokens": RNG.integers(1, 40, documents) for part in PARTS}
    found: dict[str, np.ndarray] = {"bytes": RNG.integers(100, 300, documents)} | tokens
    for run in ("", "floor_"):
        losses = {f"{run}{part}_nll": tokens[f"{part}_tokens"] * RNG.uniform(0.5, 5, documents) for part in PARTS}
        found |= losses | {f"{run}nll": sum(losses.values())}
    return found | {"tokens": sum(tokens.values()), "right": RNG.integers(0, 9, documents)}


def test_every_metric_is_that_of_the_tokens_one_by_one():
    rows = items()
    found = metrics(rows)
    assert set(found) | {f"dnll_{bucket}" for bucket in ("head", "mid", "tail")} == set(METRICS)
    for run in ("", "floor_"):
        nll, tokens = float(sum(rows[f"{run}nll"])), int(sum(rows["tokens"]))
        assert found[f"{run}perplexity"] == pytest.approx(np.exp(nll / tokens))
        assert found[f"{run}bits_per_byte"] == pytest.approx(nll / np.log(2) / sum(rows["bytes"]))
        for part in PARTS:
            mean = sum(rows[f"{run}{part}_nll"]) / sum(rows[f"{part}_tokens"])
            assert found[f"{run}perplexity_{part}"] == pytest.approx(np.exp(mean))
    assert found["nll_tail"] == pytest.approx(np.log(found["perplexity_tail"]))
    assert found["accuracy"] == pytest.approx(sum(rows["right"]) / sum(rows["tokens"]))
    logs = {part: np.log(found[f"perplexity_{part}"]) * sum(rows[f"{part}_tokens"]) for part in PARTS}
    assert sum(logs.values()) / sum(rows["tokens"]) == pytest.approx(np.log(found["perplexity"]))


def test_weights_count_documents_as_often_as_they_were_drawn():
    rows, drawn = items(), RNG.multinomial(9, np.full(9, 1 / 9), size=4)
    found = metrics(rows, drawn)
    dense = items() | {name: values for name, values in rows.items() if name.endswith("_tokens")}
    relative = relative_metrics(rows, dense, drawn)
    for number, counts in enumerate(drawn):
        repeated, of_dense = ({name: np.repeat(each, counts) for name, each in one.items()} for one in (rows, dense))
        for name, value in metrics(repeated).items():
            assert found[name][number] == pytest.approx(value), name
        for name, value in relative_metrics(repeated, of_dense).items():
            assert relative[name][number] == pytest.approx(value), name
    stacked = {name: np.stack([values, values[::-1]])[:, None] for name, values in rows.items()}
    assert metrics(stacked, drawn)["perplexity"].shape == (2, 4)


def test_a_difference_of_losses_is_the_ratio_of_perplexities():
    rows = items()
    dense = items() | {name: values for name, values in rows.items() if name.endswith("_tokens")}
    found = relative_metrics(rows, dense)
    for bucket in ("head", "mid", "tail"):
        ratio = metrics(rows)[f"perplexity_{bucket}"] / metrics(dense)[f"perplexity_{bucket}"]
        assert found[f"dnll_{bucket}"] == pytest.approx(np.log(ratio))
    assert all(value == 0 for value in relative_metrics(rows, rows).values())


def test_a_perplexity_stays_finite_and_is_undefined_without_tokens():
    rows = {name: np.array([0]) for name in items()} | {"nll": np.array([1e9]), "tokens": np.array([1])}
    found = metrics(rows)
    assert np.isfinite(found["perplexity"]) and found["perplexity"] > 1e300
    assert np.isnan([found["perplexity_tail"], found["nll_tail"], found["bits_per_byte"]]).all()


def test_dev_has_neither_buckets_nor_a_floor():
    rows = {name: values for name, values in items().items() if name in ("bytes", "nll", "tokens", "right")}
    assert set(metrics(rows)) == {"accuracy", "perplexity", "bits_per_byte"}


def test_the_analysis_finds_what_it_asks_for():
    assert load_metrics("language") is own
    assert {own.SELECTION, *own.PRIMARY, *own.BY_BUCKET["test"].values()} <= set(METRICS)
    rows = items()
    sizes = own.bucket_sizes(rows)["test"]
    assert sizes == {bucket: rows[f"{bucket}_tokens"].sum() for bucket in ("head", "mid", "tail")}
