#!/bin/sh
# State of a job in one word, as Snakemake asks for it: running, success or failed.
# Where PBS keeps no history, a job that is gone has succeeded as far as it knows; Snakemake then looks for its outputs. One of
# which PBS says nothing, for it does not answer, runs: taken for ended, it would be submitted a second time.
told=$(qstat -f "$1" 2>&1)
case "$told" in *'use -x'*) told=$(qstat -x -f "$1" 2>&1) ;; esac
state=$(printf '%s\n' "$told" | sed -n 's/^ *job_state = //p')
code=$(printf '%s\n' "$told" | sed -n 's/^ *[Ee]xit_status = //p')
case "$state$told" in
  [CFX]*job_state*) if [ "${code:-0}" = 0 ]; then echo success; else echo failed; fi ;;
  *'Unknown Job'*) echo success ;;
  *) echo running ;;
esac
