"""What every script shares: arguments, log, and one clear line when something is wrong."""

import argparse
import csv
import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bbnet.data.store import whole_file


def arguments(description: str, **options: dict) -> argparse.ArgumentParser:
    """A parser with `--log` and the given options, each with `add_argument`'s keywords; by default a required path."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--log", type=Path, required=True)
    for name, keywords in options.items():
        parser.add_argument(f"--{name.replace('_', '-')}", **{"type": Path, "required": True} | keywords)
    return parser


JSON = {"type": json.loads}
TEXT = {"type": str}
PATHS = {"nargs": "+"}


def run(main: Callable[[argparse.Namespace], None], parser: argparse.ArgumentParser) -> None:
    """Runs `main`; an error becomes one line on the terminal and a traceback in the log, and exit status 1."""
    options = parser.parse_args()
    options.log.parent.mkdir(parents=True, exist_ok=True)
    log_file = logging.FileHandler(options.log, mode="w")
    log_file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    terminal = logging.StreamHandler()
    terminal.setFormatter(logging.Formatter(f"[{options.log.stem}] %(message)s"))
    terminal.addFilter(lambda record: not getattr(record, "only_in_log", False))
    logging.basicConfig(level=logging.WARNING, handlers=[log_file, terminal])
    logging.getLogger("bbnet").setLevel(logging.INFO)
    try:
        main(options)
    except KeyboardInterrupt:
        logging.error("interrupted")
        sys.exit(130)
    except Exception as error:
        logging.error("error: %s", one_line(error))
        logging.error("traceback", exc_info=True, extra={"only_in_log": True})
        sys.exit(1)


def one_line(error: Exception) -> str:
    """The error's message; with its kind where the message alone would not be understood."""
    message = " ".join(str(error).split())
    return message if isinstance(error, ValueError) and message else f"{type(error).__name__}: {message}"


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())


def read_manifest(path: Path) -> dict:
    """Of a pack; its `root` is the folder beside it or one inside that, where the pack does not lie elsewhere."""
    manifest = read_json(path)
    return manifest | {"root": str(path.with_suffix("") / manifest.get("root", ""))}


def to_json(value: dict) -> str:
    return json.dumps(value, indent=1, sort_keys=True) + "\n"


def write_text(path: Path, text: str) -> None:
    with whole_file(path) as partial:
        partial.write_text(text)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> None:
    """Rows of equal keys, floats in the shortest form that reads back the same; `columns` heads an empty table."""
    with whole_file(path) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(path: Path, columns: Mapping[str, Any]) -> None:
    import pyarrow
    import pyarrow.parquet

    with whole_file(path) as partial:
        pyarrow.parquet.write_table(pyarrow.table(dict(columns)), partial)


def write_frame(path: Path, frame: Any) -> None:
    """A pandas table as .csv or .parquet."""
    with whole_file(path) as partial:
        if path.suffix == ".csv":
            frame.to_csv(partial, index=False)
        else:
            frame.to_parquet(partial, index=False)
