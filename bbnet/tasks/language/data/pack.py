"""Brings the texts of a pack, and finds the documents of each split."""

import hashlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter

from bbnet.data.files import beside, contents, files_below, named, normal_form
from bbnet.data.packs import DOWNLOADS, bring, bring_own, read_pack, refuse_incomplete
from bbnet.tasks.language.data_settings import SPLITS, Data, PythonSource, TextFolder, WikiText2

WIKITEXT_FILES = {"train": "wiki.train.raw", "val": "wiki.valid.raw", "test": "wiki.test.raw"}
TITLE = re.compile(r" = [^=](.*[^=])? = \n?")
FEWEST_FILES = 3


class Document(NamedTuple):
    """A text that is scored on its own. `name` is its path in the pack, or the title of an article."""

    name: str
    text: str


def fetch(
    data: Mapping[str, Any], target: Path, downloads: Path = DOWNLOADS, test_only: bool = False
) -> dict[str, Any]:
    """Copies the embedded pack or downloads WikiText-2 into `target`, or uses the given path; and checks it.

    Returns the manifest: the entries of `bring`.
    Raises: ValueError naming a file that is missing, damaged or incomplete, or what cannot be downloaded.
    """
    pack = TypeAdapter(Data).validate_python(data)
    if isinstance(pack, PythonSource):
        from bbnet.data.synthetic import python_source  # imported here because training jobs do not need it

        python_source.write(target, {split: getattr(pack, split) for split in SPLITS})
        return {"pack": pack.pack}
    if isinstance(pack, TextFolder):
        return {"pack": pack.pack} | bring_own(pack.path, target, holding=["*"])[1]
    files = WIKITEXT_FILES
    root, origin = bring(pack.pack, pack.path, target, downloads, complete=pack.complete, holding=list(files.values()))
    for split, file in files.items():
        if test_only and split != "test":
            continue
        if not (root / file).is_file():
            raise ValueError(f"{root / file}: there is no such file")
        if pack.complete:
            refuse_incomplete(root / file, (root / file).stat().st_size, read_pack(pack.pack).counts[split], "bytes")
    return {"pack": pack.pack} | origin


def files_of(
    root: Path, pack: PythonSource | WikiText2 | TextFolder, wanted: Sequence[str] = SPLITS
) -> tuple[dict[str, list[Path]], list[Path]]:
    """Returns the files of each split, or of those that are `wanted`, by their path, and the files that are not read.

    Raises: ValueError naming a folder without enough text files.
    """
    if isinstance(pack, WikiText2):
        known = {split: root / file for split, file in WIKITEXT_FILES.items()}
        return {split: [known[split]] for split in wanted}, beside(root, list(known.values()))
    suffixes = tuple(suffix.lower() for suffix in pack.suffixes)
    found = sorted(files_below([root]), key=lambda file: path_in(root, file))
    texts = [file for file in found if file.name.lower().endswith(suffixes)]
    unread = [file for file in found if not file.name.lower().endswith(suffixes)]
    folders = {split: named(root, split) for split in SPLITS}
    if not all(folders[split].is_dir() for split in wanted):
        divided = _divided(root, texts, pack)
        return {split: divided[split] for split in wanted}, unread
    splits = {split: [file for file in texts if folders[split] in file.parents] for split in wanted}
    for split, files in splits.items():
        if not files:
            raise ValueError(f"{folders[split]}: has no file that ends in {' or '.join(suffixes)}")
    return splits, unread + [file for file in texts if not any(folder in file.parents for folder in folders.values())]


def _divided(root: Path, files: Sequence[Path], pack: TextFolder) -> dict[str, list[Path]]:
    """Returns the files of each split of a folder without split folders, by the hash of their path and by size."""
    if len(files) < FEWEST_FILES:
        suffixes = " or ".join(pack.suffixes)
        raise ValueError(
            f"{root}: has {len(files)} files that end in {suffixes}; train, val and test need at least one each"
        )
    order = sorted(files, key=lambda file: hashlib.sha256(path_in(root, file).encode()).digest())
    total = sum(file.stat().st_size for file in order)
    splits: dict[str, list[Path]] = {}
    for split, share, needed_after in (("test", pack.test_share, 2), ("val", pack.dev_share, 1)):
        splits[split], size = [], 0
        while not splits[split] or (size < share * total and len(order) > needed_after):
            splits[split].append(order.pop(0))
            size += splits[split][-1].stat().st_size
    splits["train"] = order
    return {split: sorted(splits[split], key=lambda file: path_in(root, file)) for split in SPLITS}


def inner_folder(root: Path) -> Path:
    """Returns the only folder in `root` if there is nothing beside it and it is no split, as in many archives."""
    files, folders = contents(root)
    alone = len(folders) == 1 and not files and folders[0].name.casefold() not in SPLITS
    return folders[0] if alone else root


def path_in(root: Path, file: Path) -> str:
    """Returns the path of a file in `root`, in composed Unicode, which is the same on all systems."""
    return normal_form(file.relative_to(root).as_posix())


def articles(name: str, text: str) -> Iterator[Document]:
    """Divides the file `name` of WikiText at the titles of articles: lines ` = Title = ` between blank lines.

    The texts together are that of the file. What stands before the first title belongs to the first article. An
    article whose title occurred before has its number behind the name. A text without a title is one document.
    """
    lines = list(io.StringIO(text))
    blank = [True, *(not line.strip() for line in lines), True]
    starts = [
        number for number, line in enumerate(lines) if TITLE.fullmatch(line) and blank[number] and blank[number + 2]
    ]
    if not starts:
        yield Document(name, text)
    seen: dict[str, int] = {}
    for number, start in enumerate(starts):
        title = lines[start].strip(" =\n")
        seen[title] = seen.get(title, 0) + 1
        following = starts[number + 1] if number + 1 < len(starts) else len(lines)
        yield Document(
            title if seen[title] == 1 else f"{title} ({seen[title]})",
            "".join(lines[start if number else 0 : following]),
        )
