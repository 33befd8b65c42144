"""The command line tool `bbnet`: planning, monitoring and checking studies and their runs. It does not import torch."""

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
    from bbnet.cli import check, graph, pack, plan, score, ship, status, verify, weights

    parser = argparse.ArgumentParser(prog="bbnet", description="Plan, monitor and check studies and their runs.")
    commands = parser.add_subparsers(required=True, metavar="command")
    for command in (plan, graph, status, check, verify, score, weights, pack, ship):
        command.add_to(commands)
    options = parser.parse_args(arguments)
    options.run(options)
