"""The study knows the parameters of all algorithms and the settings of all tasks without importing torch."""

import importlib
import sys

import pytest
from pydantic import TypeAdapter, ValidationError

from bbnet.binary.settings import WeightValues
from bbnet.sparsity import algorithms, parameters
from bbnet.study import discover

NAMES = algorithms.names()


def method(**values):
    return TypeAdapter(discover.method_type()).validate_python(values)


def test_every_algorithm_file_is_found():
    assert discover.algorithm_names() == NAMES
    assert {"budgeted_broadcast", "dense", "magnitude"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_method_of_a_study_is_the_algorithm_with_its_parameters(name):
    described = method(algorithm=name, **({"one_shot": True} if name == "sparsegpt" else {})).model_dump()
    described.pop("one_shot", None)
    assert {key: described.pop(key) for key in WeightValues.model_fields} == WeightValues().model_dump()
    assert ("sparsity" in described) == (name != "dense")  # of the study, not of the algorithm
    assert described.pop("sparsity", None) is None
    algorithm = algorithms.make(described.pop("algorithm"), **described)
    assert isinstance(algorithm, parameters.parameters_of(name))
    assert algorithm.model_dump() == described
    with pytest.raises(ValidationError, match="extra"):
        method(algorithm=name, no_such_parameter=1)


@pytest.fixture
def new_algorithm(tmp_path, monkeypatch):
    """Adds an algorithm `novel`, and the file of its parameters if there is one."""

    def add(body: str, own_parameters: str | None = None) -> None:
        for package, text in ((algorithms, body), (parameters, own_parameters)):
            folder = tmp_path / package.__name__
            folder.mkdir()
            monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
            if text is not None:
                (folder / "novel.py").write_text(text)
            monkeypatch.delitem(sys.modules, f"{package.__name__}.novel", raising=False)
        importlib.invalidate_caches()

    yield add
    for package in (algorithms, parameters):
        sys.modules.pop(f"{package.__name__}.novel", None)


RULE = """
from bbnet.sparsity.algorithms import WeightMasking


class Novel(WeightMasking{base}):
    {field}

    def masks(self, slabs, budget):
        return [slab.mask for slab in slabs]
"""
OWN = """
from pydantic import Field

from bbnet.sparsity.parameters import WeightMaskingParameters


class Parameters(WeightMaskingParameters):
    share: float = Field(0.5, gt=0, lt=1)
"""


def test_an_algorithm_without_a_file_of_parameters_has_those_of_weight_masking(new_algorithm):
    new_algorithm(RULE.format(base="", field='"""A rule."""'))
    assert algorithms.make("novel", side="out").model_dump() == {"side": "out", "pattern": None}
    assert parameters.parameters_of("novel") is parameters.WeightMaskingParameters


def test_an_algorithm_has_the_parameters_of_its_file(new_algorithm):
    imported = "from bbnet.sparsity.parameters.novel import Parameters\n"
    new_algorithm(imported + RULE.format(base=", Parameters", field='"""A rule."""'), OWN)
    assert algorithms.make("novel", share=0.25).share == 0.25
    with pytest.raises(ValueError, match="algorithm novel: share: .*less than 1; its parameters: pattern, share, side"):
        algorithms.make("novel", share=1)


def test_a_parameter_that_the_study_would_not_know_is_refused_by_name(new_algorithm):
    new_algorithm(RULE.format(base="", field="share: float = 0.5"))
    with pytest.raises(ValueError, match=r"algorithms/novel\.py: share: .* sparsity/parameters/novel\.py"):
        algorithms.make("novel")


def test_every_task_folder_is_found():
    folders = {path.parent.name for path in discover.TASKS.glob("*/task.py")}
    assert discover.task_names() == sorted(folders)
    assert set(discover.tasks_type().model_fields) == folders


def test_what_a_task_has_is_known_by_its_modules():
    expected = {
        "asr": (True, False, True),
        "change": (False, False, True),
        "classification": (True, False, True),
        "face": (True, True, False),
        "language": (True, False, True),
        "logic": (False, False, False),
    }
    for task, kinds in expected.items():
        assert (discover.has_buckets(task), discover.has_pairs(task), discover.has_panels(task)) == kinds
    assert [task for task in discover.task_names() if discover.has_scaling(task)] == ["logic"]


def test_a_gradual_method_is_described_as_before_it_could_be_one_shot():
    assert "one_shot" not in method(algorithm="wanda").model_dump()
    assert "one_shot" not in method(algorithm="wanda", one_shot=False).model_dump(mode="json")
    assert method(algorithm="wanda", one_shot=True).model_dump()["one_shot"] == {
        "sequences": 64,
        "allocation": "uniform",
        "recovery_epochs": 0,
        "recovery_rate": 0.1,
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"algorithm": "sparsegpt"}, "needs one_shot: true"),
        ({"algorithm": "rigl", "one_shot": True}, "Extra inputs are not permitted"),
        ({"algorithm": "magnitude", "one_shot": True, "distribution": "global"}, "distribution must be uniform"),
        ({"algorithm": "magnitude", "one_shot": True, "weights": "binary"}, "prunes float weights, not binary"),
        ({"algorithm": "wanda", "one_shot": {"allocation": "owl"}, "pattern": "2:4"}, "needs allocation uniform"),
        ({"algorithm": "wanda", "one_shot": {"sequences": 0}}, "greater than or equal to 1"),
    ],
)
def test_one_shot_methods_that_cannot_be_are_refused(given, message):
    with pytest.raises(ValidationError, match=message):
        method(**given)
