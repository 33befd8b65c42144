"""The settings of every algorithm and task, found by name: there is no list to edit.

Nothing here may import torch, so an algorithm's parameters are read from its syntax tree: the annotated fields of its
class are compiled without its methods and without the imports of its module.
"""

import ast
import builtins
import importlib
import pkgutil
import typing
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import pydantic
from pydantic import BaseModel, Field, create_model

import bbnet

PACKAGE = Path(bbnet.__file__).parent
ALGORITHMS = PACKAGE / "sparsity" / "algorithms"
TASKS = PACKAGE / "tasks"


class Parameters(BaseModel, extra="forbid", frozen=True):
    """Parameters of an algorithm; the root of them all has none."""


ROOT = "Algorithm"


def algorithm_names() -> list[str]:
    return sorted(path.stem for path in ALGORITHMS.glob("*.py") if path.stem != "__init__")


def algorithm_parameters(name: str) -> type[Parameters]:
    """The parameters declared by the class in `algorithms/{name}.py`; raises ValueError if there is no such class."""
    path = ALGORITHMS / f"{name}.py"
    bases = _base_parameters(ALGORITHMS / "__init__.py")
    for node in _classes(path):
        base = _base_name(node, bases)
        if base is not None:
            return _compile_fields(node, bases[base], path)
    raise ValueError(f"{path.name}: no class that derives from {' or '.join(bases)}")


@cache
def _base_parameters(path: Path) -> dict[str, type[Parameters]]:
    """The parameters that the kinds of algorithms in `algorithms/__init__.py` have, by class name."""
    found: dict[str, type[Parameters]] = {ROOT: Parameters}
    for node in _classes(path):
        base = _base_name(node, found)
        if base is not None:
            found[node.name] = _compile_fields(node, found[base], path)
    return found


def _classes(path: Path) -> list[ast.ClassDef]:
    return [node for node in ast.parse(path.read_text(), filename=str(path)).body if isinstance(node, ast.ClassDef)]


def _base_name(node: ast.ClassDef, bases: Collection[str]) -> str | None:
    return next((base.id for base in node.bases if isinstance(base, ast.Name) and base.id in bases), None)


def _compile_fields(node: ast.ClassDef, base: type[Parameters], path: Path) -> type[Parameters]:
    fields = [part for part in node.body if isinstance(part, ast.AnnAssign) and "ClassVar" not in ast.dump(part)]
    bare = ast.ClassDef(
        name=node.name,
        bases=[ast.Name("Base", ast.Load())],
        keywords=[],
        body=fields or [ast.Pass()],
        decorator_list=[],
        type_params=[],
    )
    module = ast.fix_missing_locations(ast.Module(body=[bare], type_ignores=[]))
    used = {part.id for part in ast.walk(bare) if isinstance(part, ast.Name)} - {"Base"}
    names: dict[str, Any] = {"Base": base, "__name__": __name__}
    for name in used:
        home = next((home for home in (builtins, typing, pydantic) if hasattr(home, name)), None)
        if home is not None:
            names[name] = getattr(home, name)
    try:
        exec(compile(module, str(path), "exec"), names)
    except NameError as error:
        raise ValueError(f"{path.name}: parameters may use names of typing and pydantic only: {error}") from None
    return names[node.name]


def method_type() -> type:
    """A method of a study: an algorithm's name and its parameters, one model per algorithm file."""
    models = tuple(
        create_model(
            f"{name}_method",
            __base__=algorithm_parameters(name),
            algorithm=(Literal[name], Field(description=f"bbnet/sparsity/algorithms/{name}.py")),
        )
        for name in algorithm_names()
    )
    return Annotated[Union[models], Field(discriminator="algorithm")]  # noqa: UP007


def task_names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules([str(TASKS)]) if module.ispkg)


def tasks_type() -> type[BaseModel]:
    """The `tasks` section of a study: the settings of each task folder, all optional."""
    settings = {name: importlib.import_module(f"bbnet.tasks.{name}.settings").Settings for name in task_names()}
    return create_model(
        "Tasks",
        __config__={"extra": "forbid"},
        **{name: (kind, Field(None, description=kind.__doc__)) for name, kind in settings.items()},
    )


@cache
def has_buckets(task: str) -> bool:
    """Whether the task's scores are told apart by Head, Mid and Tail of the training data."""
    return (TASKS / task / "buckets.py").exists()


@cache
def has_pairs(task: str) -> bool:
    """Whether the task scores pairs that are of one kind or not, which have an ROC curve."""
    return (TASKS / task / "verification.py").exists()


@cache
def has_panels(task: str) -> bool:
    """Whether the task shows chosen cases side by side."""
    return (TASKS / task / "panels.py").exists()
