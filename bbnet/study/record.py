"""Where a number comes from: fingerprints of configuration and code, and the machine that made it."""

import hashlib
import importlib.metadata
import json
import platform
import resource
import socket
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

VERSIONS_OF = ("bbnet", "torch", "torchvision", "torchaudio", "numpy", "scipy", "snakemake")


def canonical_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def fingerprint(config: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that change with any value of `config`."""
    return hashlib.sha256(canonical_json(config).encode()).hexdigest()[:16]


def code_fingerprint(root: Path, files: Iterable[Path]) -> str:
    """16 hexadecimal digits that change with the bytes or the place of any of the files."""
    return _hash_files(root, tuple(sorted(set(files))))


@cache
def _hash_files(root: Path, files: tuple[Path, ...]) -> str:
    digest = hashlib.sha256()
    for file in files:
        content = file.read_bytes()
        digest.update(f"{file.relative_to(root).as_posix()} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


def environment() -> dict[str, Any]:
    """Versions and machine; the only part of a record that may differ between two equal runs."""
    return {
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in VERSIONS_OF},
        "platform": platform.platform(),
        "host": socket.gethostname(),
    }


def peak_memory_mib() -> float:
    """Peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run_status(folder: Path, wanted: str) -> tuple[str, str]:
    """`done`, `failed`, `stale` or `missing`, and why, of a run's folder from which fingerprint `wanted` is asked."""
    record, error = folder / "record.json", folder / "error.json"
    try:
        failure = json.loads(error.read_text()) if error.is_file() else None
        if failure and (failure["fingerprint"] == wanted or not record.is_file()):
            return "failed", failure["error"]
        if not record.is_file():
            return "missing", "not trained"
        found = json.loads(record.read_text())["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError) as unreadable:
        return "failed", f"record.json or error.json is not what a run writes ({unreadable}); removed, it is made again"
    if found != wanted:
        return "stale", f"its record has fingerprint {found}, asked for is {wanted}"
    if not (folder / "metrics.json").is_file():
        return "missing", "trained, not evaluated"
    return "done", ""
