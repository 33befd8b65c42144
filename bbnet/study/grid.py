"""The grid of all runs of a study."""

from dataclasses import dataclass

from pydantic import BaseModel

from bbnet.study.config import Study, sources


@dataclass(frozen=True)
class Run:
    """A run: (task, model, method, budget, seed). `side` is that of its slabs, "none" for a method without slabs."""

    task: str
    model: str
    method: str
    side: str
    budget: str
    seed: int

    @property
    def folder(self) -> str:
        """The run's folder below `runs/`."""
        return f"{self.task}/{self.model}/{self.method}/b{self.budget}/s{self.seed}"


def runs(study: Study) -> list[Run]:
    """Returns every run of the study. Dense runs once per seed, at budget 1.00; a pattern runs at its own budget."""
    return [
        Run(task, model, label, getattr(method, "side", "none"), budget, seed)
        for task, settings in study.task_settings().items()
        for model in settings.models
        for label, method in study.methods_of(task, model).items()
        for budget in study.budgets_of(method)
        for seed in study.seeds_of(task)
    ]


def has_binary_weights(study: Study) -> bool:
    """Whether the weights of a method of the study are binary."""
    return any(method.weights != "float" for method in study.methods.values())


def is_one_shot(method: BaseModel) -> bool:
    """Whether a method of a study prunes the dense run of the same seed, instead of training."""
    return getattr(method, "one_shot", None) is not None


def pruned_run(study: Study, run: Run) -> Run | None:
    """Returns the dense run that a run of a one-shot method prunes; None for other methods."""
    return dense_run(study, run.task, run.model, run.seed) if is_one_shot(study.methods[run.method]) else None


def beside(study: Study) -> dict[str, dict[str, str]]:
    """Returns, by task and model, one more model with which it is compared."""
    return {task: getattr(settings, "beside", {}) for task, settings in study.task_settings().items()}


def baselines(study: Study) -> dict[str, str]:
    """Returns the baseline of each task whose models are compared: those that name one and have another model.

    The settings of a user's own task may have no such key.
    """
    return {
        task: settings.baseline
        for task, settings in study.task_settings().items()
        if getattr(settings, "baseline", None) is not None and len(settings.models) > 1
    }


def panel_runs(study: Study, task: str, model: str) -> list[Run]:
    """Returns the runs whose test cases are shown beside dense: Budgeted Broadcast at every budget, first seed."""
    return [
        run
        for run in runs(study)
        if (run.task, run.model, run.seed) == (task, model, study.seeds[0])
        and study.methods[run.method].algorithm == "budgeted_broadcast"
    ]


def diagnosed_runs(study: Study) -> list[Run]:
    """Returns the runs that `diagnostics` of the study selects.

    By default they are those of the first seed and the smallest budget, of every method. A method that runs at none of
    the budgets, such as dense or a pattern, is taken at the smallest of its own. One-shot methods, which do not train,
    are left out.
    """
    asked = study.diagnostics
    seeds, budgets = asked.seeds or study.seeds[:1], asked.budgets or [min(study.budgets)]
    wanted = {}
    for label in (label for label in asked.methods or study.methods if not is_one_shot(study.methods[label])):
        own = study.budgets_of(study.methods[label])
        wanted[label] = [budget for budget in own if budget in budgets] or [min(own)]
    return [run for run in runs(study) if run.seed in seeds and run.budget in wanted.get(run.method, ())]


def source_run(study: Study, task: str, model: str, seed: int) -> Run | None:
    """Returns the dense run, of the same seed, whose weights a model starts from, or None if it names no run."""
    source = sources(study).get((task, model))
    return None if source is None else dense_run(study, *source, seed)


def dense_run(study: Study, task: str, model: str, seed: int) -> Run:
    """Returns the dense run that other runs of the seed are compared with."""
    wanted = (task, model, "dense", seed)
    return next(run for run in runs(study) if (run.task, run.model, run.method, run.seed) == wanted)
