#!/usr/bin/env bash
# A slice of TPU VMs by a queued resource, and one run over all of its hosts:
#
#     export NAME=mine ZONE=us-west4-a TYPE=v5litepod-16 NFS=10.0.0.2:/share
#     experiments/launch/tpu_vm.sh up
#     experiments/launch/tpu_vm.sh run --config=configs/mine.py --workdir=/mnt/share/runs/mine
#     experiments/launch/tpu_vm.sh down
#
# NAME   of the queued resource and of its node
# TYPE   what gcloud calls the accelerator: v5litepod-16, v5p-32, v6e-16
# NFS    HOST:/SHARE that every host mounts at /mnt/share, such as of Filestore; workdir, models and
#        text lie there: a bucket cannot be a workdir, since files in it cannot be locked or renamed
# SPOT   1: cheaper, and may be taken away at any time
#
# `run` starts again what ends with 70, 74 or 75, and waits for a new slice where a spot one was lost.
set -euo pipefail
: "${NAME:?a name for the slice}" "${ZONE:?such as us-west4-a}" "${NFS:?HOST:/SHARE that all hosts mount}"
mount=/mnt/share

runtime() { # the software that Google names for a type
  case $1 in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) echo "TYPE is $1: set RUNTIME to its runtime version" >&2 && return 2 ;;
  esac
}

queued() { gcloud compute tpus queued-resources "$1" "$NAME" --zone="$ZONE" "${@:2}"; }
everywhere() { gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="$1"; }
state() { queued describe --format='value(state.state)' 2>/dev/null || true; }

up() {
  : "${TYPE:?such as v5litepod-16}"
  local spot=() software
  software=${RUNTIME:-$(runtime "$TYPE")}
  [ "${SPOT:-0}" = 0 ] || spot=(--spot)
  queued create --node-id="$NAME" --accelerator-type="$TYPE" \
    --runtime-version="$software" "${spot[@]}"
  until [ "$(state)" = ACTIVE ]; do
    case $(state) in FAILED | SUSPENDED) queued describe >&2 && return 1 ;; esac
    echo "waits for $TYPE in $ZONE: $(state)"
    sleep 30
  done
  install
}

install() { # the repository and its packages, on every host
  local source
  source=$(mktemp --suffix=.tar.gz)
  git archive --format=tar.gz -o "$source" HEAD
  gcloud compute tpus tpu-vm scp "$source" "$NAME:distill_jax.tar.gz" --zone="$ZONE" --worker=all
  rm "$source"
  # The images have Python 3.10; uv brings one that is new enough.
  everywhere "set -e
    sudo apt-get -qq update && sudo apt-get -qq install -y nfs-common
    sudo mkdir -p $mount && { mountpoint -q $mount || sudo mount -t nfs $NFS $mount; }
    mkdir -p distill_jax && tar -xzf distill_jax.tar.gz -C distill_jax && cd distill_jax
    python3 -m pip install -q --user uv
    python3 -m uv venv -q --allow-existing --python 3.12 .venv
    python3 -m uv pip install -q --python .venv -r requirements.txt 'jax[tpu]'
    .venv/bin/python -c 'import jax; print(jax.local_device_count(), jax.devices()[0].device_kind)'"
}

run() {
  local words code=0 pause=1
  words=$(printf ' %q' "$@")
  while true; do
    everywhere "cd distill_jax && exec .venv/bin/python -m distill_jax.main --distributed$words" &&
      return 0 || code=$?
    case $code in
      2 | 3 | 76) return "$code" ;;  # running it again would change nothing
      70 | 74 | 75) ;;
      *)
        if [ "$(state)" != ACTIVE ]; then
          echo "the slice is $(state): asks for another" >&2
          down && up
        fi
        ;;
    esac
    echo "ended with $code: starts again in $pause s" >&2
    sleep "$pause"
    pause=$((pause < 60 ? pause * 2 : 60))
  done
}

down() { queued delete --force --quiet; }

case ${1:-} in
  up | install | down) "$1" ;;
  run) run "${@:2}" ;;
  *) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0" >&2 && exit 2 ;;
esac
