"""Command line options for the knobs of config.yaml."""

import argparse
from pathlib import Path

import yaml

from bbnet.study.config import ConfigError, Knobs, read_knobs

STUDIES = Path("studies")
HELP = {
    "study": "name of a file in studies/, without .yaml (default: that of config.yaml)",
    "tasks": "all, or the tasks to look at, as in asr,face (default: that of config.yaml)",
    "data_dir": "folder of downloaded and prepared data (default: that of config.yaml)",
    "results_dir": "folder of the results (default: that of config.yaml)",
    "device": "auto, cpu or cuda (default: that of config.yaml)",
}


def add_knobs(parser: argparse.ArgumentParser, *names: str) -> None:
    """Adds one option per knob, which `chosen_knobs` reads."""
    for name in names:
        choices = ["auto", "cpu", "cuda"] if name == "device" else None
        parser.add_argument(f"--{name.replace('_', '-')}", choices=choices, help=HELP[name])


def chosen_knobs(options: argparse.Namespace) -> Knobs:
    """Returns the knobs of config.yaml, overridden by those given as options. Raises ConfigError if invalid."""
    if not STUDIES.is_dir():
        raise ConfigError(f"there is no folder {STUDIES.absolute()}; bbnet must be run in the folder of the Snakefile")
    try:
        content = yaml.safe_load(Path("config.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"config.yaml: cannot be read: {error}") from None
    given = {name: getattr(options, name, None) for name in Knobs.model_fields}
    if content is not None and not isinstance(content, dict):
        raise ConfigError(f"config.yaml: must be a map of keys, found {type(content).__name__}")
    return read_knobs((content or {}) | {name: value for name, value in given.items() if value is not None})
