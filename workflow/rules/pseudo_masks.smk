# Pseudo masks of the training photos, which step two is trained on.


rule pseudo_masks:
    input:
        photos=LAYOUT.photos,
        model=PLAN.masks_network,
    output:
        masks=LAYOUT.pseudo_masks("{seed}", "{masks}"),
    log:
        PLAN.log("seed{seed}", "pseudo_masks", "{masks}"),
    benchmark:
        PLAN.cost("seed{seed}", "pseudo_masks", "{masks}")
    priority: 1
    conda:
        "../envs/rrm.yml"
    threads: PLAN.threads("pseudo-masks")
    resources:
        gpu=PLAN.gpu,
    params:
        options=PLAN.options("pseudo-masks"),
        code=PLAN.code("pseudo-masks"),
        inputs=PLAN.inputs,
        runtime=PLAN.runtime,
    shell:
        "python -m rrm pseudo-masks {params.inputs:q} --out {output.masks:q} --options {params.options:q}"
        " --runtime {params.runtime:q} --threads {threads} 2>&1 | tee {log:q}"
