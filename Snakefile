# The study as one DAG: data -> warm-up -> train -> evaluate -> summary -> figures and tables.
# A study is a file of studies/; what a user may change is in config.yaml.
import os
import shlex
import sys


configfile: "config.yaml"


# Built from envs/bbnet.def; used with --software-deployment-method apptainer only.
container: "envs/bbnet.sif"


include: "rules/common.smk"


# Jobs find this interpreter's environment first, and the container's own where there is one; `live` reruns none of them.
shell.prefix(
    f"export PATH={shlex.quote(os.path.dirname(sys.executable))}:$PATH"
    f" BBNET_LIVE={KNOBS.live} BBNET_LIVE_DIR={shlex.quote(RESULTS)}/live; "
)


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


onsuccess:
    if KNOBS.cells == "done":
        remove_outdated()
    print(success_message())


onerror:
    print(failure_message())
