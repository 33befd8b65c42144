"""The record of a run: its schema, fingerprints of configuration and code, and the description of the machine."""

import hashlib
import importlib.metadata
import json
import logging
import platform
import re
import resource
import socket
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StringConstraints, ValidationError

import bbnet
from bbnet.binary.settings import is_binary

logger = logging.getLogger(__name__)
# The files of a run whose hashes are in its record, beside the latent weights of a run with binary weights.
TRAINED = ("model.safetensors", "masks.safetensors", "history.csv", "refreshes.csv")
LATENT = "latent.safetensors"
VERSIONS_OF = ("torch", "torchvision", "torchaudio", "numpy", "scipy", "snakemake")

Fingerprint = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Density = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


class Part(BaseModel, extra="forbid", frozen=True, strict=True):
    """A part of a record. Unknown keys and values of another type are errors."""


class Flops(Part):
    """FLOPs of one sample, two for each multiply-add (MAC)."""

    dense: Count
    sparse: Count


class SlabRecord(Part):
    """A slab that kept `connections` of its `units` x `fan` connections, and the FLOPs of its layer."""

    side: Literal["in", "out"]
    units: Count
    fan: Count
    connections: Count
    density: Density
    flops: Flops


class Bytes(Part):
    """Bytes of the parameters and buffers: as computed with, and at least needed to store them (`stored_bytes`)."""

    memory: Count
    stored: Count


class Cost(Part):
    """The kept shares of all slabs and of all weights, the number of weights, their bytes, and the FLOPs."""

    density: Density
    net_density: Density
    weights: Count
    bytes: Bytes
    flops: Flops


class StartedFrom(Part):
    """The dense run of another model that a warm-up started from, and the SHA-256 hash of its `weights`.

    Tensors of the run are either `loaded` or `unused`; those of the model that are not loaded are `untouched`.
    """

    run: str
    weights: Sha256
    loaded: list[str]
    unused: list[str]
    untouched: list[str]


class Environment(Part):
    """Versions of software, and the machine."""

    python: str
    versions: dict[str, str]
    platform: str
    host: str


class Record(Part):
    """The schema of `record.json`: everything that the results of a run depend on, and what it kept.

    `config` is the run's recipe (`bbnet.study.recipe`): settings, the key of the prepared data and the fingerprints of
    the warm start and the code. `fingerprint` is the hash of `config`. `inputs` and `files` are SHA-256 hashes of the
    files that the run read and wrote. `started_from` is None for a model that does not start from another run.
    `half_ranges` has h of each layer with binary weights. `precision` is that of the activations in training, and
    `compiled` says whether steps were compiled. `seconds` is the total time of the training, including earlier parts if
    it was interrupted. `calibration` has, for each calibration seed of a one-shot method, its training samples in the
    order in which they were read, and a hash of them. The entries from `environment` on may differ between equal runs.
    """

    run: dict[str, str | int]
    fingerprint: Fingerprint
    config: dict[str, Any]
    inputs: dict[str, Sha256]
    started_from: StartedFrom | None = None
    files: dict[str, Sha256]
    selected_epoch: Count
    left_dense: dict[str, str]
    half_ranges: dict[str, float]
    calibration: list[dict[str, Any]] = []
    slabs: dict[str, SlabRecord]
    cost: Cost
    precision: str
    compiled: bool
    environment: Environment
    device: str
    began: str
    seconds: float
    interruptions: Count
    peak_memory_mib: Count
    peak_gpu_memory_mib: Count | None


def read_record(path: Path) -> Record:
    """Reads and validates a record; raises ValueError naming the file and the first key that is not valid."""
    try:
        return Record.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{path}: {'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}") from None


def trained_files(record: Record) -> tuple[str, ...]:
    """Returns the names of the files that the training of a run writes."""
    of_draws = [name for draw in range(1, len(record.calibration)) for name in draw_files(draw)]
    return (*TRAINED, *of_draws, *([LATENT] if is_binary(record.config["method"]) else []))


def draw_files(draw: int) -> tuple[str, str]:
    """Returns the names of the files with weights and masks of a further draw of a one-shot method, from 1."""
    return f"model-{draw}.safetensors", f"masks-{draw}.safetensors"


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_files(folder: Path, record: Record) -> None:
    """Raises ValueError naming the first file of a run whose hash is not that in its record."""
    for name in trained_files(record):
        if sha256_of(folder / name) != record.files.get(name):
            raise ValueError(f"{folder / name}: is not the file that the run wrote, by its record.json")


def is_trained(folder: Path, wanted: str, prepared: str) -> bool:
    """Whether `folder` holds a complete run with the fingerprint `wanted`, trained on data with the hash `prepared`.

    The fingerprint contains that of the warm start. Its bytes are not compared: on a GPU they are others if the warm
    start was removed and made again.
    """
    if not (folder / "record.json").is_file():
        return False
    try:
        record = read_record(folder / "record.json")
        check_files(folder, record)
    except (OSError, ValueError) as error:
        logger.warning("%s; the run is trained again", error)
        return False
    known = record.fingerprint == wanted and record.inputs.get("prepared") == prepared
    if known:
        logger.info("%s: is trained, by its record; only the scores are computed", folder)
    return known


def canonical_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def fingerprint(config: Mapping[str, Any]) -> str:
    """Returns a hash of `config`, 16 hexadecimal digits."""
    return hashlib.sha256(canonical_json(config).encode()).hexdigest()[:16]


def code_fingerprint(root: Path, files: Iterable[Path]) -> str:
    """Returns a hash of the contents and paths of the files, 16 hexadecimal digits."""
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
    """Versions of software, and the machine."""
    return {
        "python": platform.python_version(),
        # Not the metadata of bbnet, which an editable installation keeps from when it was made.
        "versions": {"bbnet": bbnet.__version__} | {name: importlib.metadata.version(name) for name in VERSIONS_OF},
        "platform": platform.platform(),
        "host": socket.gethostname(),
    }


def peak_memory_mib() -> float:
    """Returns the peak resident memory of this process.

    On Linux it is read from /proc, because `getrusage` includes the process that this one was forked from.
    """
    status = Path("/proc/self/status")
    own = (
        re.search(r"^VmHWM:\s*(\d+) kB", status.read_text(encoding="utf-8"), re.MULTILINE) if status.is_file() else None
    )
    return (int(own[1]) if own else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / 1024


def run_status(folder: Path, wanted: str) -> tuple[str, str]:
    """Returns whether the run with the fingerprint `wanted` is done, failed, stale or missing in `folder`, and why."""
    record, error = folder / "record.json", folder / "error.json"
    try:
        failure = json.loads(error.read_text(encoding="utf-8")) if error.is_file() else None
        if failure and (failure["fingerprint"] == wanted or not record.is_file()):
            return "failed", failure["error"]
        if not record.is_file():
            return "missing", "not trained"
        found = json.loads(record.read_text(encoding="utf-8"))["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError) as unreadable:
        return "failed", f"record.json or error.json is not valid ({unreadable}); remove it to run the cell again"
    if found != wanted:
        return "stale", f"its record has fingerprint {found}, asked for is {wanted}"
    if not (folder / "metrics.json").is_file():
        return "missing", "trained, not evaluated"
    return "done", ""
