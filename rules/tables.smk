# Tables, from the summary alone, and the page that shows all tables and figures.
for part, tables in WORKFLOW.tables.items():
    task, model = part

    rule:
        name:
            "_".join(("tables", *filter(None, part))) if task else "tables_study"
        input:
            SUMMARY_FILES,
        output:
            [f"<results>/tables/{prefix(*part)}{table}.csv" for table in tables],
            [f"<results>/tables/{prefix(*part)}{table}.tex" for table in tables],
            [
                report(
                    f"<results>/tables/{prefix(*part)}{table}.md",
                    caption=caption(table),
                    category=task or "study",
                    subcategory="tables",
                    labels={"model": model or "all", "table": table},
                )
                for table in tables
            ],
        log:
            f"<results>/logs/tables-{prefix(*part)}.log",
        localrule: True
        params:
            code=recipe.task_code("tables", task) if task else recipe.summary_code("tables"),
            tables=tables,
            part=part_arguments(task, model),
            results=subpath(output[0], ancestor=2),
        message:
            " ".join(("tables of", *filter(None, part))) if task else "tables of the study"
        shell:
            "exec python workflow_scripts/tables.py --results {params.results:q} {params.part:q}"
            " --tables {params.tables:q} --log {log:q}"


rule page:
    input:
        SUMMARY_FILES,
        FIGURE_FILES,
        TABLE_FILES,
    output:
        page="<results>/report.html",
    log:
        "<results>/logs/page.log",
    localrule: True
    params:
        code=recipe.page_code(),
        results=subpath(output.page, parent=True),
    message:
        "report.html: all figures and tables on one page"
    shell:
        "exec python workflow_scripts/page.py --results {params.results:q} --page {output.page:q} --log {log:q}"
