# Figures and their data, from the summary alone: one job for the study, and one for each task and model.
for of, figures in FIGURES_OF.items():
    task, model = of

    rule:
        name:
            f"figures_{task}_{model}" if task else "figures_study"
        input:
            SUMMARY,
            PANELS[of],
        output:
            [f"<results>/figures/{prefix(*of)}{figure}.pdf" for figure in figures],
            [f"<results>/figures/{prefix(*of)}{figure}.csv" for figure in figures],
            [
                report(
                    f"<results>/figures/{prefix(*of)}{figure}.png",
                    caption=caption(figure),
                    category=task or "study",
                    subcategory="figures",
                    labels={"model": model or "all", "figure": figure},
                )
                for figure in figures
            ],
        log:
            f"<results>/logs/figures-{prefix(*of)}.log",
        localrule: True
        threads: 2
        params:
            code=recipe.task_code("figures", task) if task else recipe.summary_code("figures"),
            figures=figures,
            of=["--task", task, "--model", model] if task else [],
            results=subpath(output[0], ancestor=2),
        message:
            f"figures of {task} {model}" if task else "figures of the study"
        shell:
            "exec python workflow_scripts/figures.py --results {params.results:q} {params.of:q}"
            " --figures {params.figures:q} --log {log:q}"
