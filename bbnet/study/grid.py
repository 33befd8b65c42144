"""The grid of all runs of a study."""

from dataclasses import dataclass

from bbnet.study.config import Study


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
        for label, method in study.methods.items()
        for budget in study.budgets_of(method)
        for seed in study.seeds
    ]


def panel_runs(study: Study, task: str, model: str) -> list[Run]:
    """Returns the runs whose test cases are shown beside dense: Budgeted Broadcast at every budget, first seed."""
    return [
        run
        for run in runs(study)
        if (run.task, run.model, run.seed) == (task, model, study.seeds[0])
        and study.methods[run.method].algorithm == "budgeted_broadcast"
    ]


def dense_run(study: Study, task: str, model: str, seed: int) -> Run:
    """Returns the dense run that other runs of the seed are compared with."""
    wanted = (task, model, "dense", seed)
    return next(run for run in runs(study) if (run.task, run.model, run.method, run.seed) == wanted)
