"""Fetches and checks a pack in CIFAR's own layout or with a folder per class."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from bbnet.data.files import named
from bbnet.data.packs import DOWNLOADS, bring, bring_own, read_pack, refuse_incomplete
from bbnet.tasks.classification.data import cifar
from bbnet.tasks.classification.data_settings import Cifar10, Data, RenderedObjects

BATCHES, FOLDERS = "batches", "folders"
FOLDERS_NEEDED = ("train", "val")
FOLDERS_OF_TEST = ("test", "val")  # without test, val is the test set


def fetch(
    data: Mapping[str, Any], target: Path, downloads: Path = DOWNLOADS, test_only: bool = False
) -> dict[str, Any]:
    """Renders the embedded pack, or downloads CIFAR-10 into `target`, or uses the given path; and checks it.

    Returns the manifest: `layout`, which is `batches` or `folders`, and the entries of `bring`.
    Raises: ValueError naming a file or folder that is missing, damaged or incomplete, or what cannot be downloaded.
    """
    pack = TypeAdapter(Data).validate_python(data)
    if isinstance(pack, RenderedObjects):
        return {"pack": pack.pack, "layout": _render(pack, target)}
    if isinstance(pack, Cifar10):
        root, origin = bring(pack.pack, pack.path, target, downloads, complete=pack.complete, holding=cifar.LAYOUT)
        found = _check_batches(root, test_only)
        if pack.complete:
            for what, published in read_pack(pack.pack).counts.items():
                if what in found:
                    refuse_incomplete(root, found[what], published, what if what == "classes" else f"{what} images")
        return {"pack": pack.pack, "layout": BATCHES} | origin
    root, origin = bring_own(pack.path, target, holding=FOLDERS_OF_TEST if test_only else FOLDERS_NEEDED)
    if test_only and not any(named(root, name).is_dir() for name in FOLDERS_OF_TEST):
        raise ValueError(f"{root / 'test'}: no such folder; needed is test/{{class}}/* or val/{{class}}/*")
    for name in () if test_only else FOLDERS_NEEDED:
        if not named(root, name).is_dir():
            raise ValueError(f"{root / name}: no such folder; needed are train/{{class}}/* and val/{{class}}/*")
    return {"pack": pack.pack, "layout": FOLDERS} | origin


def _render(pack: RenderedObjects, target: Path) -> str:
    """Renders the embedded pack into `target`, and returns its layout."""
    # Imported here because training jobs do not need the generator.
    from bbnet.data.synthetic import rendered_objects

    layout = BATCHES if pack.size == cifar.SIZE else FOLDERS
    write = rendered_objects.write_batches if layout == BATCHES else rendered_objects.write_folders
    per_class = len(pack.training_counts())
    counts = {
        "train": pack.training_counts(),
        "val": [pack.val // per_class] * per_class,
        "test": [pack.test // per_class] * per_class,
    }
    write(target, seed=pack.seed, size=pack.size, counts=counts, difficulty=pack.difficulty)
    return layout


def _check_batches(root: Path, test_only: bool) -> dict[str, int]:
    """Reads the batches, and returns the number of classes and of images for training and test."""
    classes = len(cifar.read_classes(root))
    found = {"classes": classes, "test": len(cifar.read_batch(root / cifar.TEST_BATCH, classes).labels)}
    return found if test_only else found | {"train": len(cifar.read_training(root, classes).labels)}
