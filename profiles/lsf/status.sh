#!/bin/sh
# State of a job in one word, as Snakemake asks for it: running, success or failed.
# A job that LSF has forgotten has succeeded as far as it knows; Snakemake then looks for its outputs. One of which LSF says
# nothing, for it does not answer, runs: taken for ended, it would be submitted a second time.
case "$(bjobs -noheader -o stat "$1" 2>&1)" in
  DONE | *' is not found'*) echo success ;;
  EXIT | ZOMBI) echo failed ;;
  *) echo running ;;
esac
