"""Trains one run, method x budget x seed, from its warm start, and scores it on test."""

from datetime import UTC, datetime
from pathlib import Path

from common import JSON, TEXT, arguments, error_note, read_json, run, to_json, write_csv, write_parquet, write_text

import numpy as np
import torch

from bbnet.data.store import alone, whole_file
from bbnet.sparsity.sparsifier import REFRESH_COLUMNS
from bbnet.study.record import (
    LATENT,
    TRAINED,
    Record,
    check_files,
    draw_files,
    environment,
    is_trained,
    peak_memory_mib,
    read_record,
    sha256_of,
)
from bbnet.training import ranks
from bbnet.training.checkpoint import load_state, save_latent, save_masks, save_weights
from bbnet.training.live import live_as_configured
from bbnet.training.one_shot import prune
from bbnet.training.resume import StateFile
from bbnet.training.runs import Job, TrainedRun, evaluate, train


def main(options) -> None:
    """Trains, unless the folder holds this run already and only its scores are out of date; then scores."""
    devices = ranks.device_count(options.config)
    if ranks.is_follower(devices):
        follow(options, devices)
        return
    with alone(options.folder / ".lock"), error_note(options.folder, options.fingerprint):
        job = Job(options.config, options.prepared.with_suffix(""), read_json(options.prepared), devices)
        inputs = {"prepared": sha256_of(options.prepared), "warm_start": sha256_of(options.warm_start)}
        state_file = StateFile.as_configured(
            options.folder / "state.pt", job.device, options.fingerprint, *inputs.values()
        )
        if not is_trained(options.folder, options.fingerprint, inputs["prepared"]):
            train_and_write(options, job, inputs, state_file)
        score_and_write(options, job)
        # The state is kept until here, so that a run whose scoring fails does not repeat its training.
        state_file.discard()


def follow(options, devices: int) -> None:
    """Trains along as a rank above 0, which writes nothing."""
    if not is_trained(options.folder, options.fingerprint, sha256_of(options.prepared)):
        job = Job(options.config, options.prepared.with_suffix(""), read_json(options.prepared), devices)
        with job.together():
            train(job, warm_start=None)


def train_and_write(options, job: Job, inputs: dict[str, str], state_file: StateFile) -> None:
    began, folder = datetime.now(UTC), options.folder
    # Scores of an older training must not stand beside a newer record.
    (folder / "metrics.json").unlink(missing_ok=True)
    warm_start = load_state(options.warm_start, job.device)
    if warm_start["fingerprint"] != options.config["warm_start"]:
        raise ValueError(f"{options.warm_start}: is the warm start of another configuration or of other code")
    with live_as_configured("/".join(folder.parts[-5:]), options.config) as live, state_file, job.together():
        if options.dense is None:
            trained = train(job, warm_start, on_epoch=live, resume=state_file)
        else:
            trained = prune(job, options.dense, dense_epoch(options), warm_start, on_epoch=live)
    save_weights(folder / "model.safetensors", trained.weights)
    save_masks(folder / "masks.safetensors", trained.masks)
    for number, draw in enumerate(trained.draws[1:], start=1):
        weights, masks = draw_files(number)
        save_weights(folder / weights, draw.weights)
        save_masks(folder / masks, draw.masks)
    if trained.latent:
        save_latent(folder / LATENT, trained.latent, trained.half_ranges)
    write_csv(folder / "history.csv", trained.history)
    write_csv(folder / "refreshes.csv", trained.refreshes, columns=REFRESH_COLUMNS)
    of_draws = [name for number in range(1, len(trained.draws)) for name in draw_files(number)]
    written = (*TRAINED, *of_draws, *([LATENT] if trained.latent else []))
    on_gpu = job.device.type == "cuda"
    record = {
        "run": options.run,
        "fingerprint": options.fingerprint,
        "config": options.config,
        "inputs": inputs,
        "started_from": warm_start.get("started_from"),
        "files": {name: sha256_of(folder / name) for name in written},
        "selected_epoch": trained.selected_epoch,
        "left_dense": trained.left_dense,
        "half_ranges": trained.half_ranges,
        "slabs": slab_records(trained),
        "cost": {key: value for key, value in trained.cost.items() if key != "slabs"},
        "precision": str(job.precision).removeprefix("torch."),
        "compiled": trained.compiled,
        "environment": environment(),
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "began": began.isoformat(timespec="seconds"),
        "seconds": round(state_file.seconds, 1),
        "interruptions": state_file.interruptions,
        "peak_memory_mib": round(peak_memory_mib()),
        "peak_gpu_memory_mib": round(torch.cuda.max_memory_allocated() / 2**20) if on_gpu else None,
    }
    if trained.draws:
        record["calibration"] = [draw.calibration for draw in trained.draws]
    Record.model_validate(record)
    write_text(folder / "record.json", to_json(record))


def dense_epoch(options) -> int:
    """Returns the epoch of the weights of the dense run; raises ValueError if it is not the one that is asked for."""
    record = read_record(options.dense / "record.json")
    if record.fingerprint != options.config["dense"]:
        raise ValueError(f"{options.dense}: is the dense run of another configuration or of other code")
    check_files(options.dense, record)
    return record.selected_epoch


def slab_records(trained: TrainedRun) -> dict[str, dict]:
    return {
        slab.name: {
            "side": slab.side,
            "units": trained.masks[slab.name].shape[0],
            "fan": trained.masks[slab.name].shape[1],
            "connections": int(trained.masks[slab.name].sum()),
            "density": trained.cost["slabs"][slab.name],
            "flops": trained.slab_flops[slab.name],
        }
        for slab in trained.slabs
    }


def score_and_write(options, job: Job) -> None:
    folder: Path = options.folder
    scoring = dict(options.scoring)
    if options.buckets is not None:
        scoring["buckets"] = read_json(options.buckets)["types"]
    evaluation = evaluate(job, folder, scoring)
    write_parquet(folder / "items.parquet", evaluation.items)
    with whole_file(folder / "predictions.npz") as partial:
        np.savez_compressed(partial, **evaluation.predictions)
    write_csv(folder / "units.csv", evaluation.units)
    write_csv(folder / "codes.csv", evaluation.codes)
    flops = read_record(folder / "record.json").cost.flops.model_dump()
    cost = evaluation.sizes | {"flops": flops, "macs": {name: count / 2 for name, count in flops.items()}}
    cost["parameters"] = round(cost["weights"] * cost["net_density"])
    write_text(folder / "cost.json", to_json(cost))
    if evaluation.beside:
        write_csv(folder / "latent.csv", evaluation.beside)
    write_text(folder / "metrics.json", to_json(evaluation.metrics))


run(
    main,
    arguments(
        __doc__,
        run=JSON,
        config=JSON,
        fingerprint=TEXT,
        scoring=JSON,
        prepared={},
        warm_start={},
        dense={"nargs": "?", "required": False},
        buckets={"nargs": "?"},
        folder={},
    ),
)
