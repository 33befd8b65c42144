"""The parameters of every algorithm and the settings of every task, found by module name and without torch."""

import importlib
import pkgutil
from functools import cache
from pathlib import Path
from typing import Annotated, Literal, Union

from pydantic import BaseModel, Field, create_model

import bbnet
from bbnet.sparsity.parameters import parameters_of

PACKAGE = Path(bbnet.__file__).parent
ALGORITHMS = PACKAGE / "sparsity" / "algorithms"
TASKS = PACKAGE / "tasks"


def algorithm_names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules([str(ALGORITHMS)]))


def method_type() -> type:
    """Returns the type of a method of a study: an algorithm's name and its parameters."""
    models = tuple(
        create_model(
            f"{name}_method",
            __base__=parameters_of(name),
            algorithm=(Literal[name], Field(description=f"bbnet/sparsity/algorithms/{name}.py")),
        )
        for name in algorithm_names()
    )
    return Annotated[Union[models], Field(discriminator="algorithm")]  # noqa: UP007


def task_names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules([str(TASKS)]) if module.ispkg)


def tasks_type() -> type[BaseModel]:
    """Returns the type of the `tasks` section of a study: the settings of each task, all optional."""
    settings = {name: importlib.import_module(f"bbnet.tasks.{name}.settings").Settings for name in task_names()}
    return create_model(
        "Tasks",
        __config__={"extra": "forbid"},
        **{name: (kind, Field(None, description=kind.__doc__)) for name, kind in settings.items()},
    )


@cache
def has_buckets(task: str) -> bool:
    """Whether the task reports metrics by Head, Mid and Tail of the training data."""
    return (TASKS / task / "buckets.py").exists()


@cache
def has_pairs(task: str) -> bool:
    """Whether the task scores pairs, for which there is an ROC curve."""
    return (TASKS / task / "verification.py").exists()


@cache
def has_panels(task: str) -> bool:
    """Whether the task shows selected test cases side by side."""
    return (TASKS / task / "panels.py").exists()
