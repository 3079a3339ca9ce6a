#!/usr/bin/env bash
# Check this project on this machine's GPUs, and measure its speed; the compiler alone takes some minutes.
# Edit the variables, or set them in the environment.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/bash_setup.sh"

export GPU_CHECK="${GPU_CHECK:-runs/gpu_check.json}"  # file for what the checks find
OUTPUT="${OUTPUT:-runs/throughput_gpu.json}"          # file for the speeds
export OVERWRITE="${OVERWRITE:-false}"                # true: replace results of an earlier call
export MODEL="${MODEL:-scaledense}"                   # whose speed to measure: scaledense, scaledense_paper or both
export BATCH_SIZE="${BATCH_SIZE:-16}"                 # scans in a batch
export ROUNDS="${ROUNDS:-1}"                          # how often each variant is measured

for file in "$GPU_CHECK" "$OUTPUT"; do
  if [[ -e "$file" && "$OVERWRITE" != true ]]; then
    echo "error: $file: exists already; set another GPU_CHECK and OUTPUT, or OVERWRITE=true to replace them" >&2
    exit 2
  fi
done
if ! command -v nvidia-smi >/dev/null; then
  echo "error: nvidia-smi is not found: this machine has no NVIDIA driver, or the container was not given the GPU" >&2
  exit 2
fi
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv
"$PYTHON" -m pytest --rootdir "$HERE" -p no:cacheprovider -m gpu -s "$HERE/tests/gpu"
OUTPUT="$OUTPUT" bash "$HERE/bash_throughput.sh"
