# Pseudo masks of the training photos, which step two is trained on. A set with a random walk has an affinity network of
# its own, trained by the loop of rules/training.smk.


rule affinity:
    input:
        photos=LAYOUT.photos,
        model=PLAN.masks_network,
    output:
        weights=LAYOUT.affinity("{seed}", "{masks}"),
    log:
        PLAN.log("seed{seed}", "affinity", "{masks}"),
        usage=PLAN.usage("seed{seed}", "affinity", "{masks}"),
    priority: 1
    conda:
        "../envs/rrm.yml"
    threads: PLAN.threads("affinity")
    resources:
        gpu=PLAN.gpu("affinity"),
    params:
        options=PLAN.options("affinity"),
        code=PLAN.code("affinity"),
        network=PLAN.masks_source,
        inputs=PLAN.inputs,
        runtime=PLAN.runtime,
        launch=PLAN.launch("affinity"),
    shell:
        "{params.launch} -m rrm affinity {params.inputs:q} --out {output.weights:q} --options {params.options:q}"
        " --runtime {params.runtime:q} --code {params.code} --threads {threads} --usage {log.usage:q} 2>&1 | tee {log[0]:q}"


rule pseudo_masks:
    input:
        photos=LAYOUT.photos,
        model=PLAN.masks_network,
        affinity=PLAN.masks_affinity,
    output:
        masks=PLAN.piece("pseudo-masks", LAYOUT.pseudo_masks("{seed}", "{masks}")),
    log:
        PLAN.log("seed{seed}", "pseudo_masks", "{masks}", shards_of="pseudo-masks"),
        usage=PLAN.usage("seed{seed}", "pseudo_masks", "{masks}", shards_of="pseudo-masks"),
    priority: 1
    conda:
        "../envs/rrm.yml"
    threads: PLAN.threads("pseudo-masks")
    resources:
        gpu=PLAN.gpu("pseudo-masks"),
    params:
        options=PLAN.options("pseudo-masks"),
        code=PLAN.code("pseudo-masks"),
        inputs=PLAN.inputs,
        shard=PLAN.shard,
        runtime=PLAN.runtime,
    shell:
        "python -m rrm pseudo-masks {params.inputs:q} --out {output.masks:q} --options {params.options:q}"
        " --runtime {params.runtime:q} {params.shard:q} --code {params.code} --threads {threads} --usage {log.usage:q} 2>&1 | tee {log[0]:q}"


if PLAN.shards("pseudo-masks") > 1:

    rule merge_pseudo_masks:
        input:
            shards=PLAN.pieces("pseudo-masks", LAYOUT.pseudo_masks("{seed}", "{masks}")),
        output:
            masks=LAYOUT.pseudo_masks("{seed}", "{masks}"),
        log:
            PLAN.log("seed{seed}", "pseudo_masks", "{masks}.shards", "merge"),
            usage=PLAN.usage("seed{seed}", "pseudo_masks", "{masks}.shards", "merge"),
        priority: 1
        conda:
            "../envs/rrm.yml"
        params:
            options=PLAN.options("pseudo-masks"),
            code=PLAN.code("pseudo-masks"),
            joined=PLAN.joined,
        shell:
            "python -m rrm merge {params.joined:q} --out {output.masks:q} --usage {log.usage:q} 2>&1 | tee {log[0]:q}"
