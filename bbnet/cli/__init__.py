"""The command line tool `bbnet`: planning, monitoring and checking a study. It does not import torch."""

import argparse
import io
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command; errors are reported in one line, with exit status 1."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # the locale may lack a character of a table, such as Δ
    try:
        _run(arguments)
    except ValueError as error:
        sys.exit(f"error: {error}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "bbnet":
            raise
        sys.exit(
            'error: the command needs the packages of the study, the extra "study" of bbnet '
            f"(no module named {error.name!r})"
        )


def _run(arguments: Sequence[str] | None) -> None:
    # Imported here, since they need packages that an installation of the core lacks.
    from bbnet.cli import check, plan, status, verify

    parser = argparse.ArgumentParser(prog="bbnet", description="Plan, monitor and check a study.")
    commands = parser.add_subparsers(required=True, metavar="command")
    for command in (plan, status, check, verify):
        command.add_to(commands)
    options = parser.parse_args(arguments)
    options.run(options)
