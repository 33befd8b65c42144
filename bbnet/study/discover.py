"""The parameters of every algorithm and the settings of every task, found by module name and without torch."""

import importlib
import pkgutil
from functools import cache
from pathlib import Path
from typing import Annotated, Literal, Union

from pydantic import BaseModel, Field, create_model

import bbnet
from bbnet.binary.settings import WeightValues
from bbnet.sparsity.one_shot.settings import METHODS, OneShotMethod
from bbnet.sparsity.parameters import parameters_of
from bbnet.study.sparsity import SparsifyingMethod

PACKAGE = Path(bbnet.__file__).parent
ALGORITHMS = PACKAGE / "sparsity" / "algorithms"
TASKS = PACKAGE / "tasks"


def algorithm_names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules([str(ALGORITHMS)]))


def method_type() -> type:
    """Returns the type of a method of a study: an algorithm's name, its parameters, what its weights may be, and when.

    Of algorithms that can prune a trained network, it also says whether they do.
    """
    models = tuple(
        create_model(
            f"{name}_method",
            __base__=(
                parameters_of(name),
                *([OneShotMethod] if name in METHODS else []),
                WeightValues,
                *(() if name == "dense" else (SparsifyingMethod,)),
            ),
            algorithm=(Literal[name], Field(description=f"bbnet/sparsity/algorithms/{name}.py")),
        )
        for name in algorithm_names()
    )
    return Annotated[Union[models], Field(discriminator="algorithm")]  # noqa: UP007


def task_names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules([str(TASKS)]) if module.ispkg)


def settings_type(task: str) -> type[BaseModel]:
    return importlib.import_module(f"bbnet.tasks.{task}.settings").Settings


def tasks_type() -> type[BaseModel]:
    """Returns the type of the `tasks` section of a study: the settings of each task, all optional."""
    settings = {name: settings_type(name) for name in task_names()}
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
def has_scaling(task: str) -> bool:
    """Whether the task counts the training steps of models of different widths to a level of its selection metric."""
    return (TASKS / task / "scaling.py").exists()


@cache
def has_panels(task: str) -> bool:
    """Whether the task shows selected test cases side by side."""
    return (TASKS / task / "panels.py").exists()
