"""Reads and validates config.yaml and the studies in studies/*.yaml. Errors are one line."""

import difflib
import json
import math
import os
import re
import tempfile
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from bbnet.sparsity.limits import SMALLEST_BUDGET, SMALLEST_FAN, smallest_degree
from bbnet.sparsity.schedule import Schedule
from bbnet.study.discover import method_type, tasks_type

DENSE_BUDGET = "1.00"


class ConfigError(ValueError):
    """An invalid configuration. The message is one line with the file, the key and what is allowed."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class Section(BaseModel, extra="forbid", frozen=True):
    """A part of the configuration. It is immutable, and unknown keys are errors."""


def _switch(value: Any) -> Any:
    """Undoes YAML's reading of on and off as true and false."""
    return {"True": "on", "False": "off"}.get(value, value) if isinstance(value, str) else value


Switch = Annotated[Literal["auto", "on", "off"], BeforeValidator(_switch)]


def one_name(folder: Any) -> Any:
    """Returns the one name of a folder that may be written in many ways, because Snakemake knows files by their names.

    `~` and variables are expanded. A folder below the current one has a relative name, any other an absolute one.
    Symbolic links keep their names, as nodes of a cluster may resolve them differently.
    """
    if not isinstance(folder, str) or not folder:
        return folder
    path = Path(os.path.expandvars(os.path.expanduser(folder)))
    # Only the file system knows where .. behind a symbolic link leads.
    path = path.resolve() if ".." in path.parts else path.absolute()
    above = (parent for parent in (path, *path.parents) if os.path.exists(parent) and os.path.samefile(parent, "."))
    here = next(above, None)
    name = str(path if here is None else path.relative_to(here))
    if "$" in name or name.startswith("~"):
        raise ValueError(f"{folder!r} has an environment variable that is not set, or names an unknown user")
    return name


Folder = Annotated[str, StringConstraints(min_length=1, pattern=r"^[^{}]+$"), BeforeValidator(one_name)]


class Knobs(Section):
    """The options of config.yaml, each of which `--config key=value` overrides."""

    study: str = Field("demo", pattern=r"^[a-z][a-z0-9_]*$", description="Name of a file in studies/, without .yaml.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto uses a GPU if there is one, and accepts finished runs of any device."
    )
    compile: Switch = Field("auto", description="Compile training steps; auto: if the run is long enough.")
    data_dir: Folder = Field("data", description="Folder of downloaded and prepared data; ~ and $HOME are expanded.")
    results_dir: Folder = Field("results", description="Folder of runs, summary, figures and tables; as data_dir.")
    results_from: Literal["runs", "reference"] = Field(
        "runs", description="reference: figures and tables from the summary shipped in results/reference/."
    )
    cells: Literal["all", "done"] = Field(
        "all", description="done: summarise the runs that exist and mark figures and tables as incomplete."
    )
    # No result depends on these options, so they are excluded from every dump and thus from every fingerprint.
    live: Literal["none", "tensorboard", "wandb"] = Field(
        "none", exclude=True, description="Where training histories are shown while runs train."
    )
    resident: Switch = Field(
        "auto", exclude=True, description="Keep samples in the device's memory; auto: on a GPU, if they fit."
    )
    gpu_slots: int = Field(1, ge=1, le=64, exclude=True, description="Number of runs that share a GPU.")
    checkpoint_minutes: float = Field(
        10, gt=0, le=10_000, exclude=True, description="Minutes between saved states within an epoch."
    )


def ceil_to_cents(share: float) -> str:
    """Returns the smallest budget with two decimals that is at least `share`."""
    return f"{math.ceil(100 * share) / 100:.2f}"


def canonical_budget(value: Any) -> str:
    """Returns a budget with two decimals, as used in paths and tables: 0.2 -> "0.20"."""
    try:
        text = str(value).strip()
        exact = Decimal(text if re.fullmatch(r"[-+0-9.eE]+|-?inf", text) else "NaN")
        if exact.is_nan():
            raise InvalidOperation
        canonical = f"{exact:.2f}"
        if Decimal(canonical) != exact:
            raise ValueError(f"budget {value} has more than two decimals")
    except InvalidOperation:
        raise ValueError(f"budget {value!r} is not a number") from None
    if not SMALLEST_BUDGET <= exact <= 1:
        raise ValueError(
            f"budget {value} is outside [{SMALLEST_BUDGET}, 1]: every unit keeps at least {SMALLEST_BUDGET} of its fan"
        )
    return canonical


Budget = Annotated[str, BeforeValidator(canonical_budget, json_schema_input_type=float | str)]
Label = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]


class Sparsity(Section):
    """Settings shared by all weight-masking methods of a study."""

    rescale: Literal["none", "sqrt", "energy"] = Field(
        "none", description="How the weights of a unit are rescaled when its connections change."
    )
    ramp_end: float = Field(
        0.40, ge=0, le=0.95, description="Share of the sparse phase after which the budget is reached."
    )
    freeze: float = Field(0.75, gt=0, le=0.95, description="Share of the sparse phase after which masks are fixed.")
    every: int | None = Field(None, ge=1, description="Optimiser steps between refreshes; 1/40 of the phase if absent.")

    def schedule(self) -> dict[str, Any]:
        """Returns the settings that decide when masks are refreshed."""
        return self.model_dump(exclude={"rescale"})

    @model_validator(mode="after")
    def _ramp_before_freeze(self) -> "Sparsity":
        if self.ramp_end > self.freeze:
            raise ValueError(f"ramp_end {self.ramp_end} must not exceed freeze {self.freeze}")
        return self


class Study(Section):
    """A complete study: every method, budget and seed on every model of every task."""

    description: str = Field("", description="What the study is for, in one sentence.")
    seeds: list[Annotated[int, Field(ge=0, lt=2**31, strict=True)]] = Field(
        min_length=1, description="Every cell is run once for each seed."
    )
    budgets: list[Budget] = Field(min_length=1, description="Kept shares of the slabs, with at most two decimals.")
    cpu_threads: int = Field(1, ge=1, le=256, description="Torch's threads on a CPU; other numbers give other bits.")
    deterministic: bool = Field(
        False, description="On a GPU, use only deterministic algorithms of torch, which are slower."
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Of activations in training; auto: bfloat16 on a GPU that supports it. Scores use float32."
    )
    sparsity: Sparsity = Field(default_factory=Sparsity, description=Sparsity.__doc__)
    methods: dict[Label, method_type()] = Field(description="Algorithm and parameters by label; one of them is dense.")
    tasks: tasks_type() = Field(description="Settings by task; at least one.")

    @field_validator("seeds", "budgets")
    @classmethod
    def _no_duplicates(cls, values: list) -> list:
        twice = sorted({str(value) for value in values if values.count(value) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} given twice")
        return values

    @field_validator("methods")
    @classmethod
    def _one_dense(cls, methods: dict) -> dict:
        dense = [label for label, method in methods.items() if method.algorithm == "dense"]
        if dense != ["dense"]:
            raise ValueError(
                "needs exactly one method of algorithm dense, labelled 'dense': comparisons are against it"
            )
        return methods

    @model_validator(mode="after")
    def _budgets_in_reach(self) -> "Study":
        for task, settings in self.task_settings().items():
            for model, fans in settings.fans().items():
                shares = [smallest_degree(fan) / fan for fan in fans if fan >= SMALLEST_FAN]
                if not shares:
                    raise ValueError(f"tasks.{task}.models.{model}: no slab has a fan of at least {SMALLEST_FAN}")
                if min(shares) > min(map(float, self.budgets)):
                    raise ValueError(
                        f"budgets: {min(self.budgets)} is in reach of no slab of tasks.{task}.models.{model}, whose "
                        f"units keep at least {min(shares):.4f} of their fan; allowed from {ceil_to_cents(min(shares))}"
                    )
        return self

    @field_validator("tasks")
    @classmethod
    def _some_task(cls, tasks: BaseModel) -> BaseModel:
        if not tasks.model_fields_set:
            raise ValueError(f"needs at least one task, allowed: {', '.join(type(tasks).model_fields)}")
        return tasks

    @model_validator(mode="after")
    def _patterns_fit(self) -> "Study":
        for label, method in self.methods.items():
            pattern = getattr(method, "pattern", None)
            if pattern is None:
                continue
            kept, size = map(int, pattern.split(":"))
            if kept >= size or not self.budgets_of(method):
                raise ValueError(f"methods.{label}: pattern {pattern} needs {kept}/{size}, below 1, among the budgets")
            if getattr(method, "distribution", "uniform") != "uniform":
                raise ValueError(f"methods.{label}: pattern {pattern} needs distribution uniform")
            for task, settings in self.task_settings().items():
                fans = set().union(*settings.fans().values())
                odd = sorted(fan for fan in fans if fan >= SMALLEST_FAN and fan % size)
                if odd:
                    raise ValueError(f"methods.{label}: pattern {pattern} does not fit fan {odd[0]} of tasks.{task}")
        return self

    def budgets_of(self, method: BaseModel) -> list[str]:
        """Returns the budgets at which a method runs: 1.00 for dense, N/M for a pattern N:M, else all of the study."""
        if method.algorithm == "dense":
            return [DENSE_BUDGET]
        pattern = getattr(method, "pattern", None)
        if pattern is None:
            return self.budgets
        kept, size = map(int, pattern.split(":"))
        return [budget for budget in self.budgets if Decimal(budget) * size == kept]

    def task_settings(self) -> dict[str, BaseModel]:
        """Returns the settings of each task of the study, by name."""
        return {name: getattr(self.tasks, name) for name in sorted(self.tasks.model_fields_set)}


def read_knobs(config: Mapping[str, Any]) -> Knobs:
    """Validates the options from config.yaml and --config; raises ConfigError."""
    texts = {str(key): value if isinstance(value, dict | list | None) else str(value) for key, value in config.items()}
    try:
        return Knobs(**texts)
    except ValidationError as error:
        raise ConfigError(_describe("config.yaml or --config", error, Knobs)) from None


def read_study(name: str, folder: Path) -> Study:
    """Reads and validates the study `folder/{name}.yaml`; raises ConfigError."""
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
        raise ConfigError(f"study {name}: there is no file {path}; known studies: {known}")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_StudyLoader)
        if not isinstance(content, dict):
            found = "an empty file" if content is None else type(content).__name__
            raise ConfigError(f"{path}: must be a map of keys, found {found}")
        for key, value in content.items():
            _check_keys(value, f"{path}: {key}")
        # Strict validation of JSON refuses true as a number and "5" as an integer, but accepts a list for a tuple.
        text = json.dumps({str(key): value for key, value in content.items()}, default=str)
    except ConfigError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a 13th month, a list that holds itself
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    try:
        return Study.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise ConfigError(_describe(str(path), error, Study)) from None


def read_summarised_study(path: Path) -> Study:
    """Reads the study that a summary was made of, from its `study.json`; raises ConfigError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        settings = {key: value for key, value in content.items() if key != "name"}
        return Study.model_validate_json(json.dumps(settings), strict=True)
    except ValidationError as error:
        raise ConfigError(_describe(str(path), error, Study)) from None
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path}: cannot be read as the study of a summary: {error}") from None


def differing_keys(study: Study, other: Study) -> list[str]:
    """Returns the dotted keys in which two studies differ, such as `methods.sp_out`; their descriptions may."""
    return _differing(study.model_dump(exclude={"description"}), other.model_dump(exclude={"description"}))


def _differing(one: Any, other: Any) -> list[str]:
    """Returns the keys below two values that differ: an empty one if they are not both maps, none if they are equal."""
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return [] if one == other else [""]
    return [
        f"{key}.{below}".rstrip(".") for key in {**one, **other} for below in _differing(one.get(key), other.get(key))
    ]


def _check_keys(content: Any, place: str) -> None:
    """Raises ConfigError for a key that is not a string, which JSON would convert to one."""
    below = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in below:
        if isinstance(content, dict) and not isinstance(key, str):
            raise ConfigError(f"{place}.{key}: a key should be a valid string, found {key!r}")
        _check_keys(value, f"{place}.{key}")


def check_schedules(study: Study, file: Path) -> None:
    """Raises ConfigError if the refreshes do not fit into the steps of a task whose number of steps is known."""
    for task, settings in study.task_settings().items():
        if settings.steps_per_epoch() is None:
            continue
        steps = settings.training.sparse_epochs * settings.steps_per_epoch()
        try:
            Schedule(steps, Decimal(min(study.budgets)), **study.sparsity.schedule())
        except ValueError as error:
            raise ConfigError(f"{file}: sparsity and tasks.{task}.training: {error}") from None


def check_sources(study: Study, file: Path) -> None:
    """Raises ConfigError if data that the study `file` expects at a path of this machine do not exist."""
    for task, settings in study.task_settings().items():
        path = getattr(settings.data, "path", None)
        if path is not None and not Path(path).expanduser().exists():
            raise ConfigError(f"{file}: tasks.{task}.data.path: there is no folder or archive {path}")
        for label, model in settings.models.items():
            weights = getattr(model, "weights", None)
            if weights is not None and weights.path and not Path(weights.path).expanduser().is_file():
                key = f"tasks.{task}.models.{label}.weights.path"
                raise ConfigError(f"{file}: {key}: there is no file {weights.path}")


def check_writable(knob: str, folder: Path) -> None:
    """Raises ConfigError naming `knob` if no files can be created under `folder`; leaves no files behind."""
    existing = folder
    try:
        existing = next(parent for parent in [folder, *folder.absolute().parents] if parent.exists())
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        problem = f"{knob} {folder}: cannot write into {existing} ({error.strerror})"
        raise ConfigError(f"config.yaml or --config: {problem}") from None


class _StudyLoader(yaml.SafeLoader):
    """A YAML loader that refuses duplicate keys, of which YAML would silently use the last, and reads 010 as ten."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key must be text", problem_mark=key_node.start_mark)
            if key_node.value in seen:
                mark = key_node.start_mark
                raise yaml.MarkedYAMLError(problem=f"key '{key_node.value}' given twice", problem_mark=mark)
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)

    def construct_decimal(self, node: yaml.ScalarNode) -> int:
        try:
            return int(self.construct_scalar(node))
        except ValueError as error:  # after the tag !!int
            raise yaml.MarkedYAMLError(problem=str(error), problem_mark=node.start_mark) from None


# YAML 1.1 reads 2:4 as the base-60 number 124.
_StudyLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:int"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_StudyLoader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile("^[-+]?[0-9]+$"), list("-+0123456789"))
# YAML 1.1 reads 010 as the octal number 8.
_StudyLoader.add_constructor("tag:yaml.org,2002:int", _StudyLoader.construct_decimal)
# YAML 1.1 reads 1e-3 as a string.
_StudyLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _describe(source: str, error: ValidationError, model: type[BaseModel]) -> str:
    schema = model.model_json_schema()
    # A misspelt key is also a missing one: say first what was written.
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    return "; ".join(f"{source}: {_describe_one(problem, schema)}" for problem in problems)


def _describe_one(problem: dict[str, Any], schema: dict[str, Any]) -> str:
    where, *tags = _walk(problem["loc"], schema)
    key = ".".join(where)
    if problem["type"] == "extra_forbidden":
        allowed = tags[0]
        nearest = difflib.get_close_matches(where[-1], allowed, n=1, cutoff=0.5)
        hint = f"did you mean '{nearest[0]}'? " if nearest else ""
        return f"{key}: unknown key; {hint}allowed: {', '.join(sorted(allowed))}"
    if problem["type"] == "missing":
        return f"{key}: is missing"
    if problem["type"] == "union_tag_invalid":
        context = problem["ctx"]
        return f"{key}.{_discriminator(problem)}: unknown {context['tag']!r}, allowed: {context['expected_tags']}"
    if problem["type"] == "union_tag_not_found":
        return f"{key}.{_discriminator(problem)}: is missing"
    if problem["type"] in ("dict_type", "model_type", "model_attributes_type"):
        return f"{key}: must be a map of keys, found {problem['input']!r}"
    message = problem["msg"].removeprefix("Value error, ").replace("a valid array", "a valid list")
    if problem["type"] == "value_error":
        return f"{key}: {message}" if key else message
    return f"{key}: {message[0].lower()}{message[1:]}, found {problem['input']!r}"


def _discriminator(problem: dict[str, Any]) -> str:
    return problem["ctx"]["discriminator"].strip("'")


def _walk(loc: tuple, schema: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The key path without pydantic's union tags, and the keys allowed beside its last one."""
    definitions = schema.get("$defs", {})
    node, path, siblings = schema, [], []
    for part in loc:
        node = _resolve(node, definitions)
        mapping = node.get("discriminator", {}).get("mapping", {})
        if part in mapping:
            node = {"$ref": mapping[part]}
            continue
        if part == "[key]":
            continue
        siblings = list(node.get("properties", {}))
        path.append(str(part))
        by_pattern = next(iter(node.get("patternProperties", {}).values()), {})
        node = node.get("properties", {}).get(part) or by_pattern or node.get("items", {})
    return path, siblings


def _resolve(node: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    while True:
        if "$ref" in node:
            node = definitions[node["$ref"].rsplit("/", 1)[1]]
        elif "anyOf" in node:
            node = next((option for option in node["anyOf"] if option.get("type") != "null"), {})
        elif "allOf" in node:
            node = node["allOf"][0]
        else:
            return node
