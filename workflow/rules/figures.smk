# The figures, of the first seed on val: labels of the one-step network, and predictions of all methods.


rule figure2:
    input:
        PLAN.behind("one_step"),
        photos=LAYOUT.photos,
        masks=LAYOUT.masks("val"),
        model=LAYOUT.weights(PLAN.config.seeds[0], "one_step"),
        confusion=LAYOUT.confusion(PLAN.config.seeds[0], "one_step", "val"),
    output:
        figure=report(LAYOUT.figure("figure2"), caption="../report/figure2.rst", category="Figures"),
    log:
        PLAN.log("figure2"),
    conda:
        "../envs/rrm.yml"
    threads: PLAN.threads("figure2")
    resources:
        gpu=PLAN.gpu("figure2"),
    params:
        options=PLAN.options("figure2"),
        code=PLAN.code("figure2"),
        inputs=PLAN.inputs,
        runtime=PLAN.runtime,
    shell:
        "python -m rrm figure2 {params.inputs:q} --out {output.figure:q} --options {params.options:q}"
        " --runtime {params.runtime:q} --code {params.code} --threads {threads} 2>&1 | tee {log:q}"


rule figure3:
    input:
        PLAN.behind("one_step"),
        photos=LAYOUT.photos,
        masks=LAYOUT.masks("val"),
        model=LAYOUT.weights(PLAN.config.seeds[0], "one_step"),
        confusion=LAYOUT.confusion(PLAN.config.seeds[0], "one_step", "val"),
    output:
        figure=report(LAYOUT.figure("figure3"), caption="../report/figure3.rst", category="Figures"),
    log:
        PLAN.log("figure3"),
    conda:
        "../envs/rrm.yml"
    threads: PLAN.threads("figure3")
    resources:
        gpu=PLAN.gpu("figure3"),
    params:
        options=PLAN.options("figure3"),
        code=PLAN.code("figure3"),
        inputs=PLAN.inputs,
        runtime=PLAN.runtime,
    shell:
        "python -m rrm figure3 {params.inputs:q} --out {output.figure:q} --options {params.options:q}"
        " --runtime {params.runtime:q} --code {params.code} --threads {threads} 2>&1 | tee {log:q}"


rule figure4:
    input:
        PLAN.behind(*PLAN.drawn),
        **PLAN.seen(*PLAN.drawn),
        photos=LAYOUT.photos,
        masks=LAYOUT.masks("val"),
    output:
        figure=report(LAYOUT.figure("figure4"), caption="../report/figure4.rst", category="Figures"),
    log:
        PLAN.log("figure4"),
    localrule: True
    conda:
        "../envs/rrm.yml"
    threads: PLAN.threads("figure4")
    params:
        options=PLAN.options("figure4"),
        code=PLAN.code("figure4"),
        inputs=PLAN.inputs,
        runtime=PLAN.runtime,
    shell:
        "python -m rrm figure4 {params.inputs:q} --out {output.figure:q} --options {params.options:q}"
        " --runtime {params.runtime:q} --code {params.code} --threads {threads} 2>&1 | tee {log:q}"


rule failures:
    input:
        PLAN.behind(*PLAN.drawn),
        **PLAN.seen(*PLAN.drawn),
        photos=LAYOUT.photos,
        masks=LAYOUT.masks("val"),
    output:
        figure=report(LAYOUT.figure("failures"), caption="../report/failures.rst", category="Figures"),
    log:
        PLAN.log("failures"),
    localrule: True
    conda:
        "../envs/rrm.yml"
    threads: PLAN.threads("failures")
    params:
        options=PLAN.options("failures"),
        code=PLAN.code("failures"),
        inputs=PLAN.inputs,
        runtime=PLAN.runtime,
    shell:
        "python -m rrm failures {params.inputs:q} --out {output.figure:q} --options {params.options:q}"
        " --runtime {params.runtime:q} --code {params.code} --threads {threads} 2>&1 | tee {log:q}"
