#!/usr/bin/env bash
# A run on a TPU slice of a GKE cluster, as a JobSet (https://jobset.sigs.k8s.io) on standard output:
#
#     export NAME=mine IMAGE=REGISTRY/distill_jax:tpu CLAIM=share
#     export ACCELERATOR=tpu-v5-lite-podslice TOPOLOGY=4x4 HOSTS=4 CHIPS=4
#     experiments/launch/gke_jobset.sh --config=configs/base.py --workdir=/mnt/share/runs/mine ... |
#       kubectl apply -f -
#
# IMAGE        built by Containerfile with DEVICE=tpu and pushed
# CLAIM        a PersistentVolumeClaim that many may write (ReadWriteMany, such as of Filestore),
#              mounted at /mnt/share: workdir, models and text lie there
# ACCELERATOR  and TOPOLOGY: of the node pool, as its labels name them; HOSTS nodes of CHIPS chips
#
# Kubernetes starts all hosts again where one ends with 70, 74 or 75, or is taken away, RESTARTS
# times (100); 2, 3 and 76 end the run for good. On the way out every host has GRACE seconds (300)
# to save.
set -euo pipefail
: "${NAME:?}" "${IMAGE:?}" "${CLAIM:?}" "${ACCELERATOR:?}" "${TOPOLOGY:?}" "${HOSTS:?}" "${CHIPS:?}"
[ $# -gt 0 ] || { echo "give the flags of the run: --config=... --workdir=/mnt/share/..." >&2; exit 2; }

quoted() { # a word as a YAML string: every character of it stands for itself within ' '
  printf "'%s'" "${1//\'/\'\'}"
}

cat <<YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $NAME
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: ${RESTARTS:-100}
    rules:
      - action: FailJobSet
        onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
    - name: hosts
      replicas: 1
      template:
        spec:
          parallelism: $HOSTS
          completions: $HOSTS
          completionMode: Indexed
          backoffLimit: 0
          podFailurePolicy:
            rules:
              - action: FailJob
                onExitCodes:
                  containerName: distill-jax
                  operator: In
                  values: [2, 3, 76]
          template:
            spec:
              restartPolicy: Never
              hostNetwork: true
              dnsPolicy: ClusterFirstWithHostNet
              terminationGracePeriodSeconds: ${GRACE:-300}
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $ACCELERATOR
                cloud.google.com/gke-tpu-topology: $TOPOLOGY
              containers:
                - name: distill-jax
                  image: $IMAGE
                  args:
                    - --distributed
$(for word in "$@"; do echo "                    - $(quoted "$word")"; done)
                  resources:
                    limits:
                      google.com/tpu: $CHIPS
                  volumeMounts:
                    - {name: share, mountPath: /mnt/share}
                    - {name: cache, mountPath: /cache}
              volumes:
                - name: share
                  persistentVolumeClaim: {claimName: $CLAIM}
                - name: cache
                  emptyDir: {}
YAML
