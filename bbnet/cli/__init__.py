"""The command `bbnet`: the study before, during and after. Imports no torch."""

import argparse
import sys
from collections.abc import Sequence

from bbnet.cli import check, plan, status, verify


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command; an error is one line and exit status 1."""
    parser = argparse.ArgumentParser(prog="bbnet", description="The study before, during and after.")
    commands = parser.add_subparsers(required=True, metavar="command")
    for command in (plan, status, check, verify):
        command.add_to(commands)
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except ValueError as error:
        sys.exit(f"error: {error}")
