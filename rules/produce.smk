# From a pack to scored runs. Scripts are not inputs, because a fresh clone would then retrain everything: the parameters
# `config` and `fingerprint` decide when a job runs again.
rule data:
    input:
        [f"<data>/prepared/{RECIPES.prepared_key(task)}.json" for task in WORKFLOW.tasks],
        [f"<data>/raw/{pack}.json" for pack in WORKFLOW.packs],


rule fetch:
    output:
        manifest="<data>/raw/{pack}-{key}.json",
    log:
        "<results>/logs/fetch-{pack}-{key}.log",
    wildcard_constraints:
        pack="[a-z][a-z0-9_]*",
        key="[0-9a-f]+",
    localrule: True
    params:
        config=lambda wildcards: canonical_json(WORKFLOW.packs[f"{wildcards.pack}-{wildcards.key}"]),
        partial=f"{KNOBS.data_dir}/partial",
        downloads=f"{KNOBS.data_dir}/downloads",
    message:
        "fetch {wildcards.pack}"
    shell:
        "exec python workflow_scripts/fetch.py --config {params.config:q} --manifest {output.manifest:q}"
        " --partial {params.partial:q} --downloads {params.downloads:q} --log {log:q}"


rule prepare:
    input:
        raw=raw_manifest,
    output:
        index="<data>/prepared/{task}-{key}.json",
    log:
        "<results>/logs/prepare-{task}-{key}.log",
    wildcard_constraints:
        key="[0-9a-f]+",
    threads: 8
    params:
        config=lambda wildcards: canonical_json(RECIPES.prepare(wildcards.task)),
        partial=f"{KNOBS.data_dir}/partial",
    message:
        "prepare {wildcards.task}"
    shell:
        "exec python workflow_scripts/prepare.py --config {params.config:q} --raw {input.raw:q} --index {output.index:q}"
        " --partial {params.partial:q} --log {log:q}"


# What training writes is marked `update`, so that Snakemake keeps it: the script trains again only if the checkpoint in
# the folder has another fingerprint or other data, not if the data were removed and are prepared again.
rule warm_up:
    input:
        prepared=prepared_index,
        weights=weights_manifest,
        source=source_files,
    output:
        checkpoint=update("<results>/warm_up/{task}/{model}/s{seed}/checkpoint.pt"),
        history=update("<results>/warm_up/{task}/{model}/s{seed}/history.csv"),
        units=update("<results>/warm_up/{task}/{model}/s{seed}/units.csv"),
    log:
        "<results>/logs/warm_up/{task}-{model}-s{seed}.log",
    threads: lambda wildcards: STUDY.cpu_threads * WORKFLOW.devices[wildcards.task]
    resources:
        gpu=lambda wildcards: WORKFLOW.gpus_per_device * WORKFLOW.devices[wildcards.task],
    params:
        config=lambda wildcards: canonical_json(warm_up_recipe(wildcards)),
        fingerprint=lambda wildcards: fingerprint(warm_up_recipe(wildcards)),
        source=lambda wildcards, input: os.path.dirname(input.source[0]) if input.source else [],
        folder=subpath(output.checkpoint, parent=True),
    message:
        "warm up {wildcards.task} {wildcards.model}, seed {wildcards.seed}"
    shell:
        "exec python workflow_scripts/warm_up.py --config {params.config:q} --fingerprint {params.fingerprint:q}"
        " --prepared {input.prepared:q} --weights {input.weights:q} --source {params.source:q} --folder {params.folder:q} --log {log:q}"


rule buckets:
    input:
        prepared=prepared_index,
    output:
        buckets="<results>/buckets/{task}.json",
    log:
        "<results>/logs/buckets-{task}.log",
    localrule: True
    params:
        code=lambda wildcards: recipe.buckets_code(wildcards.task),
    message:
        "buckets {wildcards.task}: Head, Mid and Tail of the training data"
    shell:
        "exec python workflow_scripts/buckets.py --task {wildcards.task:q} --prepared {input.prepared:q}"
        " --buckets {output.buckets:q} --log {log:q}"


# As above, also when only the scores are out of date: the script trains again only if the record in the folder has another
# fingerprint or other data, not if the data or the warm start were removed and are made again.
rule train:
    input:
        prepared=prepared_index,
        warm_start="<results>/warm_up/{task}/{model}/s{seed}/checkpoint.pt",
        dense=pruned_files,
        buckets=buckets_of,
    output:
        model=update("<results>/runs/{task}/{model}/{method}/b{budget}/s{seed}/model.safetensors"),
        masks=update("<results>/runs/{task}/{model}/{method}/b{budget}/s{seed}/masks.safetensors"),
        history=update("<results>/runs/{task}/{model}/{method}/b{budget}/s{seed}/history.csv"),
        refreshes=update("<results>/runs/{task}/{model}/{method}/b{budget}/s{seed}/refreshes.csv"),
        record=update("<results>/runs/{task}/{model}/{method}/b{budget}/s{seed}/record.json"),
        per_item="<results>/runs/{task}/{model}/{method}/b{budget}/s{seed}/items.parquet",
        predictions="<results>/runs/{task}/{model}/{method}/b{budget}/s{seed}/predictions.npz",
        units="<results>/runs/{task}/{model}/{method}/b{budget}/s{seed}/units.csv",
        codes="<results>/runs/{task}/{model}/{method}/b{budget}/s{seed}/codes.csv",
        metrics="<results>/runs/{task}/{model}/{method}/b{budget}/s{seed}/metrics.json",
        cost="<results>/runs/{task}/{model}/{method}/b{budget}/s{seed}/cost.json",
    log:
        "<results>/logs/train/{task}-{model}-{method}-b{budget}-s{seed}.log",
    threads: lambda wildcards: STUDY.cpu_threads * WORKFLOW.devices[wildcards.task]
    resources:
        gpu=lambda wildcards: WORKFLOW.gpus_per_device * WORKFLOW.devices[wildcards.task],
    params:
        run=lambda wildcards: canonical_json(asdict(run_of(wildcards))),
        config=lambda wildcards: canonical_json(RECIPES.train(run_of(wildcards))),
        fingerprint=lambda wildcards: RECIPES.run_fingerprint(run_of(wildcards)),
        scoring=lambda wildcards: canonical_json(RECIPES.tasks[wildcards.task].scoring()),
        dense=lambda wildcards, input: os.path.dirname(input.dense[0]) if input.dense else [],
        folder=subpath(output.metrics, parent=True),
    message:
        "train {wildcards.task} {wildcards.model} {wildcards.method}, budget {wildcards.budget}, seed {wildcards.seed}"
    shell:
        "exec python workflow_scripts/train.py --run {params.run:q} --config {params.config:q}"
        " --fingerprint {params.fingerprint:q} --scoring {params.scoring:q} --prepared {input.prepared:q}"
        " --warm-start {input.warm_start:q} --dense {params.dense:q} --buckets {input.buckets:q} --folder {params.folder:q} --log {log:q}"
