# From runs to the summary, the one source of every figure and table.
rule collect:
    input:
        expand("<results>/runs/{folder}/{file}", folder=WORKFLOW.taken, file=COLLECTED),
    output:
        runs="<results>/summary/runs.csv",
        per_item="<results>/summary/items.parquet",
        units="<results>/summary/units.parquet",
        slabs="<results>/summary/slabs.csv",
        history="<results>/summary/history.parquet",
        refreshes="<results>/summary/refreshes.parquet",
        study="<results>/summary/study.json",
        data="<results>/summary/data.json",
        grid="<results>/summary/grid.csv",
        timing="<results>/summary/timing.csv",
        weights=[f"<results>/summary/{file}" for file in WORKFLOW.collected_weights],
    log:
        "<results>/logs/collect.log",
    localrule: True
    params:
        grid=fingerprint(
            {
                "grid": [RECIPES.run_fingerprint(run) for run in WORKFLOW.runs.values()],
                "cells": KNOBS.cells,
                "baselines": baselines(STUDY),
            }
        ),
        code=[recipe.task_code("collect", task) for task in WORKFLOW.tasks],
        knobs=canonical_json(KNOBS.model_dump(exclude={"device"})),
        results=subpath(output.runs, ancestor=2),
        summary=subpath(output.runs, parent=True),
    message:
        f"collect {len(WORKFLOW.taken)} of {len(WORKFLOW.runs)} runs"
    shell:
        "exec python workflow_scripts/collect.py --knobs {params.knobs:q} --results {params.results:q}"
        " --summary {params.summary:q} --log {log:q}"


rule compare:
    input:
        runs="<results>/summary/runs.csv",
        per_item="<results>/summary/items.parquet",
        units="<results>/summary/units.parquet",
        slabs="<results>/summary/slabs.csv",
        study="<results>/summary/study.json",
    output:
        cells="<results>/summary/cells.csv",
        contrasts="<results>/summary/contrasts.csv",
        claims="<results>/summary/claims.csv",
        models=[f"<results>/summary/{file}" for file in WORKFLOW.contrasted_models],
    log:
        "<results>/logs/compare.log",
    localrule: True
    threads: 2
    params:
        code=[recipe.task_code("compare", task) for task in WORKFLOW.tasks],
        summary=subpath(output.cells, parent=True),
    message:
        "compare: cells, contrasts and claims"
    shell:
        "exec python workflow_scripts/compare.py --summary {params.summary:q} --log {log:q}"


rule panels:
    input:
        panel_inputs,
        prepared=prepared_index,
    output:
        panels="<results>/summary/panels/{task}.npz",
    log:
        "<results>/logs/panels-{task}.log",
    localrule: True
    params:
        shown=lambda wildcards: canonical_json(WORKFLOW.shown_in_panels(wildcards.task)),
        code=lambda wildcards: recipe.task_code("panels", wildcards.task),
        results=subpath(output.panels, ancestor=3),
    message:
        "panels {wildcards.task}: selected test cases beside dense or the baseline"
    shell:
        "exec python workflow_scripts/panels.py --task {wildcards.task:q} --shown {params.shown:q} --results {params.results:q}"
        " --prepared {input.prepared:q} --panels {output.panels:q} --log {log:q}"
