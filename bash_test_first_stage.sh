#!/usr/bin/env bash
# Estimate brain ages with the first stage, and write its discretized ages.
# Edit the variables, or set them in the environment; further flags are passed on.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/bash_setup.sh"

DATA="${DATA:-data}"                                  # folder with test/, labels.csv
TEST_FOLDER="${TEST_FOLDER:-$DATA/test}"              # scans, .nii or .nii.gz
LABEL_TABLE="${LABEL_TABLE-$DATA/labels.csv}"         # subject, age in years, sex; empty: none
CHECKPOINT="${CHECKPOINT:-runs/first_stage/best.pt}"  # of the trained first stage
OUTPUT_DIR="${OUTPUT_DIR:-runs/first_stage/test}"     # folder for the results
OVERWRITE="${OVERWRITE:-false}"                       # true: replace results of an earlier call
SPLIT="${SPLIT:-test}"                                # name of the split: <split>_discretized_age.npy
BATCH_SIZE="${BATCH_SIZE:-8}"                         # scans read at a time; the network gets one after another
NUM_WORKERS="${NUM_WORKERS:-8}"                       # processes that read scans
CACHE_FOLDER="${CACHE_FOLDER-$DATA/cache}"            # scans kept ready after the first reading; empty: none
export CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES-0}"  # which GPU; empty: the CPU

exec "$PYTHON" "$HERE/test_first_stage.py" \
  --test_folder "$TEST_FOLDER" \
  --label_table "$LABEL_TABLE" \
  --checkpoint "$CHECKPOINT" \
  --output_dir "$OUTPUT_DIR" \
  --overwrite "$OVERWRITE" \
  --split "$SPLIT" \
  --batch_size "$BATCH_SIZE" \
  --num_workers "$NUM_WORKERS" \
  --cache_folder "$CACHE_FOLDER" \
  "$@"
