# The data set: photos and image-level labels in one store, masks in others. No training rule takes a store of masks,
# except for the pseudo masks' and the bounds', which see masks, or scribbles or boxes derived from them.


rule make_data:
    output:
        manifest=LAYOUT.manifest,
    log:
        PLAN.log("make_data"),
    conda:
        "../envs/rrm.yml"
    threads: PLAN.threads(PLAN.data_stage)
    params:
        stage=PLAN.data_stage,
        options=PLAN.options(PLAN.data_stage),
        code=PLAN.code(PLAN.data_stage),
        inputs=PLAN.inputs,
        runtime=PLAN.runtime,
    shell:
        "python -m rrm {params.stage} {params.inputs:q} --out {output.manifest:q} --options {params.options:q}"
        " --runtime {params.runtime:q} --code {params.code} --threads {threads} 2>&1 | tee {log:q}"


rule pack_photos:
    input:
        manifest=PLAN.manifest,
    output:
        photos=LAYOUT.photos,
    log:
        PLAN.log("pack_photos"),
    conda:
        "../envs/rrm.yml"
    threads: PLAN.threads("pack-photos")
    params:
        options=PLAN.options("pack-photos"),
        code=PLAN.code("pack-photos"),
        lists=PLAN.lists,
        inputs=PLAN.inputs,
        runtime=PLAN.runtime,
    shell:
        "python -m rrm pack-photos {params.inputs:q} --out {output.photos:q} --options {params.options:q}"
        " --runtime {params.runtime:q} --code {params.code} --threads {threads} 2>&1 | tee {log:q}"


rule pack_masks:
    input:
        manifest=PLAN.manifest,
        photos=LAYOUT.photos,
    output:
        masks=LAYOUT.masks("{split}"),
    log:
        PLAN.log("pack_masks_{split}"),
    conda:
        "../envs/rrm.yml"
    threads: PLAN.threads("pack-masks")
    params:
        options=PLAN.options("pack-masks"),
        code=PLAN.code("pack-masks"),
        lists=PLAN.lists,
        inputs=PLAN.inputs,
        runtime=PLAN.runtime,
    shell:
        "python -m rrm pack-masks {params.inputs:q} --out {output.masks:q} --options {params.options:q}"
        " --runtime {params.runtime:q} --code {params.code} --threads {threads} 2>&1 | tee {log:q}"


rule sparse_labels:
    input:
        masks=LAYOUT.masks("train"),
    output:
        masks=LAYOUT.labels("{labels}"),
    log:
        PLAN.log("{labels}_train"),
    conda:
        "../envs/rrm.yml"
    threads: PLAN.threads("sparse-labels")
    params:
        options=PLAN.options("sparse-labels"),
        code=PLAN.code("sparse-labels"),
        inputs=PLAN.inputs,
        runtime=PLAN.runtime,
    shell:
        "python -m rrm sparse-labels {params.inputs:q} --out {output.masks:q} --options {params.options:q}"
        " --runtime {params.runtime:q} --code {params.code} --threads {threads} 2>&1 | tee {log:q}"
