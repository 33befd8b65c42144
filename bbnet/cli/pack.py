"""`bbnet pack` and `bbnet unpack`: the network of a run with one bit for every binary weight."""

import argparse
from pathlib import Path
from typing import Any

from bbnet.analysis.weights import MODEL, check_half_ranges
from bbnet.binary.packed_file import read_packed, to_packed
from bbnet.binary.raw_tensors import from_bytes, to_bytes
from bbnet.binary.settings import is_binary
from bbnet.cli.runs import method_of, naming, record_of
from bbnet.data.store import whole_file

PACKED, UNPACKED = "packed.safetensors", ".unpacked.safetensors"


def add_to(commands: Any) -> None:
    pack = commands.add_parser(
        "pack",
        help="store the network of a run with one bit for every binary weight",
        description="Stores the selected network of a run with binary weights: one bit for every binary weight that is "
        "not 0, one for every kernel or weight of a layer that has pruned ones, and all other tensors as they are.",
    )
    pack.add_argument("run_folder", type=Path, metavar="RUN", help="the folder of a run, with its record.json")
    pack.add_argument("file", type=Path, nargs="?", metavar="FILE", help=f"what is written (default: RUN/{PACKED})")
    pack.set_defaults(run=pack_run)
    unpack = commands.add_parser(
        "unpack",
        help="make a file of plain tensors of a packed network",
        description="Makes a safetensors file of a file of `bbnet pack`, which is the model.safetensors of the run to "
        "the byte and loads into the plain network. Checks the file before it allocates memory.",
    )
    unpack.add_argument("file", type=Path, metavar="FILE", help="a file that `bbnet pack` has written")
    unpack.add_argument(
        "out", type=Path, nargs="?", metavar="OUT", help=f"what is written (default: FILE, ending with {UNPACKED})"
    )
    unpack.set_defaults(run=unpack_file)


def pack_run(options: argparse.Namespace) -> None:
    """Packs a run; raises ValueError if its weights are float, or a file of it is not valid."""
    folder = options.run_folder
    out = folder / PACKED if options.file is None else options.file
    record = record_of(folder)
    if not is_binary(record.config["method"]):
        raise ValueError(
            f"{folder}: its method {method_of(record)} has float weights; only runs of a method with weights binary or "
            "stochastic_binary can be packed"
        )
    if options.file is not None:
        _check_other(out, *folder.iterdir())
    with naming(folder / MODEL):
        model = (folder / MODEL).read_bytes()
    try:
        check_half_ranges(folder, record.half_ranges)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    try:
        packed = to_packed(from_bytes(model)[0], record.half_ranges)
    except ValueError as error:
        raise ValueError(f"{folder / MODEL}: {error}") from None
    _write(out, packed)
    print(
        f"{out}: {len(packed):,} bytes; {MODEL} has {len(model):,}, {len(model) / len(packed):.1f} times as many. "
        f"Binary layers: {len(record.half_ranges)}."
    )


def unpack_file(options: argparse.Namespace) -> None:
    """Unpacks a file; raises ValueError naming it if it is not a valid file of packed weights."""
    out = options.file.with_suffix(UNPACKED) if options.out is None else options.out
    _check_other(out, options.file)
    with naming(options.file):
        tensors = read_packed(options.file)
    content = to_bytes(tensors)
    _write(out, content)
    print(f"{out}: {len(content):,} bytes, {len(tensors)} tensors")


def _check_other(out: Path, *inputs: Path) -> None:
    if out.resolve() in (path.resolve() for path in inputs):
        raise ValueError(f"{out}: is a file of the run or of what is read; give another name")


def _write(path: Path, content: bytes) -> None:
    with naming(path), whole_file(path) as partial:
        partial.write_bytes(content)
