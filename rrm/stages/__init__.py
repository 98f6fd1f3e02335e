"""The stages of the pipeline, one module each: `run(call)` is what `rrm <stage>` and the workflow's rules do."""
