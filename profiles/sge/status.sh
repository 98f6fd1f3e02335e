#!/bin/sh
# State of a job in one word, as Snakemake asks for it: running, success or failed.
# Without accounting, a job that is gone has succeeded as far as Grid Engine knows; Snakemake then looks for its outputs. One of
# which Grid Engine says nothing, for it does not answer, runs: taken for ended, it would be submitted a second time.
case "$(qstat -j "$1" 2>&1)" in
  *'do not exist'*) ;;
  *)
    echo running
    exit
    ;;
esac
codes=$(qacct -j "$1" 2>/dev/null | sed -n -e 's/^exit_status *\([0-9]*\).*/\1/p' -e 's/^failed *\([0-9]*\).*/\1/p' | sort -u)
case "$codes" in
  '' | 0) echo success ;;
  *) echo failed ;;
esac
