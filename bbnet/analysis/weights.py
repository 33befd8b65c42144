"""Statistics of the weights of a run in each layer, and whether weights that should be binary are."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors import SafetensorError, safe_open

from bbnet.binary.half_range import glorot_half_range

MODEL, LATENT = "model.safetensors", "latent.safetensors"
BIN_WIDTH, BIN_COUNT = 0.1, 41  # the bins are centred at -2, -1.9, ..., 2; the outermost also count what is beyond
BIN_CENTRES = (np.arange(BIN_COUNT) - BIN_COUNT // 2) * BIN_WIDTH
BINS = [f"bin_{centre:+.1f}" for centre in BIN_CENTRES + 0.0]
COLUMNS = [
    *("layer", "kind", "weights", "h", "minimum", "maximum", "mean", "sd"),
    *("at_minus", "at_plus", "between", "outside", "zero", "distance", "not_binary", *BINS),
]
NO_WEIGHTS = pd.DataFrame(columns=COLUMNS)


def weights_table(folder: Path, recorded: Mapping[str, float]) -> pd.DataFrame:
    """Returns the statistics of each layer of the run in `folder`: `COLUMNS`, by layer and kind.

    Of a binary layer there are a row of kind `latent` and one of kind `binary`; of any other layer, one of kind
    `float`. Layers are the tensors named `weight` with two dimensions or more, so the weights of norms are left out.

    All values are in units of h: the recorded one of a binary layer, sqrt(1.5 / (fan_in + fan_out)) of another.
    `at_minus`, `at_plus`, `between` (without 0), `outside` and `zero` are shares of the weights at -h, at h, between
    the two, beyond them, and at 0, as pruned weights are; they sum to 1. `distance` is the mean distance of the weights
    that are not 0 to the nearer one of -h and h, NaN if all are 0. `not_binary` counts the binary weights that are not
    -h or h, or not 0 where the latent weight is 0. `bin_x` is the number of weights in a bin of width 0.1 around x.

    Args:
        recorded: h of each layer whose weights should be binary, by the run's record.
    Raises: ValueError naming a file of the run that is missing, damaged or without a layer.
    """
    model = _tensors(folder / MODEL)
    layers = [name for name, weight in model.items() if weight.ndim > 1 and name.rpartition(".")[2] == "weight"]
    latent, scales = _latent(folder, model, recorded) if recorded else ({}, {})
    rows = []
    for name in sorted(layers, key=_natural):
        layer, weight = name.removesuffix("weight").removesuffix("."), model[name]
        if name not in latent:
            rows.append(_row(layer, "float", weight, glorot_half_range(weight.shape)))
            continue
        real, h = latent[name], scales[name]
        wrong = np.abs(weight) != np.where(real == 0, 0, weight.dtype.type(h))
        rows.append(_row(layer, "latent", real, h))
        rows.append(_row(layer, "binary", weight, h) | {"not_binary": int(np.count_nonzero(wrong))})
    return pd.DataFrame(rows, columns=COLUMNS)


def check_half_ranges(folder: Path, recorded: Mapping[str, float]) -> None:
    """Raises ValueError naming the file of latent weights if it is not valid, or the layers that it lacks."""
    with _opened(folder / LATENT) as file:
        texts = file.metadata() or {}
    written = {layer: repr(h) for layer, h in recorded.items()}
    differing = sorted(layer for layer in texts.keys() | written.keys() if texts.get(layer) != written.get(layer))
    if differing:
        raise ValueError(f"{LATENT}: its binary layers, or their h, are not the recorded ones: {', '.join(differing)}")


def _latent(
    folder: Path, model: Mapping[str, np.ndarray], recorded: Mapping[str, float]
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Returns the latent weights and h, both by name of the tensor; raises ValueError if they do not fit the model."""
    check_half_ranges(folder, recorded)
    scales = {f"{layer}.weight" if layer else "weight": h for layer, h in recorded.items()}
    latent = _tensors(folder / LATENT)
    for name in sorted(latent.keys() | scales.keys()):
        if name not in latent or name not in scales or name not in model or latent[name].shape != model[name].shape:
            raise ValueError(f"{LATENT}: {name} lacks h or the latent weight, or has not the shape as in {MODEL}")
    return latent, scales


def _tensors(path: Path) -> dict[str, np.ndarray]:
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _opened(path: Path) -> Any:
    if not path.is_file():
        raise ValueError(f"{path.name}: is missing")
    try:
        return safe_open(path, framework="np")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path.name}: cannot be read ({error})") from None


def _natural(name: str) -> list:
    """Returns a key by which layers are sorted so that 10 follows 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", name)]


def _row(layer: str, kind: str, weight: np.ndarray, h: float) -> dict[str, Any]:
    values = weight.ravel().astype(np.float64) / float(weight.dtype.type(h))
    size = np.abs(values)
    live = size[size != 0]
    bins = np.clip(np.rint(values / BIN_WIDTH) + BIN_COUNT // 2, 0, BIN_COUNT - 1)
    counts = np.bincount(bins[np.isfinite(bins)].astype(int), minlength=BIN_COUNT)
    return {
        "layer": layer,
        "kind": kind,
        "weights": values.size,
        "h": h,
        "minimum": values.min(),
        "maximum": values.max(),
        "mean": values.mean(),
        "sd": values.std(),
        "at_minus": np.mean(values == -1),
        "at_plus": np.mean(values == 1),
        "between": np.mean((size < 1) & (size > 0)),
        "outside": np.mean(~(size <= 1)),
        "zero": np.mean(size == 0),
        "distance": np.abs(live - 1).mean() if live.size else math.nan,
        "not_binary": 0,
    } | dict(zip(BINS, counts.tolist(), strict=True))
