"""Trains the dense warm-up of a seed, from which every method starts."""

import logging
from pathlib import Path

from common import JSON, TEXT, arguments, read_json, read_manifest, run, write_csv

import torch

from bbnet.data.store import alone
from bbnet.study.record import sha256_of
from bbnet.training import ranks
from bbnet.training.checkpoint import load_state, save_state
from bbnet.training.live import live_as_configured
from bbnet.training.resume import StateFile
from bbnet.training.runs import Job, warm_up

logger = logging.getLogger("bbnet")


def main(options) -> None:
    """Trains, unless the folder holds this warm-up already, as when the data were removed and prepared again."""
    data = sha256_of(options.prepared)
    if ranks.is_follower(ranks.device_count(options.config)):
        if not is_warm(options.folder, options.fingerprint, data):
            job, weights = opened(options)
            with job.together():
                warm_up(job, weights, source=options.source)
        return
    with alone(options.folder / ".lock"):
        if is_warm(options.folder, options.fingerprint, data):
            logger.info("%s: is trained, by its checkpoint", options.folder)
        else:
            train_and_write(options, data)


def is_warm(folder: Path, wanted: str, data: str) -> bool:
    try:
        found = load_state(folder / "checkpoint.pt", torch.device("cpu"))
    except (OSError, ValueError):
        return False
    written = all((folder / name).is_file() for name in ("history.csv", "units.csv"))
    return written and (found["fingerprint"], found.get("prepared")) == (wanted, data)


def opened(options) -> tuple[Job, Path | None]:
    """Returns the job and the file of the initial weights, if the model has one."""
    devices = ranks.device_count(options.config)
    job = Job(options.config, options.prepared.with_suffix(""), read_json(options.prepared), devices)
    if options.weights is None:
        return job, None
    manifest = read_manifest(options.weights)
    return job, Path(manifest["root"], manifest["file"])


def train_and_write(options, data: str) -> None:
    folder = options.folder
    job, weights = opened(options)
    state_file = StateFile.as_configured(folder / "state.pt", job.device, options.fingerprint, data)
    with live_as_configured("/".join(folder.parts[-4:]), options.config) as live, state_file, job.together():
        state, history, units = warm_up(job, weights, on_epoch=live, resume=state_file, source=options.source)
    write_csv(folder / "history.csv", history)
    write_csv(folder / "units.csv", units)
    # Last, since the checkpoint says that the warm-up is complete.
    save_state(folder / "checkpoint.pt", state | {"fingerprint": options.fingerprint, "prepared": data})
    state_file.discard()


run(
    main,
    arguments(
        __doc__,
        config=JSON,
        fingerprint=TEXT,
        prepared={},
        weights={"nargs": "?"},
        source={"nargs": "?", "required": False},
        folder={},
    ),
)
