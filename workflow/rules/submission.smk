# Archives for the evaluation server, of photos whose masks are not public.


rule submission:
    input:
        PLAN.origin,
        photos=LAYOUT.photos,
        probabilities=LAYOUT.prediction("{seed}", "{model}", "submission"),
    output:
        archive=LAYOUT.submission("{seed}", "{model}"),
    log:
        PLAN.log("seed{seed}", "{model}", "submission"),
        usage=PLAN.usage("seed{seed}", "{model}", "submission"),
    conda:
        "../envs/rrm.yml"
    threads: PLAN.threads("submission")
    params:
        options=PLAN.options("submission"),
        code=PLAN.code("submission"),
        lineage=PLAN.lineage,
        inputs=PLAN.inputs,
        runtime=PLAN.runtime,
    shell:
        "python -m rrm submission {params.inputs:q} --out {output.archive:q} --options {params.options:q}"
        " --runtime {params.runtime:q} --code {params.code} --threads {threads} --usage {log.usage:q} 2>&1 | tee {log[0]:q}"
