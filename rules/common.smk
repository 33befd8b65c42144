# The study that the rules run on, and the functions of wildcards that they share. What a study is made of, and what is
# made from it, is decided and tested in bbnet/study.
from dataclasses import asdict

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

from bbnet.study import recipe
from bbnet.study.config import ConfigError
from bbnet.study.discover import has_buckets
from bbnet.study.grid import baselines, pruned_run, source_run
from bbnet.study.record import canonical_json, fingerprint
from bbnet.study.workflow import (
    COLLECTED,
    DIAGNOSED,
    DIAGNOSTIC_FIGURES,
    DIAGNOSTIC_TABLES,
    DIAGNOSTICS,
    SUMMARY,
    forget_trainings,
    open_workflow,
    prefix,
)

try:
    WORKFLOW = open_workflow(config)
except ConfigError as error:
    raise WorkflowError(str(error)) from None

if WORKFLOW.remark and workflow.is_main_process:
    logger.warning(WORKFLOW.remark)

os.environ |= WORKFLOW.environment_of_profiles()
KNOBS, STUDY, RECIPES = WORKFLOW.knobs, WORKFLOW.study, WORKFLOW.recipes
SUMMARY_FILES = [
    f"<results>/summary/{file}" for file in (*SUMMARY, *WORKFLOW.collected_weights, *WORKFLOW.contrasted_models)
]
FIGURE_FILES = [f"<results>/{file}" for file in WORKFLOW.figure_files]
TABLE_FILES = [f"<results>/{file}" for file in WORKFLOW.table_files]


def run_of(wildcards):
    return WORKFLOW.runs[f"{wildcards.task}/{wildcards.model}/{wildcards.method}/b{wildcards.budget}/s{wildcards.seed}"]


def trained_files_of(run):
    return [f"<results>/runs/{run.folder}/{file}" for file in ("record.json", "model.safetensors")] if run else []


def pruned_files(wildcards):
    return trained_files_of(pruned_run(STUDY, run_of(wildcards)))


def buckets_of(wildcards):
    return f"<results>/buckets/{wildcards.task}.json" if has_buckets(wildcards.task) else []


def warm_up_recipe(wildcards):
    return RECIPES.warm_up(wildcards.task, wildcards.model, int(wildcards.seed))


def raw_manifest(wildcards):
    return f"<data>/raw/{RECIPES.raw_key(wildcards.task, RECIPES.tasks[wildcards.task].data)}.json"


def weights_manifest(wildcards):
    weights = getattr(RECIPES.tasks[wildcards.task].models[wildcards.model], "weights", None)
    return f"<data>/raw/{RECIPES.raw_key(wildcards.task, weights)}.json" if hasattr(weights, "pack") else []


def source_files(wildcards):
    return trained_files_of(source_run(STUDY, wildcards.task, wildcards.model, int(wildcards.seed)))


def prepared_index(wildcards):
    return f"<data>/prepared/{RECIPES.prepared_key(wildcards.task)}.json"


def panel_inputs(wildcards):
    pairs = [pair for of_model in WORKFLOW.shown_in_panels(wildcards.task).values() for pair in of_model]
    shown = dict.fromkeys(folder for pair in pairs for folder in pair)
    return [f"<results>/runs/{folder}/{file}" for folder in shown for file in ("predictions.npz", "items.parquet")]


def part_arguments(task, model):
    """Options that say to a script of figures or tables which part of the study to show."""
    return [*(["--task", task] if task else []), *(["--model", model] if model else [])]


def caption(name):
    """Caption of a figure or table in the report. The panels of all methods share one."""
    return f"../report/{name.split('-')[0]}.rst"
