# Class probabilities of a split, and their confusion matrices without and with CRF.


rule predict:
    input:
        photos=LAYOUT.photos,
        model=PLAN.weights,
    output:
        probabilities=PLAN.piece("predict", LAYOUT.prediction("{seed}", "{model}", "{split}")),
    log:
        PLAN.log("seed{seed}", "{model}", "predict_{split}", shards_of="predict"),
        usage=PLAN.usage("seed{seed}", "{model}", "predict_{split}", shards_of="predict"),
    conda:
        "../envs/rrm.yml"
    threads: PLAN.threads("predict")
    resources:
        gpu=PLAN.gpu("predict"),
    params:
        options=PLAN.options("predict"),
        code=PLAN.code("predict"),
        inputs=PLAN.inputs,
        shard=PLAN.shard,
        runtime=PLAN.runtime,
    shell:
        "python -m rrm predict {params.inputs:q} --out {output.probabilities:q} --options {params.options:q}"
        " --runtime {params.runtime:q} {params.shard:q} --code {params.code} --threads {threads} --usage {log.usage:q} 2>&1 | tee {log[0]:q}"


if PLAN.shards("predict") > 1:

    rule merge_predict:
        input:
            shards=PLAN.pieces("predict", LAYOUT.prediction("{seed}", "{model}", "{split}")),
        output:
            probabilities=LAYOUT.prediction("{seed}", "{model}", "{split}"),
        log:
            PLAN.log("seed{seed}", "{model}", "predict_{split}.shards", "merge"),
            usage=PLAN.usage("seed{seed}", "{model}", "predict_{split}.shards", "merge"),
        conda:
            "../envs/rrm.yml"
        params:
            options=PLAN.options("predict"),
            code=PLAN.code("predict"),
            joined=PLAN.joined,
        shell:
            "python -m rrm merge {params.joined:q} --out {output.probabilities:q} --usage {log.usage:q} 2>&1 | tee {log[0]:q}"


rule evaluate:
    input:
        photos=LAYOUT.photos,
        masks=LAYOUT.masks("{split}"),
        probabilities=LAYOUT.prediction("{seed}", "{model}", "{split}"),
    output:
        confusion=PLAN.piece("evaluate", LAYOUT.confusion("{seed}", "{model}", "{split}")),
    log:
        PLAN.log("seed{seed}", "{model}", "evaluate_{split}", shards_of="evaluate"),
        usage=PLAN.usage("seed{seed}", "{model}", "evaluate_{split}", shards_of="evaluate"),
    conda:
        "../envs/rrm.yml"
    threads: PLAN.threads("evaluate")
    resources:
        gpu=PLAN.gpu("evaluate"),
    params:
        options=PLAN.options("evaluate"),
        code=PLAN.code("evaluate"),
        inputs=PLAN.inputs,
        shard=PLAN.shard,
        runtime=PLAN.runtime,
    shell:
        "python -m rrm evaluate {params.inputs:q} --out {output.confusion:q} --options {params.options:q}"
        " --runtime {params.runtime:q} {params.shard:q} --code {params.code} --threads {threads} --usage {log.usage:q} 2>&1 | tee {log[0]:q}"


if PLAN.shards("evaluate") > 1:

    rule merge_evaluate:
        input:
            shards=PLAN.pieces("evaluate", LAYOUT.confusion("{seed}", "{model}", "{split}")),
        output:
            confusion=LAYOUT.confusion("{seed}", "{model}", "{split}"),
        log:
            PLAN.log("seed{seed}", "{model}", "evaluate_{split}.shards", "merge"),
            usage=PLAN.usage("seed{seed}", "{model}", "evaluate_{split}.shards", "merge"),
        conda:
            "../envs/rrm.yml"
        params:
            options=PLAN.options("evaluate"),
            code=PLAN.code("evaluate"),
            joined=PLAN.joined,
        shell:
            "python -m rrm merge {params.joined:q} --out {output.confusion:q} --usage {log.usage:q} 2>&1 | tee {log[0]:q}"
