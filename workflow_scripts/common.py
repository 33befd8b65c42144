"""Shared by all scripts: command-line arguments, the log, errors, and writing files."""

import argparse
import csv
import gc
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bbnet.data.process import end_with_parent
from bbnet.data.store import whole_file

# The garbage collector is off during imports, and `run` exempts what they created from later collections. Objects of
# imported modules are never garbage, but the collector visits hundreds of thousands of them again and again. Without
# this a job that imports torch starts 0.3 s later and ends 0.4 s later, of 1.3 s of start-up in all.
gc.disable()


def arguments(description: str, **options: dict) -> argparse.ArgumentParser:
    """Returns a parser of `--log` and `options`: keywords of `add_argument` by name, by default a required path."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--log", type=Path, required=True)
    for name, keywords in options.items():
        parser.add_argument(f"--{name.replace('_', '-')}", **{"type": Path, "required": True} | keywords)
    return parser


JSON = {"type": json.loads}
TEXT = {"type": str}
CLOCK_TOLERANCE_NS = 60 * 10**9  # by which the clocks of a cluster's machines may differ


def run(main: Callable[[argparse.Namespace], None], parser: argparse.ArgumentParser) -> None:
    """Runs `main`. An error is shown as one line on the terminal, with its traceback in the log, and exit status 1.

    SIGTERM and SIGHUP end the process like an exception, so that no partial files are left. The process also receives
    SIGTERM when Snakemake ends, whose process id the Snakefile passes on.
    """
    gc.freeze()
    gc.enable()
    options = parser.parse_args()
    rank = os.environ.get("RANK", "0")
    if rank != "0":  # one of the processes of a training on several devices, of which the first has the log of the job
        options.log = options.log.with_suffix(f".rank{rank}.log")
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, _exit)
    if "BBNET_PARENT" in os.environ:
        end_with_parent(signal.SIGTERM, int(os.environ["BBNET_PARENT"]))
    terminal = logging.StreamHandler()
    terminal.setFormatter(logging.Formatter(f"[{options.log.stem}] %(message)s"))
    terminal.addFilter(lambda record: not getattr(record, "only_in_log", False))
    logging.basicConfig(level=logging.WARNING, handlers=[terminal])
    logging.getLogger("bbnet").setLevel(logging.INFO if rank == "0" else logging.WARNING)
    logging.raiseExceptions = False  # if the log cannot be written, do not print a traceback for each message
    try:
        options.log.parent.mkdir(parents=True, exist_ok=True)
        log_file = logging.FileHandler(options.log, mode="w", encoding="utf-8", errors="backslashreplace")
        log_file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        logging.getLogger().addHandler(log_file)
        check_time_stamps(path for path in vars(options).values() if isinstance(path, Path))
        main(options)
    except KeyboardInterrupt:
        logging.error("interrupted")
        sys.exit(130)
    except Exception as error:
        logging.error("error: %s", one_line(error))
        logging.error("traceback", exc_info=True, extra={"only_in_log": True})
        sys.exit(1)
    finally:
        gc.freeze()


def check_time_stamps(inputs: Iterable[Path]) -> None:
    """Raises ValueError if an input is newer than the present, as after a clock was set back.

    Snakemake would reject, and delete, everything that is made from it.
    """
    latest = time.time_ns() + CLOCK_TOLERANCE_NS
    for path in inputs:
        if path.is_file() and path.stat().st_mtime_ns > latest:
            raise ValueError(
                f"{path}: its time stamp is in the future; once the clock is right, "
                "find DATA_DIR RESULTS_DIR -newermt now -exec touch {} + corrects such files"
            )


@contextmanager
def says_how_to_look_again() -> Iterator[None]:
    """Adds to the message of a ValueError in the block how a pack is looked at again after its files were edited."""
    try:
        yield
    except ValueError as error:
        again = "once it is corrected, the same command with --forcerun fetch prepare looks at all of it again"
        raise ValueError(f"{error}; {again}") from None


def _exit(number: int, _: Any) -> None:
    sys.exit(128 + number)


@contextmanager
def error_note(folder: Path, fingerprint: str) -> Iterator[None]:
    """Writes `error.json` into a run's folder if the block fails, and removes it otherwise."""
    note = folder / "error.json"
    try:
        yield
    except Exception as error:
        with suppress(OSError):  # the disk may be full, which may be the very error
            write_text(note, to_json({"fingerprint": fingerprint, "error": one_line(error)}))
        raise
    note.unlink(missing_ok=True)


def one_line(error: Exception) -> str:
    """Returns the error's message, preceded by its type unless it is one of our own ValueErrors."""
    message = " ".join(str(error).split())
    return message if isinstance(error, ValueError) and message else f"{type(error).__name__}: {message}"


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def read_manifest(path: Path) -> dict:
    """Reads the manifest of a pack. A relative `root` is resolved against the folder beside the manifest."""
    manifest = read_json(path)
    return manifest | {"root": str(path.with_suffix("") / manifest.get("root", ""))}


def to_json(value: dict) -> str:
    return json.dumps(value, indent=1, sort_keys=True) + "\n"


def write_text(path: Path, text: str) -> None:
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> None:
    """Writes rows with equal keys; floats round-trip exactly. `columns` is the header of an empty table."""
    with whole_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(path: Path, columns: Mapping[str, Any]) -> None:
    """Writes columns of equal length: arrays of numbers or texts, or object arrays of arrays of numbers.

    Arrow arrays are made from buffers instead of by `pyarrow.array`, because that function imports pandas. The import
    takes 0.3 s, a quarter of the start-up of a training job. A test reads all supported types back.
    """
    import numpy as np
    import pyarrow
    import pyarrow.parquet

    def as_arrow(values: np.ndarray) -> pyarrow.Array:
        if values.dtype == object:
            return pyarrow.ListArray.from_arrays(starts(values), as_arrow(np.concatenate(values)))
        if values.dtype.kind == "U":
            texts = [each.encode() for each in values.tolist()]
            buffers = [starts(texts).buffers()[1], pyarrow.py_buffer(b"".join(texts))]
            return pyarrow.Array.from_buffers(pyarrow.string(), len(texts), [None, *buffers])
        if values.dtype.kind not in "iuf":  # booleans, which Arrow stores as bits
            return pyarrow.array(values.tolist())
        kind, buffer = pyarrow.from_numpy_dtype(values.dtype), pyarrow.py_buffer(values.copy())
        return pyarrow.Array.from_buffers(kind, len(values), [None, buffer])

    def starts(parts: Sequence) -> pyarrow.Array:
        return as_arrow(np.cumsum([0, *map(len, parts)], dtype=np.int32))

    with whole_file(path) as partial:
        table = pyarrow.table({name: as_arrow(values) for name, values in columns.items()})
        pyarrow.parquet.write_table(table, partial)


def write_frame(path: Path, frame: Any) -> None:
    """Writes a pandas DataFrame as .csv or .parquet."""
    with whole_file(path) as partial:
        if path.suffix == ".csv":
            frame.to_csv(partial, index=False)
        else:
            frame.to_parquet(partial, index=False)
