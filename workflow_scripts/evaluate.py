"""Scores a trained run on test, and measures its units on dev."""

from common import (
    JSON,
    arguments,
    error_note,
    read_json,
    run,
    to_json,
    write_csv,
    write_parquet,
    write_text,
)

import numpy as np

from bbnet.data.store import alone, whole_file
from bbnet.study.record import check_files, read_record
from bbnet.training.runs import Job, evaluate


def main(options) -> None:
    with alone(options.folder / ".lock"), error_note(options.folder, options.config["train"]):
        score_and_write(options)


def score_and_write(options) -> None:
    folder = options.folder
    record = read_record(folder / "record.json")
    if record.fingerprint != options.config["train"]:
        raise ValueError(f"{folder}: its record is of another configuration or of other code")
    check_files(folder, record)
    index = read_json(options.prepared) | options.config["scoring"]
    if options.buckets is not None:
        index["buckets"] = read_json(options.buckets)["types"]
    job = Job(record.config, options.prepared.with_suffix(""), index)
    evaluation = evaluate(job, folder)
    write_parquet(folder / "items.parquet", evaluation.items)
    with whole_file(folder / "predictions.npz") as partial:
        np.savez_compressed(partial, **evaluation.predictions)
    write_csv(folder / "units.csv", evaluation.units)
    write_csv(folder / "codes.csv", evaluation.codes)
    # Counting FLOPs loads half of torch, and the record has them.
    cost = evaluation.densities | {"flops": record.cost.flops.model_dump()}
    write_text(folder / "cost.json", to_json(cost))
    write_text(folder / "metrics.json", to_json(evaluation.metrics))


run(main, arguments(__doc__, config=JSON, prepared={}, folder={}, buckets={"nargs": "?"}))
