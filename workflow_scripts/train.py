"""Trains one run: method x budget x seed, from its warm start."""

from datetime import UTC, datetime

from common import JSON, TEXT, arguments, error_note, read_json, run, to_json, write_csv, write_text

import torch
import torch._dynamo  # torch's optimisers import it anyway; here Python does not look for garbage meanwhile

from bbnet.data.store import alone
from bbnet.sparsity.sparsifier import REFRESH_COLUMNS
from bbnet.study.record import TRAINED, Record, environment, is_trained, peak_memory_mib, sha256_of
from bbnet.training.checkpoint import load_state, save_masks, save_weights
from bbnet.training.live import live_as_configured
from bbnet.training.resume import StateFile
from bbnet.training.runs import Job, TrainedRun, train


def main(options) -> None:
    with alone(options.folder / ".lock"), error_note(options.folder, options.fingerprint):
        if not is_trained(options.folder, options.fingerprint):  # by another process, while this one waited
            train_and_write(options)


def train_and_write(options) -> None:
    began, folder = datetime.now(UTC), options.folder
    # Scores of an older training must not stand beside a newer record.
    (folder / "metrics.json").unlink(missing_ok=True)
    job = Job(options.config, options.prepared.with_suffix(""), read_json(options.prepared))
    warm_start = load_state(options.warm_start, job.device)
    if warm_start["fingerprint"] != options.config["warm_start"]:
        raise ValueError(f"{options.warm_start}: is the warm start of another configuration or of other code")
    inputs = {"prepared": sha256_of(options.prepared), "warm_start": sha256_of(options.warm_start)}
    state_file = StateFile.as_configured(folder / "state.pt", job.device, options.fingerprint, *inputs.values())
    with live_as_configured("/".join(folder.parts[-5:]), options.config) as live, state_file:
        trained = train(job, warm_start, on_epoch=live, resume=state_file)
    save_weights(folder / "model.safetensors", trained.weights)
    save_masks(folder / "masks.safetensors", trained.masks)
    write_csv(folder / "history.csv", trained.history)
    write_csv(folder / "refreshes.csv", trained.refreshes, columns=REFRESH_COLUMNS)
    on_gpu = job.device.type == "cuda"
    record = {
        "run": options.run,
        "fingerprint": options.fingerprint,
        "config": options.config,
        "inputs": inputs,
        "files": {name: sha256_of(folder / name) for name in TRAINED},
        "selected_epoch": trained.selected_epoch,
        "left_dense": trained.left_dense,
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
    Record.model_validate(record)
    write_text(folder / "record.json", to_json(record))
    state_file.discard()


def slab_records(trained: TrainedRun) -> dict[str, dict]:
    return {
        slab.name: {
            "side": slab.side,
            "units": trained.masks[slab.name].shape[0],
            "fan": trained.masks[slab.name].shape[1],
            "connections": int(trained.masks[slab.name].sum()),
            "density": trained.cost["slabs"][slab.name],
        }
        for slab in trained.slabs
    }


run(main, arguments(__doc__, run=JSON, config=JSON, fingerprint=TEXT, prepared={}, warm_start={}, folder={}))
