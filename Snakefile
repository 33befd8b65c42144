# The study as one DAG: data -> warm-up -> train and score -> summary -> figures and tables.
# A study is a file in studies/. The options that a user may change are in config.yaml.
import os


configfile: "config.yaml"


# Built from envs/bbnet.def. Used only with --software-deployment-method apptainer.
container: "envs/bbnet.sif"


include: "rules/common.smk"


shell.prefix(WORKFLOW.shell_prefix())
# The profile limits `gpu` to the number of GPUs of this machine, each of which takes `gpu_slots` jobs.
if "gpu" in workflow.global_resources:
    workflow.global_resources["gpu"] = workflow.global_resources["gpu"].value * KNOBS.gpu_slots


pathvars:
    data=KNOBS.data_dir,
    results=WORKFLOW.results,


wildcard_constraints:
    task="[a-z][a-z0-9_]*",
    model="[a-z][a-z0-9_]*",
    method="[a-z][a-z0-9_]*",
    budget=r"\d\.\d\d",
    seed=r"\d+",


rule all:
    default_target: True
    input:
        SUMMARY_FILES,
        FIGURE_FILES,
        TABLE_FILES,
        "<results>/report.html",


rule figures:
    input:
        FIGURE_FILES,


rule tables:
    input:
        TABLE_FILES,


if KNOBS.results_from == "runs":

    include: "rules/summary.smk"


if KNOBS.results_from == "runs" and KNOBS.cells == "all":

    include: "rules/produce.smk"


include: "rules/figures.smk"
include: "rules/tables.smk"
include: "rules/diagnostics.smk"


# Forced by the user, which does not include what Snakemake repeats because it was interrupted: such a training resumes.
# What starts from a forced warm-up, or prunes a forced dense run, is forced as well.
onstart:
    if workflow.is_main_process:
        settings = workflow.dag_settings
        forced = {*map(str, settings.forcerun), *(map(str, settings.targets) if settings.forcetargets else ())}
        forget_trainings(
            os.path.dirname(job.output[0])
            for job in workflow.dag.needrun_jobs()
            if job.rule.name in ("train", "warm_up")
            and (
                settings.forceall
                or forced & {"warm_up", job.rule.name, *map(str, job.output), str(job.input.get("warm_start"))}
                or forced & {"train" if job.input.get("source") else "", *map(str, job.input.get("source") or ())}
                or forced & {*map(str, job.input.get("dense") or ())}
            )
        )


onsuccess:
    if KNOBS.cells == "done":
        WORKFLOW.remove_outdated()
    if workflow.touch and KNOBS.results_from == "runs" and KNOBS.cells == "all":
        WORKFLOW.accept_no_partial_summary()
    print(WORKFLOW.success_message(touched=workflow.touch))


onerror:
    print(WORKFLOW.failure_message(config))
