# Figures, from the summary alone.
rule pareto:
    input:
        cells="<results>/summary/cells.csv",
        runs="<results>/summary/runs.csv",
        grid="<results>/summary/grid.csv",
    output:
        pdf="<results>/figures/{task}-{model}-pareto.pdf",
        png="<results>/figures/{task}-{model}-pareto.png",
    log:
        "<results>/logs/figures/{task}-{model}-pareto.log",
    params:
        code=lambda wildcards: recipe.task_code("figure_pareto", wildcards.task),
    message:
        "figure: Pareto plot of {wildcards.task} {wildcards.model}"
    shell:
        "python workflow_scripts/figure_pareto.py --task {wildcards.task:q} --model {wildcards.model:q}"
        " --cells {input.cells:q} --runs {input.runs:q} --grid {input.grid:q} --figures {output:q} --log {log:q}"


rule learning_curves:
    input:
        history="<results>/summary/history.parquet",
        grid="<results>/summary/grid.csv",
    output:
        pdf="<results>/figures/{task}-{model}-learning_curves.pdf",
        png="<results>/figures/{task}-{model}-learning_curves.png",
    log:
        "<results>/logs/figures/{task}-{model}-learning_curves.log",
    params:
        code=lambda wildcards: recipe.task_code("figure_learning_curves", wildcards.task),
    message:
        "figure: learning curves of {wildcards.task} {wildcards.model}"
    shell:
        "python workflow_scripts/figure_learning_curves.py --task {wildcards.task:q} --model {wildcards.model:q}"
        " --history {input.history:q} --grid {input.grid:q} --figures {output:q} --log {log:q}"


rule by_bucket:
    input:
        cells="<results>/summary/cells.csv",
        runs="<results>/summary/runs.csv",
        per_item="<results>/summary/items.parquet",
        grid="<results>/summary/grid.csv",
    output:
        pdf="<results>/figures/{task}-{model}-by_bucket.pdf",
        png="<results>/figures/{task}-{model}-by_bucket.png",
    log:
        "<results>/logs/figures/{task}-{model}-by_bucket.log",
    params:
        code=lambda wildcards: recipe.task_code("figure_by_bucket", wildcards.task),
    message:
        "figure: Head, Mid and Tail of {wildcards.task} {wildcards.model}"
    shell:
        "python workflow_scripts/figure_by_bucket.py --task {wildcards.task:q} --model {wildcards.model:q}"
        " --cells {input.cells:q} --runs {input.runs:q} --items {input.per_item:q} --grid {input.grid:q}"
        " --figures {output:q} --log {log:q}"


rule roc:
    input:
        per_item="<results>/summary/items.parquet",
        grid="<results>/summary/grid.csv",
    output:
        pdf="<results>/figures/{task}-{model}-roc.pdf",
        png="<results>/figures/{task}-{model}-roc.png",
    log:
        "<results>/logs/figures/{task}-{model}-roc.log",
    params:
        code=lambda wildcards: recipe.task_code("figure_roc", wildcards.task),
    message:
        "figure: ROC of {wildcards.task} {wildcards.model}"
    shell:
        "python workflow_scripts/figure_roc.py --task {wildcards.task:q} --model {wildcards.model:q}"
        " --items {input.per_item:q} --grid {input.grid:q} --figures {output:q} --log {log:q}"


rule panel_figure:
    input:
        panels="<results>/summary/panels/{task}.npz",
        grid="<results>/summary/grid.csv",
    output:
        pdf="<results>/figures/{task}-{model}-panels-{method}-b{budget}.pdf",
        png="<results>/figures/{task}-{model}-panels-{method}-b{budget}.png",
    log:
        "<results>/logs/figures/{task}-{model}-panels-{method}-b{budget}.log",
    params:
        code=lambda wildcards: recipe.summary_code("figure_panels"),
    message:
        "figure: panels of {wildcards.task} {wildcards.model} {wildcards.method}, budget {wildcards.budget}"
    shell:
        "python workflow_scripts/figure_panels.py --task {wildcards.task:q} --model {wildcards.model:q}"
        " --method {wildcards.method:q} --budget {wildcards.budget:q}"
        " --panels {input.panels:q} --grid {input.grid:q} --figures {output:q} --log {log:q}"
