"""Trains one run: method x budget x seed, from its warm start."""

import time
from datetime import UTC, datetime

import torch
from common import JSON, TEXT, arguments, one_line, read_json, run, to_json, write_csv, write_text

from bbnet.sparsity.sparsifier import REFRESH_COLUMNS
from bbnet.study.record import environment, peak_memory_mib
from bbnet.training.checkpoint import load_state, save_masks, save_weights
from bbnet.training.live import live_as_configured
from bbnet.training.runs import Job, train


def main(options) -> None:
    error_note = options.folder / "error.json"
    try:
        train_and_write(options)
    except Exception as error:
        note = {"fingerprint": options.fingerprint, "error": one_line(error)}
        write_text(error_note, to_json(note))
        raise
    error_note.unlink(missing_ok=True)


def train_and_write(options) -> None:
    began, started = datetime.now(UTC), time.monotonic()
    # Scores of an older training must not stand beside a newer record.
    (options.folder / "metrics.json").unlink(missing_ok=True)
    job = Job(options.config, options.prepared.with_suffix(""), read_json(options.prepared))
    warm_start = load_state(options.warm_start, job.device)
    if warm_start["fingerprint"] != options.config["warm_start"]:
        raise ValueError(f"{options.warm_start}: is the warm start of another configuration or of other code")
    with live_as_configured("/".join(options.folder.parts[-5:]), options.config) as live:
        trained = train(job, warm_start, on_epoch=live)
    save_weights(options.folder / "model.safetensors", trained.weights)
    save_masks(options.folder / "masks.safetensors", trained.masks)
    write_csv(options.folder / "history.csv", trained.history)
    write_csv(options.folder / "refreshes.csv", trained.refreshes, columns=REFRESH_COLUMNS)
    record = {
        "run": options.run,
        "fingerprint": options.fingerprint,
        "config": options.config,
        "selected_epoch": trained.selected_epoch,
        "left_dense": trained.left_dense,
        "slabs": {
            name: {"shape": list(mask.shape), "connections": int(mask.sum())} for name, mask in trained.masks.items()
        },
        "cost": trained.cost,
        "environment": environment(),
        "device": torch.cuda.get_device_name() if job.device.type == "cuda" else "cpu",
        "began": began.isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - started, 1),
        "peak_memory_mib": round(peak_memory_mib()),
    }
    write_text(options.folder / "record.json", to_json(record))


run(main, arguments(__doc__, run=JSON, config=JSON, fingerprint=TEXT, prepared={}, warm_start={}, folder={}))
