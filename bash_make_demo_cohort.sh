#!/usr/bin/env bash
# Write a cohort of SIMULATED brains, to try everything without data.
# Edit the variables, or set them in the environment; further flags are passed on.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/bash_setup.sh"

OUTPUT_DIR="${OUTPUT_DIR:-data}"                      # folder for train/, valid/, test/, labels.csv
SUBJECTS="${SUBJECTS:-120}"                           # healthy subjects, 20 to 90 years old
PATIENTS="${PATIENTS:-0}"                             # subjects of each patient group, MCI and AD
PATIENT_GAPS="${PATIENT_GAPS:-5,10}"                  # years, mean true brain-age gap of MCI, AD; 0,0: none
VOXEL_SIZE="${VOXEL_SIZE:-2}"                         # mm: 2, or 4 for a CPU
SEED="${SEED:-0}"                                     # random seed of subjects and volumes
NUM_WORKERS="${NUM_WORKERS:-2}"                       # processes that simulate

exec "$PYTHON" "$HERE/make_demo_cohort.py" \
  --output_dir "$OUTPUT_DIR" \
  --subjects "$SUBJECTS" \
  --patients "$PATIENTS" \
  --patient_gaps="$PATIENT_GAPS" \
  --voxel_size "$VOXEL_SIZE" \
  --seed "$SEED" \
  --num_workers "$NUM_WORKERS" \
  "$@"
