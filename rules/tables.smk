# Tables, from the summary alone.
rule results_table:
    input:
        cells="<results>/summary/cells.csv",
        grid="<results>/summary/grid.csv",
    output:
        csv="<results>/tables/{task}-{model}-results.csv",
        md="<results>/tables/{task}-{model}-results.md",
        tex="<results>/tables/{task}-{model}-results.tex",
    log:
        "<results>/logs/tables/{task}-{model}-results.log",
    params:
        code=lambda wildcards: recipe.task_code("table_results", wildcards.task),
    message:
        "table: results of {wildcards.task} {wildcards.model}"
    shell:
        "python workflow_scripts/table_results.py --task {wildcards.task:q} --model {wildcards.model:q}"
        " --cells {input.cells:q} --grid {input.grid:q} --csv {output.csv:q} --md {output.md:q} --tex {output.tex:q} --log {log:q}"
