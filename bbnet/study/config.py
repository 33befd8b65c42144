"""Reads and validates config.yaml and the studies in studies/*.yaml. Errors are one line."""

import difflib
import json
import math
import re
import tempfile
from collections.abc import Collection, Mapping
from datetime import date
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    StringConstraints,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)

from bbnet.data.paths import one_name
from bbnet.sparsity.limits import SMALLEST_BUDGET, SMALLEST_FAN, smallest_degree
from bbnet.sparsity.schedule import Schedule
from bbnet.study.discover import method_type, settings_type, tasks_type
from bbnet.study.sparsity import Sparsity, faults

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


def _folder_name(value: Any) -> Any:
    """Returns the one name of a folder; raises ValueError if it is not known, since no text was given."""
    if isinstance(value, bool | int | float | date):
        raise ValueError(
            f"was read as the {_kind(value)} {value}, which may not be what was written (2024_01 is read as 202401, "
            "and 010 as 8 or 10); write ./ in front of the name, as in ./2024_01"
        )
    if not isinstance(value, str) or not value:
        return value
    name = one_name(value)
    if "$" in name or name.startswith("~"):
        raise ValueError(f"{value!r} has an environment variable that is not set, or names an unknown user")
    return name


def _kind(value: bool | float | date) -> str:
    return "truth value" if isinstance(value, bool) else "date" if isinstance(value, date) else "number"


Folder = Annotated[str, StringConstraints(min_length=1, pattern=r"^[^{}]+$"), BeforeValidator(_folder_name)]
FOLDERS = ("data_dir", "results_dir")


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
    tasks: str = Field(
        "all",
        pattern=r"^[a-z][a-z0-9_]*(,[a-z][a-z0-9_]*)*$",
        description="all, or the tasks of the study that are run and summarised, as in asr,face.",
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


class Diagnostics(Section):
    """What `snakemake diagnostics` looks at; no other result depends on it."""

    seeds: list[Annotated[int, Field(ge=0, lt=2**31, strict=True)]] | None = Field(
        None, min_length=1, description="Seeds of the runs; the first of the study if absent."
    )
    budgets: list[Budget] | None = Field(
        None,
        min_length=1,
        description="Budgets of the runs; the smallest of the study if absent. A method that runs at none of them is "
        "taken at the smallest of its own.",
    )
    methods: list[Label] | None = Field(None, min_length=1, description="Labels of methods; all if absent.")
    steps: int = Field(60, ge=1, le=100_000, description="Training steps from the warm start, and from the end.")
    every: int = Field(5, ge=1, description="Steps per observed step.")
    layers: list[Annotated[str, StringConstraints(min_length=1)]] | None = Field(
        None,
        min_length=1,
        description="Names or patterns such as encoder.* of the layers to probe; those of slabs and units if absent.",
    )
    strict: bool = Field(False, description="Fail if a tensor that is trained never moves.")

    @model_validator(mode="after")
    def _some_step_observed(self) -> "Diagnostics":
        if self.every > self.steps:
            raise ValueError(f"every {self.every} must not exceed steps {self.steps}")
        return self


class Study(Section):
    """A complete study: every method, budget and seed on every model of every task."""

    description: str = Field("", description="What the study is for, in one sentence.")
    seeds: list[Annotated[int, Field(ge=0, lt=2**31, strict=True)]] = Field(
        min_length=1, description="Every cell is run once for each seed."
    )
    budgets: list[Budget] = Field(min_length=1, description="Kept shares of the slabs, with at most two decimals.")
    cpu_threads: int = Field(1, ge=1, le=256, description="Torch's threads on a CPU; other numbers give other bits.")
    calibration_seeds: list[Annotated[int, Field(ge=0, lt=2**31, strict=True)]] = Field(
        [0],
        min_length=1,
        description="Every one-shot method prunes the network of a seed once for each of these, with other training "
        "samples for calibration; scores of a seed are means over them.",
    )
    deterministic: bool = Field(
        False, description="On a GPU, use only deterministic algorithms of torch, which are slower."
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Of activations in training; auto: bfloat16 on a GPU that supports it. Scores use float32."
    )
    sparsity: Sparsity = Field(default_factory=Sparsity, description=Sparsity.__doc__)
    diagnostics: Diagnostics = Field(default_factory=Diagnostics, exclude=True, description=Diagnostics.__doc__)
    methods: dict[Label, method_type()] = Field(description="Algorithm and parameters by label; one of them is dense.")
    reference: Label | None = Field(
        None,
        description="A method with which its variants, those of its algorithm, are compared; each of them also with "
        "rivals of equal `sparsity`. Absent: Budgeted Broadcast with the published law is compared with all methods.",
    )
    tasks: tasks_type() = Field(description="Settings by task; at least one.")
    only: dict[Label, dict[Label, list[Label]]] = Field(
        default_factory=dict,
        description="By task and model, the methods that run on it, dense among them; on other models all methods run.",
    )
    first_seeds: dict[Label, Annotated[int, Field(ge=1, strict=True)]] = Field(
        default_factory=dict,
        description="By task, how many of the seeds it runs, the first ones; other tasks run all. For tasks whose "
        "differences are seen with fewer seeds.",
    )

    @field_validator("seeds", "calibration_seeds", "budgets")
    @classmethod
    def _no_duplicates(cls, values: list) -> list:
        twice = sorted({str(value) for value in values if values.count(value) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} given twice")
        return values

    @field_validator("methods")
    @classmethod
    def _one_dense(cls, methods: dict) -> dict:
        dense = [
            label for label, method in methods.items() if method.algorithm == "dense" and method.weights == "float"
        ]
        if dense != ["dense"]:
            raise ValueError(
                "needs exactly one method of algorithm dense with weights float, labelled 'dense': comparisons are "
                "against it"
            )
        return methods

    @model_validator(mode="after")
    def _own_sparsity_fits(self) -> "Study":
        for label, method in self.methods.items():
            for fault in faults(method, self.sparsity):
                raise ValueError(f"methods.{label}.{fault}")
        return self

    @model_validator(mode="after")
    def _no_rescaled_binary_weights(self) -> "Study":
        for label, method in self.methods.items():
            rescale = self.sparsity_of(method).rescale
            if rescale != "none" and method.weights != "float" and hasattr(method, "side"):
                raise ValueError(
                    f"methods.{label}: rescaling has no effect on weights {method.weights}: sparsity.rescale must be "
                    f"none, not {rescale}"
                )
        return self

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

    @model_validator(mode="after")
    def _smallest_degrees_in_reach(self) -> "Study":
        smallest = Decimal(min(self.budgets))
        for label, method in self.methods.items():
            share = getattr(method, "k_min", 0)
            for task, settings in self.task_settings().items():
                # The slabs whose default smallest degree fits the budget, as in `choose_slabs`.
                fans = {fan for fans in settings.fans().values() for fan in fans if fan >= SMALLEST_FAN}
                for fan in sorted(fan for fan in fans if smallest_degree(fan) <= smallest * fan):
                    if smallest_degree(fan, share) > smallest * fan:
                        raise ValueError(
                            f"methods.{label}: k_min {share} lets a unit keep {smallest_degree(fan, share)} of {fan} "
                            f"connections in tasks.{task}, which budget {smallest} does not allow"
                        )
        return self

    @model_validator(mode="after")
    def _reference_is_a_sparse_method(self) -> "Study":
        sparse = [label for label in self.methods if label != "dense"]
        if self.reference is not None and self.reference not in sparse:
            raise ValueError(
                f"reference: {self.reference} is no sparse method of the study, allowed: {', '.join(sparse)}"
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

    @model_validator(mode="after")
    def _diagnosed_exist(self) -> "Study":
        known = {"seeds": self.seeds, "budgets": [*self.budgets, DENSE_BUDGET], "methods": list(self.methods)}
        for key, allowed in known.items():
            unknown = [each for each in getattr(self.diagnostics, key) or () if each not in allowed]
            if unknown:
                raise ValueError(
                    f"diagnostics.{key}: {unknown[0]} is not in the study, allowed: {', '.join(map(str, allowed))}"
                )
        return self

    @model_validator(mode="after")
    def _first_seeds_exist(self) -> "Study":
        tasks = self.task_settings()
        for task, number in self.first_seeds.items():
            if task not in tasks:
                raise ValueError(f"first_seeds.{task}: no such task in this study, allowed: {', '.join(tasks)}")
            if number > len(self.seeds):
                raise ValueError(f"first_seeds.{task}: {number} is more than the {len(self.seeds)} seeds of the study")
        return self

    @model_validator(mode="after")
    def _only_known(self) -> "Study":
        tasks = self.task_settings()
        for task, models in self.only.items():
            if task not in tasks:
                raise ValueError(f"only.{task}: no such task in this study, allowed: {', '.join(tasks)}")
            for model, methods in models.items():
                if model not in tasks[task].models:
                    known = ", ".join(tasks[task].models)
                    raise ValueError(f"only.{task}.{model}: no such model of the task, allowed: {known}")
                unknown = [label for label in methods if label not in self.methods]
                if unknown or "dense" not in methods:
                    found = f"{unknown[0]} is no method of this study" if unknown else "dense is missing"
                    raise ValueError(f"only.{task}.{model}: {found}, allowed: {', '.join(self.methods)}, with dense")
        return self

    @model_validator(mode="after")
    def _sources_known(self) -> "Study":
        """Checks that every model that starts from a run names a model of the study, and no chain leads back to it."""
        models = [f"{task}/{model}" for task, settings in self.task_settings().items() for model in settings.models]
        found = {"/".join(place): "/".join(source) for place, source in sources(self).items()}
        for place, source in found.items():
            where = f"tasks.{place.replace('/', '.models.')}.weights.run"
            if source not in models:
                raise ValueError(f"{where}: {source} is no model of this study, allowed: {', '.join(models)}")
            chain = [place, source]
            while chain[-1] in found and chain[-1] not in chain[:-1]:
                chain.append(found[chain[-1]])
            if chain[-1] in chain[:-1]:
                raise ValueError(f"{where}: no model may start from itself: {' from '.join(chain)}")
            own, others = (self.seeds_of(each.split("/")[0]) for each in (place, source))
            if len(own) > len(others):
                raise ValueError(
                    f"{where}: {source} runs {len(others)} seeds, and {place} needs {len(own)} (first_seeds)"
                )
        return self

    def methods_of(self, task: str, model: str) -> dict[str, BaseModel]:
        """Returns the methods that run on a model, by label, in the order of the study."""
        chosen = self.only.get(task, {}).get(model, self.methods)
        return {label: method for label, method in self.methods.items() if label in chosen}

    def seeds_of(self, task: str) -> list[int]:
        """Returns the seeds that a task runs."""
        return self.seeds[: self.first_seeds.get(task)]

    def budgets_of(self, method: BaseModel) -> list[str]:
        """Returns the budgets at which a method runs: 1.00 for dense, N/M for a pattern N:M, else all of the study."""
        if method.algorithm == "dense":
            return [DENSE_BUDGET]
        pattern = getattr(method, "pattern", None)
        if pattern is None:
            return self.budgets
        kept, size = map(int, pattern.split(":"))
        return [budget for budget in self.budgets if Decimal(budget) * size == kept]

    def sparsity_of(self, method: BaseModel) -> Sparsity:
        """Returns the settings of the sparse phase of a method: those of the study, except where it has its own."""
        own = getattr(method, "sparsity", None)
        return self.sparsity if own is None else self.sparsity.model_copy(update=own.given())

    def latest_freeze(self, task: str) -> dict[str, Any]:
        """Returns warm-up epochs and freeze of the runs of a task whose masks are fixed last.

        Weights of all its runs are selected among the epochs after it, so that a method has no more of them to choose
        from than another.
        """
        settings = self.task_settings()[task]
        freezes = {
            (settings.training_of(model).warm_up_epochs, self.sparsity_of(method).freeze)
            for model in settings.models
            for method in self.methods_of(task, model).values()
        }
        warm_up, freeze = max(freezes, key=lambda each: each[0] + each[1] * (settings.training.epochs - each[0]))
        return {"warm_up_epochs": warm_up, "freeze": freeze}

    def task_settings(self) -> dict[str, BaseModel]:
        """Returns the settings of each task of the study, by name."""
        return {name: getattr(self.tasks, name) for name in sorted(self.tasks.model_fields_set)}


def sources(study: Study) -> dict[tuple[str, str], tuple[str, str]]:
    """Returns the model that each model starts from, both as task and label, for those that start from a run."""
    found = {
        (task, label): getattr(getattr(model, "weights", None), "source", None)
        for task, settings in study.task_settings().items()
        for label, model in settings.models.items()
    }
    return {place: source for place, source in found.items() if source is not None}


def read_knobs(config: Mapping[str, Any]) -> Knobs:
    """Validates the options from config.yaml and --config; raises ConfigError."""
    texts = {
        str(key): value if isinstance(value, dict | list | None) or key in FOLDERS else str(value)
        for key, value in config.items()
    }
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


def read_chosen_study(knobs: Knobs, folder: Path) -> Study:
    """Returns the study that is named by `knobs`, restricted to the tasks that it names; raises ConfigError."""
    return of_tasks(read_study(knobs.study, folder), knobs.tasks)


def of_tasks(study: Study, names: str) -> Study:
    """Returns the study with only the tasks of the knob `tasks`; raises ConfigError if it has not all of them."""
    if names == "all":
        return study
    known, chosen, where = study.task_settings(), set(names.split(",")), "config.yaml or --config: tasks"
    if unknown := sorted(chosen.difference(known)):
        raise ConfigError(f"{where}: {unknown[0]} is not in the study, allowed: all, {', '.join(known)}")
    for (task, label), source in sources(study).items():
        if task in chosen and source[0] not in chosen:
            starts = f"{task}/{label} starts from {'/'.join(source)}"
            raise ConfigError(f"{where}: {starts}, so {source[0]} must be named too")
    tasks = type(study.tasks).model_construct(chosen, **{name: known[name] for name in chosen})
    by_task = {
        key: {task: value for task, value in getattr(study, key).items() if task in chosen}
        for key in ("only", "first_seeds")
    }
    return study.model_copy(update={"tasks": tasks} | by_task)


def read_data(task: str, given: Mapping[str, Any], source: str) -> BaseModel:
    """Validates the `data` of a task's settings that are given apart from a study; raises ConfigError."""
    field = settings_type(task).model_fields["data"]
    model = create_model("GivenData", data=(field.annotation, field))
    try:
        return model.model_validate_json(json.dumps({"data": given}), strict=True).data
    except ValidationError as error:
        raise ConfigError(_describe(source, error, model)) from None


def packs_with_path(task: str) -> dict[str, Collection[str]]:
    """Returns the keys of the settings of each pack of a task that may be at a path of this machine, by its name."""
    kinds = get_args(settings_type(task).model_fields["data"].annotation)
    return {
        get_args(kind.model_fields["pack"].annotation)[0]: kind.model_fields
        for kind in kinds
        if "path" in kind.model_fields
    }


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
        per_epoch = settings.steps_per_epoch()
        for model in settings.models if per_epoch is not None else ():
            steps = settings.training_of(model).sparse_epochs * per_epoch
            for label, method in study.methods_of(task, model).items():
                own = getattr(method, "sparsity", None) is not None
                try:
                    Schedule(steps, Decimal(min(study.budgets)), **study.sparsity_of(method).schedule())
                except ValueError as error:
                    keys = f"methods.{label}.sparsity" if own else "sparsity"
                    if settings.models[model].warm_up_epochs is not None:
                        keys += f", tasks.{task}.models.{model}.warm_up_epochs"
                    raise ConfigError(f"{file}: {keys} and tasks.{task}.training: {error}") from None


def check_sources(study: Study, file: Path) -> None:
    """Raises ConfigError if data that the study `file` expects at a path of this machine do not exist."""
    for task, settings in study.task_settings().items():
        path = getattr(settings.data, "path", None)
        if path is not None and not Path(path).exists():
            raise ConfigError(f"{file}: tasks.{task}.data.path: there is no folder or archive {path}")
        for label, model in settings.models.items():
            path = getattr(getattr(model, "weights", None), "path", None)
            if path is not None and not Path(path).is_file():
                raise ConfigError(f"{file}: tasks.{task}.models.{label}.weights.path: there is no file {path}")


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
        options = [option["$ref"] for option in node.get("oneOf", ()) if "$ref" in option]
        by_class = {option.rsplit("/", 1)[1]: option for option in options}
        mapping = node.get("discriminator", {}).get("mapping", by_class)
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
