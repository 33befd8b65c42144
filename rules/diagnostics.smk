# What goes on inside the runs that `diagnostics` of the study selects. Not part of `all`: only `snakemake diagnostics` and
# the names of these files make them. Runs are only read.
if KNOBS.results_from == "runs":

    rule diagnose:
        input:
            prepared=prepared_index,
            warm_start="<results>/warm_up/{task}/{model}/s{seed}/checkpoint.pt",
            trained=lambda wildcards: trained_files_of(run_of(wildcards)),
            dense=lambda wildcards: trained_files_of(WORKFLOW.compared_with(run_of(wildcards))),
        output:
            [
                f"<results>/runs/{{task}}/{{model}}/{{method}}/b{{budget}}/s{{seed}}/diagnostics/{file}"
                for file in DIAGNOSED
            ],
        log:
            "<results>/logs/diagnose/{task}-{model}-{method}-b{budget}-s{seed}.log",
        threads: STUDY.cpu_threads
        resources:
            gpu=WORKFLOW.gpus_per_device,
        params:
            diagnostics=lambda wildcards: canonical_json(
                RECIPES.diagnose(run_of(wildcards), WORKFLOW.compared_with(run_of(wildcards)))
            ),
            dense=lambda wildcards, input: os.path.dirname(input.dense[0]) if input.dense else [],
            folder=subpath(output[0], ancestor=2),
        message:
            "diagnose {wildcards.task} {wildcards.model} {wildcards.method}, budget {wildcards.budget}, seed {wildcards.seed}"
        shell:
            "exec python workflow_scripts/diagnose.py --diagnostics {params.diagnostics:q}"
            " --prepared {input.prepared:q} --warm-start {input.warm_start:q} --dense {params.dense:q}"
            " --folder {params.folder:q} --log {log:q}"

    rule collect_diagnostics:
        input:
            [f"<results>/runs/{run.folder}/diagnostics/{file}" for run in WORKFLOW.diagnosed for file in DIAGNOSED],
        output:
            [f"<results>/summary/diagnostics/{file}" for file in DIAGNOSTICS],
        log:
            "<results>/logs/collect_diagnostics.log",
        localrule: True
        params:
            runs=canonical_json([asdict(run) for run in WORKFLOW.diagnosed]),
            code=recipe.summary_code("collect_diagnostics"),
            results=subpath(output[0], ancestor=3),
        message:
            f"collect the diagnostics of {len(WORKFLOW.diagnosed)} runs"
        shell:
            "exec python workflow_scripts/collect_diagnostics.py --runs {params.runs:q} --results {params.results:q} --log {log:q}"


for task, model in WORKFLOW.diagnosed_parts:

    rule:
        name:
            f"figures_{task}_{model}_diagnostics"
        input:
            SUMMARY_FILES,
            [f"<results>/summary/diagnostics/{file}" for file in DIAGNOSTICS],
        output:
            [f"<results>/figures/{prefix(task, model)}{figure}.pdf" for figure in DIAGNOSTIC_FIGURES],
            [f"<results>/figures/{prefix(task, model)}{figure}.csv" for figure in DIAGNOSTIC_FIGURES],
            [
                report(
                    f"<results>/figures/{prefix(task, model)}{figure}.png",
                    caption=caption(figure),
                    category=task,
                    subcategory="diagnostics",
                    labels={"model": model, "figure": figure},
                )
                for figure in DIAGNOSTIC_FIGURES
            ],
        log:
            f"<results>/logs/figures-{prefix(task, model)}diagnostics.log",
        localrule: True
        params:
            code=recipe.task_code("figures", task),
            part=part_arguments(task, model),
            results=subpath(output[0], ancestor=2),
        message:
            f"figures of {task} {model}: diagnostics"
        shell:
            f"exec python workflow_scripts/figures.py --figures {' '.join(DIAGNOSTIC_FIGURES)}"
            " --results {params.results:q} {params.part:q} --log {log:q}"

    rule:
        name:
            f"tables_{task}_{model}_diagnostics"
        input:
            SUMMARY_FILES,
            [f"<results>/summary/diagnostics/{file}" for file in DIAGNOSTICS],
        output:
            [f"<results>/tables/{prefix(task, model)}{table}.csv" for table in DIAGNOSTIC_TABLES],
            [f"<results>/tables/{prefix(task, model)}{table}.tex" for table in DIAGNOSTIC_TABLES],
            [
                report(
                    f"<results>/tables/{prefix(task, model)}{table}.md",
                    caption=caption(table),
                    category=task,
                    subcategory="diagnostics",
                    labels={"model": model, "table": table},
                )
                for table in DIAGNOSTIC_TABLES
            ],
        log:
            f"<results>/logs/tables-{prefix(task, model)}diagnostics.log",
        localrule: True
        params:
            code=recipe.task_code("tables", task),
            part=part_arguments(task, model),
            results=subpath(output[0], ancestor=2),
        message:
            f"tables of {task} {model}: diagnostics"
        shell:
            f"exec python workflow_scripts/tables.py --tables {' '.join(DIAGNOSTIC_TABLES)}"
            " --results {params.results:q} {params.part:q} --log {log:q}"


# Runs whenever it is asked for, and writes the page again, which `all` makes without these figures where they do not
# exist. The page has them no input, since `all` would then make them anew.
rule diagnostics:
    input:
        [f"<results>/{file}" for file in WORKFLOW.diagnostic_files],
        page="<results>/report.html",
    log:
        "<results>/logs/diagnostics.log",
    localrule: True
    params:
        results=subpath(input.page, parent=True),
        strict=canonical_json(STUDY.diagnostics.strict),
    message:
        "diagnostics: verdicts, and the page with their figures"
    shell:
        "exec python workflow_scripts/diagnostics.py --results {params.results:q} --page {input.page:q}"
        " --strict {params.strict:q} --log {log:q}"
