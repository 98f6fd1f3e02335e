# Photos without masks: what can be known of their predictions, and masks and overlays of all of them.


rule photo_facts:
    input:
        **PLAN.judged,
        photos=LAYOUT.photos,
        model=LAYOUT.weights(PLAN.config.seeds[0], "one_step"),
    output:
        facts=LAYOUT.photo_facts,
    log:
        PLAN.log("photo_facts"),
    conda:
        "../envs/rrm.yml"
    threads: PLAN.threads("photo-facts")
    resources:
        gpu=PLAN.gpu("photo-facts"),
    params:
        options=PLAN.options("photo-facts"),
        code=PLAN.code("photo-facts"),
        inputs=PLAN.inputs,
        runtime=PLAN.runtime,
    shell:
        "python -m rrm photo-facts {params.inputs:q} --out {output.facts:q} --options {params.options:q}"
        " --runtime {params.runtime:q} --code {params.code} --threads {threads} 2>&1 | tee {log:q}"


rule label_agreement:
    input:
        PLAN.behind("one_step"),
        *PLAN.judged.values(),
        photos=LAYOUT.photos,
        facts=LAYOUT.photo_facts,
    output:
        table=report(
            LAYOUT.label_agreement,
            caption="../report/label_agreement.rst",
            category="Tables",
            labels=PLAN.titled("label_agreement", "spreadsheet"),
        ),
    log:
        PLAN.log("label_agreement"),
    localrule: True
    conda:
        "../envs/rrm.yml"
    threads: PLAN.threads("label-agreement")
    params:
        options=PLAN.options("label-agreement"),
        code=PLAN.code("label-agreement"),
        inputs=PLAN.inputs,
        runtime=PLAN.runtime,
    shell:
        "python -m rrm label-agreement {params.inputs:q} --out {output.table:q} --options {params.options:q}"
        " --runtime {params.runtime:q} --code {params.code} --threads {threads} 2>&1 | tee {log:q}"


rule doubt:
    input:
        PLAN.behind("one_step"),
        *PLAN.judged.values(),
        photos=LAYOUT.photos,
        facts=LAYOUT.photo_facts,
    output:
        table=report(
            LAYOUT.doubt,
            caption="../report/doubt.rst",
            category="Tables",
            labels=PLAN.titled("doubt", "spreadsheet"),
        ),
    log:
        PLAN.log("doubt"),
    localrule: True
    conda:
        "../envs/rrm.yml"
    threads: PLAN.threads("doubt")
    params:
        options=PLAN.options("doubt"),
        code=PLAN.code("doubt"),
        inputs=PLAN.inputs,
        runtime=PLAN.runtime,
    shell:
        "python -m rrm doubt {params.inputs:q} --out {output.table:q} --options {params.options:q}"
        " --runtime {params.runtime:q} --code {params.code} --threads {threads} 2>&1 | tee {log:q}"


rule own_masks:
    input:
        model=PLAN.segment_weights,
    output:
        table=LAYOUT.segmented,
    log:
        PLAN.log("own_masks"),
    conda:
        "../envs/rrm.yml"
    threads: PLAN.threads("predict")
    resources:
        gpu=PLAN.gpu("predict"),
    params:
        options=PLAN.segment_options,
        code=PLAN.code("own-masks"),
        lists=PLAN.lists,
        photos=PLAN.segment_photos,
        runtime=PLAN.runtime,
    shell:
        "python -m rrm own-masks {input.model:q} --out {output.table:q} --options {params.options:q}"
        " --runtime {params.runtime:q} --threads {threads} 2>&1 | tee {log:q}"
