"""Fetches and unpacks a pack, or renders an embedded one, checks it, and writes its manifest."""

from common import JSON, arguments, run, to_json

from bbnet.data.store import whole_file, whole_folder
from bbnet.tasks import task as tasks


def main(options) -> None:
    task = tasks.load(options.config["task"])
    with whole_folder(options.manifest.with_suffix(""), options.partial) as target:
        manifest = task.fetch(options.config["data"], target, options.downloads)
    with whole_file(options.manifest) as partial:
        partial.write_text(to_json(manifest))


run(main, arguments(__doc__, config=JSON, manifest={}, partial={}, downloads={}))
