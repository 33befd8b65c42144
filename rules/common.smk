# The study, its runs, and the names of what the workflow makes. No rules here.
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path

import yaml
from snakemake.exceptions import WorkflowError

from bbnet.sparsity.schedule import Schedule
from bbnet.study import grid, recipe
from bbnet.study.config import ConfigError, check_sources, check_writable, read_knobs, read_study
from bbnet.study.discover import has_buckets, has_pairs, has_panels
from bbnet.study.machine import gpu_count
from bbnet.study.record import canonical_json, fingerprint, run_status


def check_schedules(study, file):
    """Steps are known before any job where the data are made here."""
    for task, settings in study.task_settings().items():
        if settings.steps_per_epoch() is None:
            continue
        steps = settings.training.sparse_epochs * settings.steps_per_epoch()
        try:
            Schedule(steps, Decimal(min(study.budgets)), **study.sparsity.schedule())
        except ValueError as error:
            raise ConfigError(f"{file}: sparsity and tasks.{task}.training: {error}") from None


try:
    KNOBS = read_knobs(config)
    STUDY = read_study(KNOBS.study, Path("studies"))
    STUDY_FILE = Path("studies", f"{KNOBS.study}.yaml")
    if KNOBS.results_from == "runs":
        check_sources(STUDY, STUDY_FILE)
        check_schedules(STUDY, STUDY_FILE)
        check_writable("data_dir", Path(KNOBS.data_dir))
        check_writable("results_dir", Path(KNOBS.results_dir))
    RECIPES = recipe.Recipes(STUDY, KNOBS)
    # On a cluster the profile says what a job needs; this machine may be its login node.
    GPUS_PER_JOB = int(KNOBS.device == "cuda" or (KNOBS.device == "auto" and gpu_count() > 0))
except ConfigError as error:
    raise WorkflowError(str(error)) from None

RESULTS = f"{KNOBS.results_dir}/{KNOBS.study}"
if KNOBS.results_from == "reference":
    RESULTS = f"results/reference/{KNOBS.study}"
    if not Path(RESULTS, "summary", "cells.csv").is_file():
        raise WorkflowError(f"results_from=reference: no summary of study {KNOBS.study} in {RESULTS}")

RUNS = {run.folder: run for run in grid.runs(STUDY)}
TAKE_ALL = KNOBS.cells == "all" or KNOBS.results_from == "reference"
TAKEN = [
    folder
    for folder, run in RUNS.items()
    if TAKE_ALL or run_status(Path(RESULTS, "runs", folder), RECIPES.run_fingerprint(run))[0] == "done"
]
if not TAKEN:
    raise WorkflowError(f"cells=done: no run of study {KNOBS.study} in {RESULTS} is done")
MODELS = sorted({(RUNS[folder].task, RUNS[folder].model) for folder in TAKEN})
TASKS = sorted({task for task, _ in MODELS})
PACKS = {RECIPES.raw_key(task, pack): RECIPES.fetch(task, pack) for task in TASKS for pack in RECIPES.packs(task)}

COLLECTED = [
    "record.json",
    "history.csv",
    "refreshes.csv",
    "metrics.json",
    "cost.json",
    "units.csv",
    "codes.csv",
    "items.parquet",
]
SUMMARY = [
    f"<results>/summary/{file}"
    for file in (
        "runs.csv",
        "cells.csv",
        "contrasts.csv",
        "claims.csv",
        "slabs.csv",
        "grid.csv",
        "study.json",
        "timing.csv",
        "items.parquet",
        "units.parquet",
        "history.parquet",
        "refreshes.parquet",
    )
]


def run_of(wildcards):
    return RUNS[f"{wildcards.task}/{wildcards.model}/{wildcards.method}/b{wildcards.budget}/s{wildcards.seed}"]


def buckets_of(wildcards):
    return f"<results>/buckets/{wildcards.task}.json" if has_buckets(wildcards.task) else []


def warm_up_recipe(wildcards):
    return RECIPES.warm_up(wildcards.task, wildcards.model, int(wildcards.seed))


def raw_manifest(wildcards):
    return f"<data>/raw/{RECIPES.raw_key(wildcards.task, RECIPES.tasks[wildcards.task].data)}.json"


def weights_manifest(wildcards):
    weights = getattr(RECIPES.tasks[wildcards.task].models[wildcards.model], "weights", None)
    return f"<data>/raw/{RECIPES.raw_key(wildcards.task, weights)}.json" if weights else []


def prepared_index(wildcards):
    return f"<data>/prepared/{RECIPES.prepared_key(wildcards.task)}.json"


def panel_folders(task, model):
    """Runs shown beside dense, dense first; none if dense is not there."""
    dense = grid.dense_run(STUDY, task, model, STUDY.seeds[0]).folder
    shown = [run.folder for run in grid.panel_runs(STUDY, task, model) if run.folder in TAKEN]
    return [dense, *shown] if has_panels(task) and shown and dense in TAKEN else []


def panel_folders_by_model(task):
    return {model: folders for other, model in MODELS if other == task and (folders := panel_folders(task, model))}


def panel_inputs(task):
    shown = [folder for folders in panel_folders_by_model(task).values() for folder in folders]
    return [f"<results>/runs/{folder}/{file}" for folder in shown for file in ("predictions.npz", "items.parquet")]


def figures_of(task, model):
    """The Pareto plot, contrasts, buckets, claims and panels compare with dense: without it there are none."""
    taken = [RUNS[folder] for folder in TAKEN if folder.startswith(f"{task}/{model}/")]
    panels = [RUNS[folder] for folder in panel_folders(task, model)[1:]]
    dense_seeds = {run.seed for run in taken if run.method == "dense"}
    beside_dense = [run for run in taken if run.method != "dense" and run.seed in dense_seeds]
    pareto = ["pareto"] if dense_seeds else []
    compared = ["contrasts", "claims"] if beside_dense else []
    by_bucket = ["by_bucket"] if beside_dense and has_buckets(task) else []
    roc = ["roc"] if has_pairs(task) else []
    always = ["balance", "churn", "learning_curves"]
    return [*pareto, *compared, *by_bucket, *roc, *always, *(f"panels-{run.method}-b{run.budget}" for run in panels)]


STUDY_WIDE = (None, None)
FIGURES_OF = {STUDY_WIDE: ["coverage"]} | {(task, model): figures_of(task, model) for task, model in MODELS}
TABLES_OF = {STUDY_WIDE: ["methods"]} | {model: ["results", "contrasts_table", "costs"] for model in MODELS}


def prefix(task, model):
    """What the names of figures and tables of a task and model begin with."""
    return f"{task}-{model}-" if task else ""


FIGURES = [
    f"<results>/figures/{prefix(*of)}{figure}.{extension}"
    for of, figures in FIGURES_OF.items()
    for figure in figures
    for extension in ("pdf", "png", "csv")
]
TABLES = [
    f"<results>/tables/{prefix(*of)}{table}.{extension}"
    for of, tables in TABLES_OF.items()
    for table in tables
    for extension in ("csv", "md", "tex")
]
PANELS = {
    of: [f"<results>/summary/panels/{of[0]}.npz"] if any(figure.startswith("panels-") for figure in figures) else []
    for of, figures in FIGURES_OF.items()
}


def caption(name):
    """Of a figure or table in the report; panels of all methods share one."""
    return f"../report/{name.split('-')[0]}.rst"


def remove_outdated():
    """Figures and tables of an earlier call that the cells taken now do not allow."""
    wanted = {Path(path).name for path in [*FIGURES, *TABLES]}
    for path in [*Path(RESULTS, "figures").glob("*"), *Path(RESULTS, "tables").glob("*")]:
        if path.name not in wanted:
            path.unlink()


def discard_forced_states(settings):
    """Runs that are forced train from the start: all (-F), those of a rule (-R train), those of a file (-R, -f)."""
    rooms = {"train": "runs/*/*/*/*/*", "warm_up": "warm_up/*/*/*"}
    forced = {*settings.forcerun, *(settings.targets if settings.forcetargets else ())}
    for name in map(str, rooms if settings.forceall else forced):
        states = Path(RESULTS).glob(f"{rooms[name]}/state.pt") if name in rooms else [Path(name).with_name("state.pt")]
        for state in states:
            state.unlink(missing_ok=True)


def success_message():
    if not Path(RESULTS, "figures").is_dir():
        return f"Data are in {KNOBS.data_dir}/."
    return f"Look at {RESULTS}/report.html, {RESULTS}/figures/ and {RESULTS}/tables/."


def changed_knobs():
    """What of config.yaml this call was told otherwise; the study in any case."""
    written = yaml.safe_load(Path("config.yaml").read_text())
    told = {key: value for key, value in config.items() if key != "cells" and str(value) != str(written.get(key))}
    return [f"{key}={value}" for key, value in ({"study": KNOBS.study} | told).items()]


def failure_message():
    failed = [folder for folder in RUNS if Path(RESULTS, "runs", folder, "error.json").is_file()]
    if not failed:
        return (
            "The study is not complete. If it was stopped, the same command goes on; else the first error above says why, "
            "and the log named beside it says where."
        )
    return (
        f"{len(failed)} of {len(RUNS)} cells failed, for example {failed[0]} "
        f"({RESULTS}/runs/{failed[0]}/error.json says why). The same command tries them again. "
        f"To go on without them: snakemake figures tables --cores all --config {' '.join(changed_knobs())} cells=done"
    )
