"""`bbnet verify`: checks whether the files of a run match its record."""

import argparse
import importlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from decimal import ROUND_FLOOR, Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors import safe_open

from bbnet.analysis.draws import mean_metrics, split_draws
from bbnet.analysis.weights import check_half_ranges
from bbnet.cli.runs import record_of
from bbnet.study.record import LATENT, Record, fingerprint, read_record, sha256_of, trained_files

WARM_START, SOURCE = "its warm start", "the run that it started from"


def add_to(commands: Any) -> None:
    parser = commands.add_parser(
        "verify",
        help="check whether runs match their records",
        description="Recomputes from a run's files what its record.json states: hashes, the fingerprint of its "
        "configuration, the connections of every slab, that pruned weights are 0, the signs of binary weights, "
        "densities, and the metrics from the items. Exit status 1 if anything differs.",
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="the folder of a run, with its record.json")
    parser.set_defaults(run=verify_runs)


def verify_runs(options: argparse.Namespace) -> None:
    wrong = 0
    for folder in options.runs:
        found = list(differences(folder))
        wrong += bool(found)
        others = {} if found else compared_with(folder, record_of(folder))
        absent = [what for what, path in others.items() if not path.is_file()]
        but = f" (missing, so not compared: {', '.join(absent)})" if absent else ""
        print(f"{folder}: " + ("does not match its record" if found else f"matches its record{but}"))
        for difference in found:
            print(f"  {difference}")
    if wrong:
        sys.exit(f"{wrong} of {len(options.runs)} runs do not match their records")


def compared_with(folder: Path, record: Record) -> dict[str, Path]:
    """Returns the files to compare a run with, found from its path `runs/{task}/{model}/{method}/{budget}/{seed}`."""
    task, model, _, _, seed = place_of(folder)
    results = Path(os.path.abspath(folder.joinpath(*[".."] * 6)))
    warm_start = results / "warm_up" / task / model / seed / "checkpoint.pt"
    begun = record.started_from
    source = {} if begun is None else {SOURCE: results / "runs" / begun.run / "model.safetensors"}
    return {WARM_START: warm_start, "scores": folder / "metrics.json"} | source


def place_of(folder: Path) -> list[str]:
    """Returns the last five parts of a run's path, which identify it within the results of a study."""
    return ([""] * 5 + list(folder.absolute().parts))[-5:]


def differences(folder: Path) -> Iterator[str]:
    """Yields one line for each difference between a run and its record."""
    if not (folder / "record.json").is_file():
        yield "is not the folder of a run: it has no record.json"
        return
    try:
        record = read_record(folder / "record.json")
    except (OSError, ValueError) as error:
        yield str(error)
        return
    checks: list[Callable[[Path, Record], Iterator[str]]] = [_configuration, _files, _masks, _weights, _binary, _scores]
    for check in checks:
        try:
            yield from check(folder, record)
        except Exception as error:  # files that were tampered with may raise any exception
            yield f"{check.__name__.strip('_')}: cannot be read ({type(error).__name__}: {error})"


def _configuration(folder: Path, record: Record) -> Iterator[str]:
    again = fingerprint(record.config)
    if again != record.fingerprint:
        yield f"record.json: its configuration has fingerprint {again}, recorded {record.fingerprint}"
    made_with = {key: record.config[key] for key in ("task", "seed", "budget")}
    for key, value in (made_with | {"side": record.config["method"].get("side", "none")}).items():
        if record.run.get(key) != value:
            yield f"record.json: {key} is {record.run.get(key)} in run, {value} in config"
    source = record.config.get("source", {}).get("run")
    found = record.started_from and record.started_from.run
    if found != source:
        yield f"record.json: started from {found or 'no run'}, by its configuration from {source or 'no run'}"
    run = record.run
    place = [str(run["task"]), str(run["model"]), str(run["method"]), f"b{run['budget']}", f"s{run['seed']}"]
    if folder.absolute().parts[-6:-5] == ("runs",) and place_of(folder) != place:
        yield f"record.json: is of run {'/'.join(place)}"


def _files(folder: Path, record: Record) -> Iterator[str]:
    for name in trained_files(record):
        if name not in record.files:
            yield f"record.json: has no hash of {name}"
        elif not (folder / name).is_file():
            yield f"{name}: is missing"
        elif sha256_of(folder / name) != record.files[name]:
            yield f"{name}: is not the file that the run wrote: its hash differs"
    if record.selected_epoch not in pd.read_csv(folder / "history.csv")["epoch"].tolist():
        yield f"record.json: selected epoch {record.selected_epoch} is not in history.csv"
    beside = compared_with(folder, record)
    warm_start, source = beside[WARM_START], beside.get(SOURCE)
    if warm_start.is_file() and sha256_of(warm_start) != record.inputs["warm_start"]:
        yield f"{warm_start}: is not the warm start of this run: its hash differs"
    if source is not None and source.is_file() and sha256_of(source) != record.started_from.weights:
        yield f"{source}: is not what this run started from: its hash differs"


def _masks(folder: Path, record: Record) -> Iterator[str]:
    masks = read_masks(folder / "masks.safetensors")
    if set(masks) != set(record.slabs):
        other = ", ".join(sorted(set(masks) ^ set(record.slabs)))
        yield f"masks.safetensors: its slabs are not the recorded ones: {other}"
        return
    for name, mask in masks.items():
        slab, kept = record.slabs[name], int(mask.sum())
        if mask.shape != (slab.units, slab.fan) or kept != slab.connections:
            recorded = f"{slab.connections} of {slab.units} x {slab.fan}"
            yield f"slab {name}: {kept} of {mask.shape[0]} x {mask.shape[1]} connections, recorded {recorded}"
        if slab.density != kept / mask.size:
            yield f"slab {name}: density {kept / mask.size}, recorded {slab.density}"
        required = kept_of(record, mask.size)
        if distribution_of(record) == "uniform" and kept != required:
            yield f"slab {name}: {kept} connections, budget {record.run['budget']} requires {required}"


def distribution_of(record: Record) -> str:
    """Returns how the connections of a run are distributed over its slabs."""
    method = record.config["method"]
    return method.get("one_shot", {}).get("allocation") or method.get("distribution", "uniform")


def kept_of(record: Record, possible: int) -> int:
    """Returns floor(b * possible + 1/2), or all for a method without a side, which masks no weights."""
    if record.run["side"] == "none":
        return possible
    exact = Decimal(record.config["budget"]) * possible + Decimal("0.5")
    return int(exact.to_integral_value(ROUND_FLOOR))


def _weights(folder: Path, record: Record) -> Iterator[str]:
    """Checks that pruned weights are 0, and the densities. `erk` and `global` keep the budget up to one kernel."""
    pruned = possible = largest_kernel = 0
    masks = read_masks(folder / "masks.safetensors")
    with safe_open(folder / "model.safetensors", framework="np") as model:
        for name, mask in masks.items():
            weight = model.get_tensor(f"{name}.weight")
            by_connection = weight if record.slabs[name].side == "in" else weight.swapaxes(0, 1)
            if by_connection.shape[:2] != mask.shape:
                yield f"slab {name}: its weight is of shape {weight.shape}, its mask of {mask.shape}"
                continue
            moved = int(np.count_nonzero(by_connection[~mask]))
            if moved:
                yield f"slab {name}: {moved} pruned weights are not 0"
            kernel = math.prod(weight.shape[2:])
            largest_kernel = max(largest_kernel, kernel)
            pruned += int((~mask).sum()) * kernel
            possible += weight.size
    kept, required = possible - pruned, kept_of(record, possible)
    of_all = kept_of(record, sum(mask.size for mask in masks.values()))
    connections = sum(int(mask.sum()) for mask in masks.values())
    if distribution_of(record) == "owl" and connections != of_all:
        yield f"{connections} connections of the slabs, budget {record.run['budget']} requires {of_all}"
    if distribution_of(record) in ("erk", "global") and not 0 <= required - kept < largest_kernel:
        yield f"{kept} weights of the slabs, budget {record.run['budget']} requires {required} up to one kernel"
    if record.cost.density != kept / possible:
        yield f"density {kept / possible}, recorded {record.cost.density}"
    net_density = (record.cost.weights - pruned) / record.cost.weights
    if net_density != record.cost.net_density:
        yield f"net density {net_density}, recorded {record.cost.net_density}"


def _binary(folder: Path, record: Record) -> Iterator[str]:
    """Checks that there are binary weights, h times the signs of their latent weights, which are within [-h, h]."""
    if LATENT not in trained_files(record):
        return
    if not record.half_ranges:
        yield f"it has no binary layer, though its method has {record.config['method']['weights']} weights"
    try:
        check_half_ranges(folder, record.half_ranges)
    except ValueError as error:
        yield str(error)
    with safe_open(folder / LATENT, "np") as latent, safe_open(folder / "model.safetensors", "np") as model:
        for layer, half_range in record.half_ranges.items():
            real = latent.get_tensor(f"{layer}.weight")
            h = real.dtype.type(half_range)
            wrong = int(np.count_nonzero(model.get_tensor(f"{layer}.weight") != np.sign(real) * h))
            if wrong:
                yield f"layer {layer}: {wrong} binary weights are not {h} times the sign of their latent weight"
            if np.abs(real).max() > h:
                yield f"layer {layer}: a latent weight is {np.abs(real).max()}, beyond {h}"


def _scores(folder: Path, record: Record) -> Iterator[str]:
    """Compares metrics and costs, if the run is scored."""
    if not (folder / "metrics.json").is_file():
        return
    metrics = importlib.import_module(f"bbnet.tasks.{record.config['task']}.metrics").metrics
    items = pd.read_parquet(folder / "items.parquet")
    of_draws = [{name: each[name].to_numpy() for name in each} for each in split_draws(items)]
    again = mean_metrics(metrics, of_draws)
    written = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    for name, value in again.items():
        if not _equal(float(value), written.get(name, math.inf)):
            yield f"metrics.json: {name} is {written.get(name)}, the items give {float(value)}"
    cost = json.loads((folder / "cost.json").read_text(encoding="utf-8"))
    recorded = record.cost.model_dump() | {"slabs": {name: slab.density for name, slab in record.slabs.items()}}
    for name, value in recorded.items():
        if cost.get(name) != value:
            yield f"cost.json: {name} is {cost.get(name)}, recorded {value}"


def _equal(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))


def read_masks(path: Path) -> Mapping[str, np.ndarray]:
    """Returns the masks, bool [units, fan], by slab name."""
    with safe_open(path, framework="np") as file:
        shapes = {name: json.loads(shape) for name, shape in file.metadata().items()}
        return {
            name: np.unpackbits(file.get_tensor(name), count=math.prod(shape)).astype(bool).reshape(shape)
            for name, shape in shapes.items()
        }
