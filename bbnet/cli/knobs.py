"""The knobs of config.yaml, as a command was told to change them."""

import argparse
from pathlib import Path

import yaml

from bbnet.study.config import ConfigError, Knobs, read_knobs

STUDIES = Path("studies")


def chosen_knobs(options: argparse.Namespace) -> Knobs:
    """Those of config.yaml, but for the ones given as options; raises ConfigError."""
    if not STUDIES.is_dir():
        raise ConfigError(f"there is no folder {STUDIES.absolute()}; bbnet is run where the Snakefile is")
    try:
        content = yaml.safe_load(Path("config.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"config.yaml: cannot be read: {error}") from None
    given = {name: getattr(options, name, None) for name in Knobs.model_fields}
    if content is not None and not isinstance(content, dict):
        raise ConfigError(f"config.yaml: must be a map of keys, found {type(content).__name__}")
    return read_knobs((content or {}) | {name: value for name, value in given.items() if value is not None})
