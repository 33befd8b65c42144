"""What the subcommands share that read the folder of a run and write files."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bbnet.study.record import Record, read_record


def record_of(folder: Path) -> Record:
    """Reads the record of a run; raises ValueError if `folder` is not that of a run, or its record is not valid."""
    if not (folder / "record.json").is_file():
        raise ValueError(f"{folder}: is not the folder of a run: it has no record.json")
    return read_record(folder / "record.json")


def method_of(record: Record) -> str:
    return f"{record.run['method']} ({record.config['method']['algorithm']})"


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Raises ValueError naming `path` if the block cannot read or write it."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
