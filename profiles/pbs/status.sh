#!/bin/sh
# State of a job in one word, as Snakemake asks for it: running, success or failed.
# Where PBS keeps no history, a job that is gone has succeeded as far as it knows; Snakemake then looks for its outputs.
told=$(qstat -x -f "$1" 2>/dev/null || qstat -f "$1" 2>/dev/null)
state=$(printf '%s\n' "$told" | sed -n 's/^ *job_state = //p')
code=$(printf '%s\n' "$told" | sed -n 's/^ *[Ee]xit_status = //p')
case "$state" in
  '' | C | F | X) if [ "${code:-0}" = 0 ]; then echo success; else echo failed; fi ;;
  *) echo running ;;
esac
