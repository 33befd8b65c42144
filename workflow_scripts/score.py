"""Scores a finished run on test data that were prepared for it, for `bbnet score`. The run is only read."""

import importlib

from common import JSON, TEXT, arguments, read_json, run, to_json, write_parquet, write_text

import numpy as np

from bbnet.data.store import alone, whole_file
from bbnet.study.discover import has_buckets
from bbnet.study.record import check_files, read_record
from bbnet.training.runs import Job, load_run, score


def main(options) -> None:
    """Writes the files of a score; the last of them, `score.json`, says what was scored on what."""
    folder, described = options.folder, options.described
    record = read_record(options.run_folder / "record.json")
    check_files(options.run_folder, record)
    config = record.config | {"device": options.device}
    job = Job(config, options.prepared.with_suffix(""), read_json(options.prepared))
    scoring = dict(described["scoring"])
    if has_buckets(config["task"]):
        buckets = importlib.import_module(f"bbnet.tasks.{config['task']}.buckets")
        scoring["buckets"] = buckets.make_buckets(read_json(options.trained))["types"]
    with alone(folder / ".lock"):
        (folder / "score.json").unlink(missing_ok=True)
        model, _ = load_run(job, options.run_folder)
        scores = score(job, options.run_folder, model, job.task.open_split(job.prepared, job.index | scoring, "test"))
        write_parquet(folder / "items.parquet", scores.items)
        with whole_file(folder / "predictions.npz") as partial:
            np.savez_compressed(partial, **scores.predictions)
        write_text(folder / "metrics.json", to_json(scores.metrics))
        write_text(folder / "score.json", to_json(described))


run(main, arguments(__doc__, run_folder={}, device=TEXT, described=JSON, trained={}, prepared={}, folder={}))
