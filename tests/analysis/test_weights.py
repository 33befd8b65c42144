"""Statistics of weights by layer, against values counted by hand, and the table over all layers."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

from bbnet.analysis import tables
from bbnet.analysis.metric import Metric
from bbnet.analysis.weights import BIN_COUNT, BINS, COLUMNS, check_half_ranges, weights_table

H = 0.1  # not a float32, so that rounding matters
RECORDED = {"inner": H}


def write_weights(folder, h: float = H, **changed: np.ndarray | None) -> None:
    """Binary weights of the layer `inner`, with its latent ones; the norm and the two other layers are float."""
    at = np.float32(h)
    latent = np.array([[at, -at, 0], [0.5 * at, -0.25 * at, at]], np.float32)
    model = {"inner.weight": np.sign(latent) * at, "first.10.weight": np.full((1, 2), 1e-3, np.float32)}
    model |= {"first.9.weight": np.full((2, 1, 3, 3), 1, np.float32)}
    model |= {"norm.weight": np.ones(3, np.float32), "inner.bias": np.ones(2, np.float32)}
    model |= {"norm.num_batches_tracked": np.array(3)}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        model | {name: value for name, value in changed.items() if name != "latent"}, folder / "model.safetensors"
    )
    save_file({"inner.weight": changed.get("latent", latent)}, folder / "latent.safetensors", {"inner": repr(h)})


def test_each_layer_and_kind_is_described_in_units_of_h(tmp_path):
    write_weights(tmp_path)
    table = weights_table(tmp_path, RECORDED)
    assert list(table.columns) == COLUMNS
    assert list(zip(table["layer"], table["kind"], strict=True)) == [
        ("first.9", "float"),
        ("first.10", "float"),
        ("inner", "latent"),
        ("inner", "binary"),
    ]
    assert table["h"].tolist() == [pytest.approx(math.sqrt(1.5 / 27)), pytest.approx(math.sqrt(1.5 / 3)), H, H]
    latent, binary = table.iloc[2], table.iloc[3]
    values = [1, -1, 0, 0.5, -0.25, 1]
    shares = ["at_minus", "at_plus", "between", "outside", "zero"]
    assert latent[shares].tolist() == [pytest.approx(share / 6) for share in (1, 2, 2, 0, 1)]
    assert (latent["minimum"], latent["maximum"], latent["weights"]) == (-1, 1, 6)
    assert (latent["mean"], latent["sd"]) == (pytest.approx(np.mean(values)), pytest.approx(np.std(values)))
    assert latent["distance"] == pytest.approx((0.5 + 0.75) / 5)
    assert {name: latent[name] for name in BINS if latent[name]} == {
        "bin_-1.0": 1,
        "bin_-0.2": 1,  # -0.25 lies on the edge, and goes to the even bin
        "bin_+0.0": 1,
        "bin_+0.5": 1,
        "bin_+1.0": 2,
    }
    assert binary[[*shares, "distance", "not_binary"]].tolist() == [
        *(pytest.approx(share / 6) for share in (2, 3, 0, 0, 1)),
        *(0, 0),
    ]


def test_beyond_the_bins_weights_count_in_the_outermost(tmp_path):
    write_weights(tmp_path)
    first = weights_table(tmp_path, {}).iloc[0]
    assert (first["kind"], first["outside"], first["bin_+2.0"], sum(first[BINS])) == ("float", 1, 18, 18)
    assert len(BINS) == BIN_COUNT == 41


@pytest.mark.parametrize(
    ("value", "wrong"), [(0.05, 1), (np.nan, 1), (0.0, 1), (-np.float32(H), 0)], ids=["other", "nan", "0", "-h"]
)
def test_weights_that_are_not_binary_are_counted(tmp_path, value, wrong):
    write_weights(tmp_path)
    at = np.float32(H)
    changed = np.array([[value, -at, 0], [at, -at, at]], np.float32)
    write_weights(tmp_path, **{"inner.weight": changed})
    assert weights_table(tmp_path, RECORDED)["not_binary"].tolist() == [0, 0, 0, wrong]


def test_a_layer_of_which_all_is_pruned_has_no_distance(tmp_path):
    zero = np.zeros((2, 3), np.float32)
    write_weights(tmp_path, latent=zero, **{"inner.weight": zero})
    rows = weights_table(tmp_path, RECORDED).iloc[2:]
    assert rows["distance"].isna().all()
    assert rows["zero"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "latent.safetensors").unlink(), "latent.safetensors: is missing"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x"), "model.safetensors: cannot be read"),
        (lambda folder: write_weights(folder, latent=np.zeros((3, 2), np.float32)), "has not the shape as in model"),
        (lambda folder: write_weights(folder, h=0.2), "or their h, are not the recorded ones: inner"),
        (lambda folder: save_file({}, folder / "latent.safetensors"), "not the recorded ones: inner"),
        (
            lambda folder: save_file({}, folder / "latent.safetensors", {"inner": "wide"}),
            "not the recorded ones: inner",
        ),
        (lambda folder: save_file({}, folder / "latent.safetensors", {"inner": "0.1"}), "inner.weight lacks h or"),
        (
            lambda folder: save_file({}, folder / "latent.safetensors", {"inner": "0.1", "b": "0.1", "a": "1"}),
            "not the recorded ones: a, b",
        ),
    ],
)
def test_files_that_are_not_valid_are_named(tmp_path, spoil, said):
    write_weights(tmp_path)
    check_half_ranges(tmp_path, RECORDED)
    spoil(tmp_path)
    with pytest.raises(ValueError, match=said):
        weights_table(tmp_path, RECORDED)


def test_the_table_has_the_latent_weights_of_all_layers_together():
    rows = [
        {"seed": 0, "weights": 10, "zero": 0.5, "at_minus": 0.5, "at_plus": 0.0, "between": 0.0, "distance": 0.0},
        {"seed": 0, "weights": 30, "zero": 0.0, "at_minus": 0.0, "at_plus": 0.5, "between": 0.5, "distance": 0.25},
        {"seed": 1, "weights": 10, "zero": 1.0, "at_minus": 0.0, "at_plus": 0.0, "between": 0.0, "distance": np.nan},
        {"seed": 1, "weights": 30, "zero": 1.0, "at_minus": 0.0, "at_plus": 0.0, "between": 0.0, "distance": np.nan},
    ]
    latent = pd.DataFrame(rows).assign(kind="latent", method="ternary", side="in", budget="0.50")
    summary = SimpleNamespace(
        read={"weights": pd.concat([latent, latent.assign(kind="binary", zero=0)])}.__getitem__, task="t", model="m"
    )
    table = tables.weights_table(summary, None)
    (row,) = table.data.to_dict("records")
    assert (row["method"], row["weights"]) == ("ternary", 40)
    assert row["zero"] == pytest.approx((5 / 40 + 1) / 2)
    assert row["at_plus"] == pytest.approx((15 / 40) / 2)
    assert row["distance"] == pytest.approx(30 * 0.25 / 35)  # of the seed that has weights that are not 0
    assert table.shown.iloc[0, 3:5].tolist() == ["40", "0.562"]


def test_the_table_of_latent_scores_has_a_column_for_each_way_of_scoring():
    ways = [("binary", "trained", 0.9), ("latent", "trained", 0.3), ("latent", "anew", 0.7)]
    rows = [
        {"seed": seed, "weights": weights, "statistics": statistics, "metric": metric, "value": value + 0.02 * seed}
        for weights, statistics, value in ways
        for metric in ("top1", "top5")
        for seed in (0, 1)
    ]
    read = {"latent": pd.DataFrame(rows).assign(method="binary", side="none", budget="1.00")}.__getitem__
    task = SimpleNamespace(PRIMARY=("top1",), METRICS={"top1": Metric("top-1", "share", "higher", 0, 1)})
    table = tables.latent_table(SimpleNamespace(read=read, task="t", model="m"), task)
    assert table.shown.iloc[0].tolist() == ["binary", "none", "1.00", "top-1", "0.910", tables.DASH, "0.310", "0.710"]
