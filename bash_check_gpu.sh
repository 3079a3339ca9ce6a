#!/usr/bin/env bash
# Check this project on this machine's GPUs, and measure its speed; takes less than ten minutes.
# Edit the variables, or set them in the environment.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/bash_setup.sh"

export GPU_CHECK="${GPU_CHECK:-runs/gpu_check.json}"  # file for what the checks find
OUTPUT="${OUTPUT:-runs/throughput_gpu.json}"          # file for the speeds
ROUNDS="${ROUNDS:-2}"                                 # how often each variant is measured

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv
"$PYTHON" -m pytest --rootdir "$HERE" -p no:cacheprovider -m gpu -s "$HERE/tests/gpu"
OUTPUT="$OUTPUT" ROUNDS="$ROUNDS" bash "$HERE/bash_throughput.sh"
