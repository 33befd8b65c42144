"""Copies Python files of the installed torch package into a folder per split: real text that is on every machine.

The wheels of one version of torch contain the same Python files for all systems (compared: Linux with CUDA and macOS),
but for torch/version.py, which is left out.
"""

import base64
import csv
import hashlib
from collections.abc import Mapping
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import NamedTuple

TORCH = "2.11.0"  # of envs/requirements.lock.txt
# Of the lines "digest size path" of all candidates.
FILES_SHA256 = "c2d39f72b4561cc816fe5b6f490afe3c06633612ecd9dfbc4769842853ed48dd"
SMALLEST, LARGEST = 512, 16_384  # bytes: without empty files, and without those that would fill a split
NOT_THE_SAME_EVERYWHERE = "torch/version.py"


class SourceFile(NamedTuple):
    """A file of an installed package, with the SHA-256 (base64, URL-safe, unpadded) and size that its RECORD states."""

    path: str
    digest: str
    size: int


def write(target: Path, sizes: Mapping[str, int]) -> None:
    """Writes the files of each split to `target/{split}/`, with their paths in the package, to the byte.

    Files are ordered by the SHA-256 of their path. Each split takes files until it has its size, in the order test,
    val, train.

    Args:
        sizes: bytes of each split; the last file may exceed them.
    Raises: ValueError if another version of torch is installed, or if a file was changed since.
    """
    torch = installed_torch()
    for split, files in chosen(candidates(torch), sizes).items():
        for file in files:
            content = Path(torch.locate_file(file.path)).read_bytes()
            if _digest(content) != file.digest:
                raise ValueError(f"{file.path}: differs from the file of torch {TORCH}; install torch again")
            path = target / split / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def installed_torch() -> Distribution:
    """Returns the installed torch; raises ValueError if it is missing or has another version."""
    try:
        found = distribution("torch")
    except PackageNotFoundError:
        raise ValueError(f"python_source: needs torch {TORCH}, which is not installed") from None
    if found.version.split("+")[0] != TORCH:
        raise ValueError(
            f"python_source: consists of files of torch {TORCH} (envs/requirements.lock.txt), but torch "
            f"{found.version} is installed"
        )
    return found


def candidates(torch: Distribution) -> list[SourceFile]:
    """Returns the files to choose from, by the SHA-256 of their path; raises ValueError if RECORD was changed."""
    record = torch.read_text("RECORD")
    rows = [row for row in csv.reader((record or "").splitlines()) if len(row) == len(SourceFile._fields)]
    files = [SourceFile(path, digest.removeprefix("sha256="), int(size or 0)) for path, digest, size in rows]
    files = [
        file
        for file in files
        if file.path.endswith(".py") and SMALLEST <= file.size <= LARGEST and file.path != NOT_THE_SAME_EVERYWHERE
    ]
    files.sort(key=lambda file: hashlib.sha256(file.path.encode()).digest())
    found = hashlib.sha256("".join(f"{file.digest} {file.size} {file.path}\n" for file in files).encode()).hexdigest()
    if found != FILES_SHA256:
        raise ValueError(f"python_source: the RECORD of the installed torch {torch.version} is not that of its wheel")
    return files


def chosen(files: list[SourceFile], sizes: Mapping[str, int]) -> dict[str, list[SourceFile]]:
    """Returns the files of each split, in the order of `files`."""
    rest, splits = iter(files), {}
    for split in ("test", "val", "train"):
        splits[split], size = [], 0
        while size < sizes[split]:
            file = next(rest)
            splits[split].append(file)
            size += file.size
    return splits


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
