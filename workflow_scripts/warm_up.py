"""The dense first phase of a seed, from which every method starts."""

from pathlib import Path

from common import JSON, TEXT, arguments, read_json, read_manifest, run, write_csv

from bbnet.training.checkpoint import save_state
from bbnet.training.live import live_as_configured
from bbnet.training.runs import Job, warm_up


def main(options) -> None:
    job = Job(options.config, options.prepared.with_suffix(""), read_json(options.prepared))
    weights = None
    if options.weights is not None:
        manifest = read_manifest(options.weights)
        weights = Path(manifest["root"], manifest["file"])
    with live_as_configured("/".join(options.folder.parts[-4:]), options.config) as live:
        state, history, units = warm_up(job, weights, on_epoch=live)
    save_state(options.folder / "checkpoint.pt", state | {"fingerprint": options.fingerprint})
    write_csv(options.folder / "history.csv", history)
    write_csv(options.folder / "units.csv", units)


run(main, arguments(__doc__, config=JSON, fingerprint=TEXT, prepared={}, weights={"nargs": "?"}, folder={}))
