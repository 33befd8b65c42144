"""The command line tool `bbnet`: planning, monitoring and checking a study. It does not import torch."""

import argparse
import sys
from collections.abc import Sequence

from bbnet.cli import check, plan, status, verify


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command; errors are reported in one line, with exit status 1."""
    parser = argparse.ArgumentParser(prog="bbnet", description="Plan, monitor and check a study.")
    commands = parser.add_subparsers(required=True, metavar="command")
    for command in (plan, status, check, verify):
        command.add_to(commands)
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except ValueError as error:
        sys.exit(f"error: {error}")
