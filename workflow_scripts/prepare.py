"""Decodes a pack into arrays and writes their index."""

from pathlib import Path

from common import JSON, arguments, read_json, read_manifest, run, says_how_to_look_again, to_json

from bbnet.data.store import alone, whole_file, whole_folder
from bbnet.tasks import task as tasks


def main(options) -> None:
    task = tasks.load(options.config["task"])
    manifest = read_manifest(options.raw)
    folder = options.index.with_suffix("")
    with alone(options.partial / f".{folder.name}.lock"):
        if options.index.exists():  # another process made it while this one waited
            return
        with says_how_to_look_again(), whole_folder(folder, options.partial, resume=True) as target:
            index = task.prepare(manifest, options.config["settings"], target, **trained_on(options.trained))
        with whole_file(options.index) as partial:
            partial.write_text(to_json(index | {"settings": options.config["settings"]}), encoding="utf-8")


def trained_on(index: Path | None) -> dict[str, tasks.Trained]:
    """Returns the prepared data that a network was trained on, for `bbnet score`, by its index."""
    return {} if index is None else {"trained": tasks.Trained(index.with_suffix(""), read_json(index))}


run(main, arguments(__doc__, config=JSON, raw={}, index={}, partial={}, trained={"nargs": "?", "required": False}))
