#!/usr/bin/env bash
# Compare any number of runs: flags that differ, accuracy of both stages, paired differences, training curves.
# Separate runs by blanks: RUNS="runs/a runs/b"; patterns such as runs/*/second_stage work too.
# Edit the variables, or set them in the environment; further flags are passed on.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/bash_setup.sh"

RUNS="${RUNS:-runs/first_stage runs/second_stage}"    # folders of runs; the others are compared with the first
OUTPUT_DIR="${OUTPUT_DIR:-runs/comparison}"           # folder for comparison.csv and comparison.png
OVERWRITE="${OVERWRITE:-false}"                       # true: replace results of an earlier call
SEED="${SEED:-0}"                                     # of the bootstrap

exec "$PYTHON" "$HERE/compare_runs.py" \
  --runs "$RUNS" \
  --output_dir "$OUTPUT_DIR" \
  --overwrite "$OVERWRITE" \
  --seed "$SEED" \
  "$@"
