#!/usr/bin/env bash
# Checks this repository on a machine with an NVIDIA GPU, installing everything from PyPI, and ends
# within 9 minutes: bash experiments/gpu_check/run.sh [options of run.py]. See README.md beside it.
# PYTHON names the interpreter, LIMIT the seconds, VENV a directory for the environment.
set -euo pipefail
start=$SECONDS
limit=${LIMIT:-540}
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."
venv=${VENV:-$here/.venv}

device=gpu
for option in "$@"; do [ "$option" = --device=cpu ] && device=cpu; done
wanted=("jax>=0.10.2" "torch==2.13.0") # --device=cpu, to try the script itself
if [ "$device" = gpu ]; then
  command -v nvidia-smi >/dev/null || { echo "error: no nvidia-smi: this machine has no driver of an NVIDIA GPU" >&2; exit 2; }
  nvidia-smi >/dev/null 2>&1 || { echo "error: nvidia-smi finds no GPU: see what it says by itself" >&2; exit 2; }
  # The newest CUDA that the driver knows; torch of PyPI is built for 13.
  cuda=$(nvidia-smi | sed -n 's/.*CUDA Version: *\([0-9]*\).*/\1/p' | head -1)
  if [ "${cuda:-0}" -ge 13 ]; then wanted=("jax[cuda13]==0.10.2" -r "$here/requirements.txt")
  else
    echo "the driver knows CUDA ${cuda:-?}, and torch of PyPI wants 13: times of PyTorch are left out"
    wanted=("jax[cuda12]==0.10.2" "tokamax==0.0.12")
  fi
  export JAX_PLATFORMS=cuda,cpu XLA_PYTHON_CLIENT_PREALLOCATE=false # PyTorch needs memory too
else
  export JAX_PLATFORMS=cpu
fi

python=${PYTHON:-python3}
if [ ! -x "$venv/bin/python" ]; then
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo "error: $python is not Python 3.11 or later: name one in PYTHON" >&2; exit 2; }
  "$python" -m venv "$venv" >/dev/null 2>&1 || { rm -rf "$venv"; echo "error: $python -m venv failed: install its venv (apt: python3-venv)" >&2; exit 2; }
fi
echo "installing ${wanted[*]} into $venv"
timeout "$limit" "$venv/bin/pip" install --quiet -r requirements.txt "${wanted[@]}"
left=$((limit - (SECONDS - start)))
echo "installed in $((SECONDS - start)) s; $left s are left"
# No case is begun that would not fit; a case that hangs is ended, and the findings so far stay.
timeout --kill-after=10 "$left" "$venv/bin/python" -m experiments.gpu_check.run --seconds="$((left - 5))" "$@" || {
  code=$?
  [ "$code" = 124 ] && echo "error: ended after $limit s (LIMIT); what was found so far stays" >&2
  exit "$code"
}
