# All networks are trained by one loop; resume checkpoints lie beside the weights and are not declared here, for
# Snakemake deletes declared outputs of a job that failed. The chain from the classifier to step two comes before the
# other methods and the bounds (priority): nothing waits for those but their own predictions.


rule classifier:
    input:
        photos=LAYOUT.photos,
    output:
        weights=LAYOUT.classifier("{seed}"),
    log:
        PLAN.log("seed{seed}", "classifier"),
        usage=PLAN.usage("seed{seed}", "classifier"),
    priority: 1
    conda:
        "../envs/rrm.yml"
    threads: PLAN.threads("classifier")
    resources:
        gpu=PLAN.gpu("classifier"),
    params:
        options=PLAN.options("classifier"),
        code=PLAN.code("classifier"),
        inputs=PLAN.inputs,
        runtime=PLAN.runtime,
        launch=PLAN.launch("classifier"),
    shell:
        "{params.launch} -m rrm classifier {params.inputs:q} --out {output.weights:q} --options {params.options:q}"
        " --runtime {params.runtime:q} --code {params.code} --threads {threads} --usage {log.usage:q} 2>&1 | tee {log[0]:q}"


rule one_step:
    input:
        photos=LAYOUT.photos,
        start=PLAN.start("one-step"),
    output:
        weights=LAYOUT.weights("{seed}", "{model}"),
    log:
        PLAN.log("seed{seed}", "{model}"),
        usage=PLAN.usage("seed{seed}", "{model}"),
    wildcard_constraints:
        model=PLAN.pattern("one_step", "ablation/"),
    priority: 1
    conda:
        "../envs/rrm.yml"
    threads: PLAN.threads("one-step")
    resources:
        gpu=PLAN.gpu("one-step"),
    params:
        *PLAN.cold,
        options=PLAN.options("one-step"),
        code=PLAN.code("one-step"),
        inputs=PLAN.inputs,
        runtime=PLAN.runtime,
        launch=PLAN.launch("one-step"),
    shell:
        "{params.launch} -m rrm one-step {params.inputs:q} --out {output.weights:q} --options {params.options:q}"
        " --runtime {params.runtime:q} --code {params.code} --threads {threads} --usage {log.usage:q} 2>&1 | tee {log[0]:q}"


rule method:
    input:
        photos=LAYOUT.photos,
        start=PLAN.start("method"),
    output:
        weights=LAYOUT.weights("{seed}", "{model}"),
    log:
        PLAN.log("seed{seed}", "{model}"),
        usage=PLAN.usage("seed{seed}", "{model}"),
    wildcard_constraints:
        model=PLAN.pattern("methods/"),
    conda:
        "../envs/rrm.yml"
    threads: PLAN.threads("method")
    resources:
        gpu=PLAN.gpu("method"),
    params:
        *PLAN.cold,
        options=PLAN.options("method"),
        code=PLAN.code("method"),
        inputs=PLAN.inputs,
        runtime=PLAN.runtime,
        launch=PLAN.launch("method"),
    shell:
        "{params.launch} -m rrm method {params.inputs:q} --out {output.weights:q} --options {params.options:q}"
        " --runtime {params.runtime:q} --code {params.code} --threads {threads} --usage {log.usage:q} 2>&1 | tee {log[0]:q}"


rule step_two:
    input:
        photos=LAYOUT.photos,
        masks=PLAN.pseudo_masks,
        start=PLAN.start("step-two"),
    output:
        weights=LAYOUT.weights("{seed}", "{model}"),
    log:
        PLAN.log("seed{seed}", "{model}"),
        usage=PLAN.usage("seed{seed}", "{model}"),
    wildcard_constraints:
        model=PLAN.pattern("step_two/"),
    priority: 1
    conda:
        "../envs/rrm.yml"
    threads: PLAN.threads("step-two")
    resources:
        gpu=PLAN.gpu("step-two"),
    params:
        options=PLAN.options("step-two"),
        code=PLAN.code("step-two"),
        inputs=PLAN.inputs,
        runtime=PLAN.runtime,
        launch=PLAN.launch("step-two"),
    shell:
        "{params.launch} -m rrm step-two {params.inputs:q} --out {output.weights:q} --options {params.options:q}"
        " --runtime {params.runtime:q} --code {params.code} --threads {threads} --usage {log.usage:q} 2>&1 | tee {log[0]:q}"


rule bound:
    input:
        photos=LAYOUT.photos,
        masks=PLAN.bound_labels,
        start=PLAN.start("bound"),
    output:
        weights=LAYOUT.weights("{seed}", "{model}"),
    log:
        PLAN.log("seed{seed}", "{model}"),
        usage=PLAN.usage("seed{seed}", "{model}"),
    wildcard_constraints:
        model=PLAN.pattern("bounds/"),
    conda:
        "../envs/rrm.yml"
    threads: PLAN.threads("bound")
    resources:
        gpu=PLAN.gpu("bound"),
    params:
        *PLAN.cold,
        options=PLAN.options("bound"),
        code=PLAN.code("bound"),
        inputs=PLAN.inputs,
        runtime=PLAN.runtime,
        launch=PLAN.launch("bound"),
    shell:
        "{params.launch} -m rrm bound {params.inputs:q} --out {output.weights:q} --options {params.options:q}"
        " --runtime {params.runtime:q} --code {params.code} --threads {threads} --usage {log.usage:q} 2>&1 | tee {log[0]:q}"
