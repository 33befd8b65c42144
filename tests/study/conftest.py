"""A small valid study as a dictionary, and ways to change one key of it."""

import copy
from pathlib import Path

import pytest
import yaml

from bbnet.study.config import Study

BASE = {
    "seeds": [0, 1],
    "budgets": [0.2, 0.5],
    "methods": {
        "dense": {"algorithm": "dense"},
        "sp_in": {"algorithm": "budgeted_broadcast", "side": "in"},
        "sp_out": {"algorithm": "budgeted_broadcast", "side": "out"},
        "magnitude": {"algorithm": "magnitude"},
    },
    "sparsity": {"rescale": "none"},
    "tasks": {
        "change": {
            "data": {"pack": "aerial_scenes", "size": 64, "train": 8, "val": 4, "test": 4},
            "tile": 32,
            "models": {"small": {"widths": [8, 16]}},
            "training": {"epochs": 4, "warm_up_epochs": 1, "batch_size": 4, "learning_rate": 0.01},
        }
    },
}


@pytest.fixture
def base() -> dict:
    return copy.deepcopy(BASE)


@pytest.fixture
def with_key():
    """The base study with one dotted key set; `...` removes it."""

    def change(key: str, value) -> dict:
        content = copy.deepcopy(BASE)
        *parents, last = key.split(".")
        section = content
        for parent in parents:
            section = section[parent]
        if value is ...:
            del section[last]
        else:
            section[last] = value
        return content

    return change


@pytest.fixture
def study(with_key):
    """The validated base study, with one key changed if named."""

    def make(key: str | None = None, value=None) -> Study:
        return Study(**(copy.deepcopy(BASE) if key is None else with_key(key, value)))

    return make


@pytest.fixture
def write_study(tmp_path):
    """Writes `bad.yaml`, from text or a dictionary, into a folder of studies."""

    def write(content: str | dict) -> Path:
        path = tmp_path / "bad.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
        return path

    return write
