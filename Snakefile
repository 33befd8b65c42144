# The study as one DAG: data -> warm-up -> train -> evaluate -> summary -> figures and tables.
# A study is a file of studies/; what a user may change is in config.yaml.
import glob
import os
import shlex
import sys


configfile: "config.yaml"


# Built from envs/bbnet.def; used with --software-deployment-method apptainer only.
container: "envs/bbnet.sif"


include: "rules/common.smk"


# What jobs are told besides: no number depends on it, so that no change of it runs one again. They end with Snakemake.
TOLD = {
    "BBNET_LIVE": KNOBS.live,
    "BBNET_LIVE_DIR": f"{RESULTS}/live",
    "BBNET_RESIDENT": KNOBS.resident,
    "BBNET_GPU_SLOTS": KNOBS.gpu_slots,
    "BBNET_CHECKPOINT_MINUTES": KNOBS.checkpoint_minutes,
    "BBNET_MADE": f"{glob.escape(KNOBS.data_dir)}/*/*.json\n{glob.escape(RESULTS)}/**/*",
}
# This interpreter's environment comes first, but for a container's own.
shell.prefix(
    '[ -n "${{APPTAINER_CONTAINER:-${{SINGULARITY_CONTAINER:-}}}}" ] || '
    f"export PATH={shlex.quote(os.path.dirname(sys.executable))}:$PATH; "
    f"export BBNET_PARENT=$PPID {' '.join(f'{name}={shlex.quote(str(value))}' for name, value in TOLD.items())}; "
)
# The profile limits `gpu` to the GPUs of this machine.
if "gpu" in workflow.global_resources:
    workflow.global_resources["gpu"] = workflow.global_resources["gpu"].value * KNOBS.gpu_slots


pathvars:
    data=KNOBS.data_dir,
    results=RESULTS,


wildcard_constraints:
    task="[a-z][a-z0-9_]*",
    model="[a-z][a-z0-9_]*",
    method="[a-z][a-z0-9_]*",
    budget=r"\d\.\d\d",
    seed=r"\d+",


rule all:
    default_target: True
    input:
        SUMMARY,
        FIGURES,
        TABLES,
        "<results>/report.html",


rule figures:
    input:
        FIGURES,


rule tables:
    input:
        TABLES,


if KNOBS.results_from == "runs":

    include: "rules/summary.smk"


if KNOBS.results_from == "runs" and KNOBS.cells == "all":

    include: "rules/produce.smk"


include: "rules/figures.smk"
include: "rules/tables.smk"


onstart:
    if workflow.is_main_process:
        discard_forced_states(workflow.dag_settings)


onsuccess:
    if KNOBS.cells == "done":
        remove_outdated()
    print(success_message())


onerror:
    print(failure_message())
