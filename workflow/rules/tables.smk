# The tables: cells from confusion matrices, beside the paper's figures.


rule ablation_table:
    input:
        PLAN.intermediates("ablation"),
        **PLAN.confusions("ablation"),
    output:
        table=report(
            LAYOUT.table("{table}"),
            caption="../report/tables.rst",
            category="Tables",
            labels=PLAN.titled("table{table}", "spreadsheet"),
        ),
    log:
        PLAN.log("table{table}"),
    wildcard_constraints:
        table="1|2",
    localrule: True
    conda:
        "../envs/rrm.yml"
    threads: PLAN.threads("ablation-table")
    params:
        options=PLAN.options("ablation-table"),
        code=PLAN.code("ablation-table"),
        inputs=PLAN.inputs,
        runtime=PLAN.runtime,
    shell:
        "python -m rrm ablation-table {params.inputs:q} --out {output.table:q} --options {params.options:q}"
        " --runtime {params.runtime:q} --code {params.code} --threads {threads} 2>&1 | tee {log:q}"


rule class_table:
    input:
        PLAN.intermediates("comparison"),
        **PLAN.confusions("comparison"),
    output:
        table=report(
            LAYOUT.table("{table}"),
            caption="../report/tables.rst",
            category="Tables",
            labels=PLAN.titled("table{table}", "spreadsheet"),
        ),
    log:
        PLAN.log("table{table}"),
    wildcard_constraints:
        table="3|4",
    localrule: True
    conda:
        "../envs/rrm.yml"
    threads: PLAN.threads("class-table")
    params:
        options=PLAN.options("class-table"),
        code=PLAN.code("class-table"),
        inputs=PLAN.inputs,
        runtime=PLAN.runtime,
    shell:
        "python -m rrm class-table {params.inputs:q} --out {output.table:q} --options {params.options:q}"
        " --runtime {params.runtime:q} --code {params.code} --threads {threads} 2>&1 | tee {log:q}"


rule table5:
    input:
        PLAN.intermediates("comparison"),
        **PLAN.confusions("comparison"),
    output:
        table=report(
            LAYOUT.table(5),
            caption="../report/table5.rst",
            category="Tables",
            labels=PLAN.titled("table5", "spreadsheet"),
        ),
    log:
        PLAN.log("table5"),
    localrule: True
    conda:
        "../envs/rrm.yml"
    threads: PLAN.threads("table5")
    params:
        options=PLAN.options("table5"),
        code=PLAN.code("table5"),
        inputs=PLAN.inputs,
        runtime=PLAN.runtime,
    shell:
        "python -m rrm table5 {params.inputs:q} --out {output.table:q} --options {params.options:q}"
        " --runtime {params.runtime:q} --code {params.code} --threads {threads} 2>&1 | tee {log:q}"


rule comparisons:
    input:
        PLAN.intermediates("ablation", "comparison"),
        **PLAN.confusions("ablation", "comparison"),
    output:
        table=report(
            LAYOUT.comparisons,
            caption="../report/comparisons.rst",
            category="Tables",
            labels=PLAN.titled("comparisons", "spreadsheet"),
        ),
    log:
        PLAN.log("comparisons"),
    localrule: True
    conda:
        "../envs/rrm.yml"
    threads: PLAN.threads("comparisons")
    params:
        options=PLAN.options("comparisons"),
        code=PLAN.code("comparisons"),
        inputs=PLAN.inputs,
        runtime=PLAN.runtime,
    shell:
        "python -m rrm comparisons {params.inputs:q} --out {output.table:q} --options {params.options:q}"
        " --runtime {params.runtime:q} --code {params.code} --threads {threads} 2>&1 | tee {log:q}"


rule label_quality:
    input:
        PLAN.behind("one_step"),
        photos=LAYOUT.photos,
        masks=LAYOUT.masks("val"),
        model=LAYOUT.weights(PLAN.config.seeds[0], "one_step"),
        confusion=LAYOUT.confusion(PLAN.config.seeds[0], "one_step", "val"),
    output:
        table=report(LAYOUT.label_quality, caption="../report/label_quality.rst", category="Tables"),
    log:
        PLAN.log("label_quality"),
    conda:
        "../envs/rrm.yml"
    threads: PLAN.threads("label-quality")
    resources:
        gpu=PLAN.gpu("label-quality"),
    params:
        options=PLAN.options("label-quality"),
        code=PLAN.code("label-quality"),
        inputs=PLAN.inputs,
        runtime=PLAN.runtime,
    shell:
        "python -m rrm label-quality {params.inputs:q} --out {output.table:q} --options {params.options:q}"
        " --runtime {params.runtime:q} --code {params.code} --threads {threads} 2>&1 | tee {log:q}"
