"""Fetches and checks a pack in the layout of VOC."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from bbnet.data.images import decode
from bbnet.data.packs import DOWNLOADS, bring, read_pack, refuse_incomplete, spread
from bbnet.tasks.detection.data import voc
from bbnet.tasks.detection.data_settings import Data, RenderedScenes


def fetch(
    data: Mapping[str, Any], target: Path, downloads: Path = DOWNLOADS, test_only: bool = False
) -> dict[str, Any]:
    """Renders the embedded pack, or downloads VOC into `target`, or uses the given path; and checks it.

    Returns the manifest: whether the pack is `complete`, so that what its lists do not name belongs to other tasks; and
        the entries of `bring`.
    Raises: ValueError naming a folder, list or image that is missing, or what cannot be downloaded.
    """
    pack = TypeAdapter(Data).validate_python(data)
    if isinstance(pack, RenderedScenes):
        # Imported here because training jobs do not need the generator.
        from bbnet.data.synthetic.rendered_scenes import write_scenes

        others = pack.model_dump(exclude={"pack", "train", "val", "test"})
        write_scenes(target, scenes=pack.images(None), **others)
        return {"pack": pack.pack, "complete": True, "root": "VOCdevkit"}
    root, origin = bring(pack.pack, pack.path, target, downloads, complete=pack.complete, holding=voc.LAYOUT)
    lists = voc.read_lists(root, ["test"] if test_only else voc.YEARS)
    if pack.complete:
        _check_complete(root, lists, read_pack(pack.pack).counts)
    return {"pack": pack.pack, "complete": pack.complete} | origin


def _check_complete(root: Path, lists: Mapping[str, list[voc.Listed]], published: Mapping[str, int]) -> None:
    for name, listed in lists.items():
        for year in voc.YEARS[name]:
            own = [one for one in listed if one.name.startswith(f"{year}/")]
            what = f"images of {name}"
            refuse_incomplete(root / year, len(own), published[f"{name}{year.removeprefix('VOC')}"], what)
            there = [one for one in own if one.image is not None and one.annotation.is_file()]
            missing = sorted({one.name for one in own} - {one.name for one in there})
            refuse_incomplete(root / year, len(there), len(own), f"{what} with their annotations", missing)
            for one in spread(there):
                decode(one.image, "RGB")
