#!/bin/sh
# State of a job in one word, as Snakemake asks for it: running, success or failed.
# A job that LSF has forgotten has succeeded as far as it knows; Snakemake then looks for its outputs.
case "$(bjobs -noheader -o stat "$1" 2>/dev/null)" in
  DONE | '') echo success ;;
  EXIT | ZOMBI) echo failed ;;
  *) echo running ;;
esac
