#!/bin/sh
# Make a Kubernetes job of a job script, and print its name alone, which is what Snakemake reads:
#   IMAGE=... CLAIM=... MOUNT=... sh submit.sh RULE THREADS MEMORY_MB GPUS MINUTES SCRIPT
# The pod runs as who submits, in the same folder of the same volume. DataLoader workers hand over batches in /dev/shm, of which
# a pod has 64 MB unless it is mounted; what lies there counts as the job's memory.
set -eu
rule=$1 threads=$2 memory=$3 gpus=$4 minutes=$5 script=$6
tolerations=
[ "$gpus" = 0 ] || tolerations='{key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}'
made=$(
  kubectl create --output name --filename - <<END
apiVersion: batch/v1
kind: Job
metadata:
  generateName: rrm-$(printf %s "$rule" | tr _ -)-
  labels: {app: rrm, rule: $rule}
spec:
  backoffLimit: 0
  activeDeadlineSeconds: $((minutes * 60))
  ttlSecondsAfterFinished: 86400
  template:
    spec:
      restartPolicy: Never
      tolerations: [$tolerations]
      securityContext: {runAsUser: $(id -u), runAsGroup: $(id -g)}
      containers:
        - name: rrm
          image: "$IMAGE"
          workingDir: "$PWD"
          command: [sh, "$script"]
          resources:
            requests: {cpu: $threads, memory: ${memory}M}
            limits: {memory: ${memory}M, nvidia.com/gpu: $gpus}
          volumeMounts:
            - {name: project, mountPath: "$MOUNT"}
            - {name: shm, mountPath: /dev/shm}
      volumes:
        - {name: project, persistentVolumeClaim: {claimName: "$CLAIM"}}
        - {name: shm, emptyDir: {medium: Memory}}
END
)
echo "${made##*/}"
