# The tables.


rule table5:
    input:
        PLAN.intermediates,
        **PLAN.confusions,
    output:
        table=report(LAYOUT.table5, caption="../report/table5.rst", category="Tables"),
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
        " --runtime {params.runtime:q} --threads {threads} 2>&1 | tee {log:q}"
