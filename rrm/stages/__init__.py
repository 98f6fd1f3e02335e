"""The stages of the pipeline, one module each, with one function `run(call)`: what `rrm <stage>` and the workflow's rules do."""
