#!/usr/bin/env bash
# Measure the speed of training, inference and loading: ours, the plain way, and the share of the hardware's limit.
# Edit the variables, or set them in the environment; further flags are passed on.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/bash_setup.sh"

MODEL="${MODEL:-both}"                                # scaledense, scaledense_paper or both
PRECISION="${PRECISION:-both}"                        # of our way: float32, bfloat16 or both
BATCH_SIZE="${BATCH_SIZE:-0}"                         # scans in a batch; 0: 32 on CUDA, 2 on a CPU
VOXEL_SIZE="${VOXEL_SIZE:-2}"                         # mm, of the grid
ROUNDS="${ROUNDS:-5}"                                 # how often each variant is built and measured
NUM_WORKERS="${NUM_WORKERS:-8}"                       # processes that read scans
COHORT_SIZE="${COHORT_SIZE:-0}"                       # scans of a cohort to start, such as 100000; 0: none
OUTPUT="${OUTPUT:-runs/throughput.json}"              # file for the figures
OVERWRITE="${OVERWRITE:-false}"                       # true: replace results of an earlier call
export CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES-0}"  # which GPU; empty: the CPU

exec "$PYTHON" "$HERE/benchmarks/throughput.py" \
  --model "$MODEL" \
  --precision "$PRECISION" \
  --batch_size "$BATCH_SIZE" \
  --voxel_size "$VOXEL_SIZE" \
  --rounds "$ROUNDS" \
  --num_workers "$NUM_WORKERS" \
  --cohort_size "$COHORT_SIZE" \
  --output "$OUTPUT" \
  --overwrite "$OVERWRITE" \
  "$@"
