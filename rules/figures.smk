# Figures and their data, from the summary alone: one job for the study, one for all models of a task with a baseline, and
# one for each task and model.
for part, figures in WORKFLOW.figures.items():
    task, model = part

    rule:
        name:
            "_".join(("figures", *filter(None, part))) if task else "figures_study"
        input:
            SUMMARY_FILES,
            [f"<results>/summary/panels/{task}.npz"] if any(name.startswith("panels-") for name in figures) else [],
        output:
            [f"<results>/figures/{prefix(*part)}{figure}.pdf" for figure in figures],
            [f"<results>/figures/{prefix(*part)}{figure}.csv" for figure in figures],
            [
                report(
                    f"<results>/figures/{prefix(*part)}{figure}.png",
                    caption=caption(figure),
                    category=task or "study",
                    subcategory="figures",
                    labels={"model": model or "all", "figure": figure},
                )
                for figure in figures
            ],
        log:
            f"<results>/logs/figures-{prefix(*part)}.log",
        localrule: True
        threads: 1 if len(WORKFLOW.models) > 1 else 2
        params:
            code=recipe.task_code("figures", task) if task else recipe.summary_code("figures"),
            figures=figures,
            part=part_arguments(task, model),
            results=subpath(output[0], ancestor=2),
        message:
            " ".join(("figures of", *filter(None, part))) if task else "figures of the study"
        shell:
            "exec python workflow_scripts/figures.py --results {params.results:q} {params.part:q}"
            " --figures {params.figures:q} --log {log:q}"
