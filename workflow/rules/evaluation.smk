# Class probabilities of a split, and their confusion matrices without and with CRF.


rule predict:
    input:
        photos=LAYOUT.photos,
        model=PLAN.weights,
    output:
        probabilities=LAYOUT.prediction("{seed}", "{model}", "{split}"),
    log:
        PLAN.log("seed{seed}", "{model}", "predict_{split}"),
    conda:
        "../envs/rrm.yml"
    threads: PLAN.threads("predict")
    resources:
        gpu=PLAN.gpu("predict"),
    params:
        options=PLAN.options("predict"),
        code=PLAN.code("predict"),
        inputs=PLAN.inputs,
        runtime=PLAN.runtime,
        usage=PLAN.usage("seed{seed}", "{model}", "predict_{split}"),
    shell:
        "python -m rrm predict {params.inputs:q} --out {output.probabilities:q} --options {params.options:q}"
        " --runtime {params.runtime:q} --code {params.code} --threads {threads} --usage {params.usage:q} 2>&1 | tee {log:q}"


rule evaluate:
    input:
        photos=LAYOUT.photos,
        masks=LAYOUT.masks("{split}"),
        probabilities=LAYOUT.prediction("{seed}", "{model}", "{split}"),
    output:
        confusion=LAYOUT.confusion("{seed}", "{model}", "{split}"),
    log:
        PLAN.log("seed{seed}", "{model}", "evaluate_{split}"),
    conda:
        "../envs/rrm.yml"
    threads: PLAN.threads("evaluate")
    resources:
        gpu=PLAN.gpu("evaluate"),
    params:
        options=PLAN.options("evaluate"),
        code=PLAN.code("evaluate"),
        inputs=PLAN.inputs,
        runtime=PLAN.runtime,
        usage=PLAN.usage("seed{seed}", "{model}", "evaluate_{split}"),
    shell:
        "python -m rrm evaluate {params.inputs:q} --out {output.confusion:q} --options {params.options:q}"
        " --runtime {params.runtime:q} --code {params.code} --threads {threads} --usage {params.usage:q} 2>&1 | tee {log:q}"
