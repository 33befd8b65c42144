"""Downloads and unpacks a pack, or generates an embedded one, checks it, and writes its manifest."""

import inspect
from contextlib import nullcontext

from common import JSON, arguments, run, says_how_to_look_again, to_json

from bbnet.data.store import alone, whole_file, whole_folder
from bbnet.tasks import task as tasks


def main(options) -> None:
    task, asked = tasks.load(options.config["task"]), options.config.get("asked", {})
    if not asked.keys() <= inspect.signature(task.fetch).parameters.keys():
        raise ValueError(
            f"task {options.config['task']} cannot score other data: its fetch knows no {', '.join(asked)}"
        )
    folder = options.manifest.with_suffix("")
    with alone(options.partial / f".{folder.name}.lock"):
        if options.manifest.exists():  # another process made it while this one waited
            return
        data = options.config["data"]
        local = data.get("path") is not None  # otherwise the next call downloads anew without being told
        says = says_how_to_look_again() if local else nullcontext()
        with says, whole_folder(folder, options.partial) as target:
            try:
                manifest = task.fetch(data, target, options.downloads, **asked)
            except ValueError as error:
                raise ValueError(str(error).replace(f"{target}", f"{data['pack']}, unpacked")) from None
        with whole_file(options.manifest) as partial:
            partial.write_text(to_json(manifest), encoding="utf-8")


run(main, arguments(__doc__, config=JSON, manifest={}, partial={}, downloads={}))
