"""Scores a trained run on test, and measures its units on dev."""

import numpy as np
from common import JSON, arguments, read_json, run, to_json, write_csv, write_parquet, write_text

from bbnet.data.store import whole_file
from bbnet.training.runs import Job, evaluate


def main(options) -> None:
    record = read_json(options.folder / "record.json")
    if record["fingerprint"] != options.config["train"]:
        raise ValueError(f"{options.folder}: its record is of another configuration or of other code")
    index = read_json(options.prepared) | options.config["scoring"]
    if options.buckets is not None:
        index["buckets"] = read_json(options.buckets)["types"]
    job = Job(record["config"], options.prepared.with_suffix(""), index)
    evaluation = evaluate(job, options.folder)
    write_parquet(options.folder / "items.parquet", evaluation.items)
    with whole_file(options.folder / "predictions.npz") as partial:
        np.savez_compressed(partial, **evaluation.predictions)
    write_csv(options.folder / "units.csv", evaluation.units)
    write_csv(options.folder / "codes.csv", evaluation.codes)
    # Counting FLOPs loads half of torch, and the record has them.
    cost = evaluation.densities | {"flops": record["cost"]["flops"]}
    write_text(options.folder / "cost.json", to_json(cost))
    write_text(options.folder / "metrics.json", to_json(evaluation.metrics))


run(main, arguments(__doc__, config=JSON, prepared={}, folder={}, buckets={"nargs": "?"}))
