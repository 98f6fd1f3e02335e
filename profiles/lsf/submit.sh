#!/bin/sh
# Submit a job and print its id alone, which is what Snakemake reads. `-gpu num=0` is no request that LSF knows.
for argument; do
  shift
  if [ "$argument" = num=0 ] && [ "$last" = -gpu ]; then
    last=
    continue
  fi
  [ "$last" = -gpu ] && set -- "$@" -gpu
  last=$argument
  [ "$argument" = -gpu ] || set -- "$@" "$argument"
done
told=$(bsub "$@") || exit
printf '%s\n' "$told" | sed -n 's/^Job <\([0-9]*\)>.*/\1/p'
