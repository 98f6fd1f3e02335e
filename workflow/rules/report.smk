# What the report shows beside tables and figures. A workflow cannot report on itself while it runs, so these are a target of
# their own: `make results/report.zip` runs the targets `all` and `pages`, then Snakemake once more with --report.


rule training_curves:
    input:
        **PLAN.trained,
    output:
        figure=report(
            LAYOUT.training_curves,
            caption="../report/training_curves.rst",
            category="Training",
            labels={"result": "Loss terms of all networks"},
        ),
    log:
        PLAN.log("training_curves"),
    localrule: True
    conda:
        "../envs/rrm.yml"
    threads: PLAN.threads("training-curves")
    params:
        options=PLAN.options("training-curves"),
        code=PLAN.code("training-curves"),
        networks=list(PLAN.trained),
        inputs=PLAN.inputs,
        runtime=PLAN.runtime,
    shell:
        "python -m rrm training-curves {params.inputs:q} --out {output.figure:q} --options {params.options:q}"
        " --runtime {params.runtime:q} --code {params.code} --threads {threads} 2>&1 | tee {log:q}"


rule gallery:
    input:
        PLAN.behind(*PLAN.drawn),
        **PLAN.gallery,
    output:
        page=LAYOUT.gallery,
    log:
        PLAN.log("gallery"),
    conda:
        "../envs/rrm.yml"
    threads: PLAN.threads("gallery")
    resources:
        gpu=PLAN.gpu("gallery"),
    params:
        options=PLAN.options("gallery"),
        code=PLAN.code("gallery"),
        inputs=PLAN.inputs,
        runtime=PLAN.runtime,
    shell:
        "python -m rrm gallery {params.inputs:q} --out {output.page:q} --options {params.options:q}"
        " --runtime {params.runtime:q} --code {params.code} --threads {threads} 2>&1 | tee {log:q}"


rule run_times:
    input:
        PLAN.intermediates("ablation", "comparison"),
        *PLAN.confusions("ablation", "comparison").values(),
        PLAN.submissions,
    output:
        table=LAYOUT.run_times,
    log:
        PLAN.log("run_times"),
    localrule: True
    conda:
        "../envs/rrm.yml"
    threads: PLAN.threads("run-times")
    params:
        options=PLAN.options("run-times"),
        code=PLAN.code("run-times"),
        inputs=PLAN.inputs,
        runtime=PLAN.runtime,
    shell:
        "python -m rrm run-times {params.inputs:q} --out {output.table:q} --options {params.options:q}"
        " --runtime {params.runtime:q} --code {params.code} --threads {threads} 2>&1 | tee {log:q}"


rule resolved_config:
    output:
        config=LAYOUT.resolved_config,
    log:
        PLAN.log("resolved_config"),
    localrule: True
    conda:
        "../envs/rrm.yml"
    threads: PLAN.threads("resolved-config")
    params:
        options=PLAN.options("resolved-config"),
        code=PLAN.code("resolved-config"),
        inputs=PLAN.inputs,
        runtime=PLAN.runtime,
    shell:
        "python -m rrm resolved-config {params.inputs:q} --out {output.config:q} --options {params.options:q}"
        " --runtime {params.runtime:q} --code {params.code} --threads {threads} 2>&1 | tee {log:q}"


rule departures:
    output:
        table=LAYOUT.departures,
    log:
        PLAN.log("departures"),
    localrule: True
    conda:
        "../envs/rrm.yml"
    threads: PLAN.threads("departures")
    params:
        options=PLAN.options("departures"),
        code=PLAN.code("departures"),
        inputs=PLAN.inputs,
        runtime=PLAN.runtime,
    shell:
        "python -m rrm departures {params.inputs:q} --out {output.table:q} --options {params.options:q}"
        " --runtime {params.runtime:q} --code {params.code} --threads {threads} 2>&1 | tee {log:q}"


rule page:
    input:
        source=PLAN.page_source,
    output:
        page=report(
            LAYOUT.page("{page}"),
            caption="../report/page.rst",
            category=PLAN.category,
            labels=PLAN.titled(),
        ),
    log:
        PLAN.log("page_{page}"),
    wildcard_constraints:
        page="|".join(PLAN.page_sources),
    localrule: True
    conda:
        "../envs/rrm.yml"
    threads: PLAN.threads("page")
    params:
        options=PLAN.options("page"),
        code=PLAN.code("page"),
        inputs=PLAN.inputs,
        runtime=PLAN.runtime,
    shell:
        "python -m rrm page {params.inputs:q} --out {output.page:q} --options {params.options:q}"
        " --runtime {params.runtime:q} --code {params.code} --threads {threads} 2>&1 | tee {log:q}"


rule pages:
    input:
        PLAN.pages,
    localrule: True
