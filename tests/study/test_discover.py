"""What the study knows of algorithms and tasks is what they are, though no algorithm is imported."""

import importlib
import shutil
import subprocess
import sys

import pytest
from pydantic import TypeAdapter, ValidationError

from bbnet.sparsity import algorithms
from bbnet.study import discover

NAMES = algorithms.names()
VALUES = [None, True, 0, 1, -1, 0.1, 0.5, 10, 11, 1e9, "in", "out", "both", "left", "0.3", "", [], {}]


def acceptance(model, field, value):
    """The value that a field takes from an input, or that it refuses it."""
    try:
        return getattr(model(**{field: value}), field)
    except ValidationError:
        return "refused"


def candidates(model, field) -> list:
    """Values that a field may take or refuse, among them every one of its Literal."""
    choices = getattr(model.model_fields[field].annotation, "__args__", ())
    return [*VALUES, *choices, *(str(choice).upper() for choice in choices)]


@pytest.fixture
def algorithm_class():
    """The class that a run uses."""
    return lambda name: type(algorithms.make(name))


@pytest.fixture
def algorithms_folder(tmp_path, monkeypatch):
    """A copy of the algorithms, which the study looks into."""
    folder = tmp_path / "algorithms"
    shutil.copytree(discover.ALGORITHMS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(discover, "ALGORITHMS", folder)
    return folder


@pytest.fixture
def new_algorithm(algorithms_folder):
    """Drops `novel.py` beside the others."""

    def drop(body: str, head: str = "from bbnet.sparsity.algorithms import WeightMasking") -> None:
        (algorithms_folder / "novel.py").write_text(f"{head}\n\n\n{body}\n")

    return drop


def method(**parameters):
    return TypeAdapter(discover.method_type()).validate_python(parameters)


def test_every_algorithm_file_is_found():
    assert discover.algorithm_names() == NAMES
    assert {"budgeted_broadcast", "dense", "magnitude"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_read_from_the_source_are_the_fields_of_the_class(name, algorithm_class):
    read, real = discover.algorithm_parameters(name).model_fields, algorithm_class(name).model_fields
    assert set(read) == set(real)
    assert {field: read[field].get_default() for field in read} == {field: real[field].get_default() for field in real}


@pytest.mark.parametrize("name", NAMES)
def test_parameters_read_from_the_source_accept_what_the_class_accepts(name, algorithm_class):
    read, real = discover.algorithm_parameters(name), algorithm_class(name)
    for field in real.model_fields:
        for value in candidates(real, field):
            assert acceptance(read, field, value) == acceptance(real, field, value), (field, value)


@pytest.mark.parametrize("name", NAMES)
def test_unknown_parameters_are_refused_by_both(name, algorithm_class):
    for model in (discover.algorithm_parameters(name), algorithm_class(name)):
        with pytest.raises(ValidationError, match="extra"):
            model(no_such_parameter=1)


@pytest.mark.parametrize("name", NAMES)
def test_a_method_of_a_study_makes_the_algorithm(name, algorithm_class):
    described = method(algorithm=name).model_dump()
    assert isinstance(algorithms.make(described.pop("algorithm"), **described), algorithm_class(name))


def test_a_new_algorithm_file_is_found_with_its_parameters(new_algorithm):
    new_algorithm(
        "class Novel(WeightMasking):\n"
        '    """A rule."""\n\n'
        "    loud: ClassVar[bool] = True\n"
        '    mode: Literal["a", "b"] = "a"\n'
        "    share: Annotated[float, Field(gt=0, lt=1)] = 0.5\n\n"
        "    def masks(self, slabs, budget):\n"
        "        return unknown_name(slabs)\n",
        head="from typing import Annotated, ClassVar, Literal\n\nimport torch\nfrom pydantic import Field\n\n"
        "from bbnet.sparsity.algorithms import WeightMasking",
    )
    assert "novel" in discover.algorithm_names()
    assert method(algorithm="novel", mode="b").model_dump() == {
        "algorithm": "novel",
        "mode": "b",
        "share": 0.5,
        "side": "in",
        "pattern": None,
    }
    for wrong in ({"share": 1}, {"mode": "c"}, {"loud": False}, {"side": "up"}):
        with pytest.raises(ValidationError):
            method(algorithm="novel", **wrong)


def test_a_removed_algorithm_file_is_unknown(algorithms_folder):
    (algorithms_folder / "magnitude.py").unlink()
    with pytest.raises(ValidationError, match="union_tag_invalid"):
        method(algorithm="magnitude")


def test_a_parameter_may_use_any_name_of_pydantic_in_a_fresh_interpreter(algorithms_folder):
    """Pydantic loads most of its names when they are first asked for."""
    fields = ["a: PositiveInt = 3", "b: Annotated[int, AfterValidator(abs)] = 3", "c: conint(ge=1) = 3"]
    (algorithms_folder / "novel.py").write_text("class Novel(WeightMasking):\n    " + "\n    ".join(fields))
    code = "import sys; from pathlib import Path; from bbnet.study import discover; "
    code += "discover.ALGORITHMS = Path(sys.argv[1]); print(discover.algorithm_parameters('novel')(b=-4).b)"
    done = subprocess.run([sys.executable, "-c", code, algorithms_folder], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "4", done.stderr


@pytest.mark.parametrize("field", ["budget: Decimal = 1", "count: int = LARGEST", "parts: list[torch.Tensor] = []"])
def test_a_parameter_with_a_foreign_name_is_refused_by_file_and_name(new_algorithm, field):
    new_algorithm(f"class Novel(WeightMasking):\n    {field}")
    with pytest.raises(ValueError, match=r"novel\.py: .*(Decimal|LARGEST|torch)") as refused:
        discover.method_type()
    assert not isinstance(refused.value, ValidationError)


def test_a_file_without_an_algorithm_is_refused_by_name(new_algorithm):
    new_algorithm("class Novel:\n    pass")
    with pytest.raises(ValueError, match=r"novel\.py: no class that derives from Algorithm or .*WeightMasking"):
        discover.method_type()


def test_every_task_folder_is_found():
    folders = {path.parent.name for path in discover.TASKS.glob("*/task.py")}
    assert discover.task_names() == sorted(folders)
    assert set(discover.tasks_type().model_fields) == folders


@pytest.mark.parametrize("name", discover.task_names())
def test_a_task_has_panels_if_it_has_the_module(name):
    found = importlib.util.find_spec(f"bbnet.tasks.{name}.panels") is not None
    assert discover.has_panels(name) == found
