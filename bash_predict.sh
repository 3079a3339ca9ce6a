#!/usr/bin/env bash
# Estimate brain ages of raw or prepared T1-weighted scans with the weights of this project:
#   bash bash_predict.sh scan.nii.gz
# Sets up the environment on the first call. Edit the variables, or set them in the environment; further
# flags are passed on.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/bash_setup.sh"

INPUT="${INPUT:-raw}"                                 # a scan, a folder of scans, of BIDS, or of FreeSurfer
OUTPUT_DIR="${OUTPUT_DIR:-predictions}"               # folder for predictions.csv and the pictures
PARTICIPANTS="${PARTICIPANTS:-}"                      # people to take, such as 01,02; empty: all
SESSIONS="${SESSIONS:-}"                              # sessions to take, such as 1,2; empty: all
OVERWRITE="${OVERWRITE:-false}"                       # true: replace results of an earlier call
LABEL_TABLE="${LABEL_TABLE:-}"                        # subject, age, sex, where known; empty: none
WEIGHTS_DIR="${WEIGHTS_DIR:-$HERE/weights}"           # folder of weights that bash_cross_validate.sh wrote
CALIBRATION_TABLE="${CALIBRATION_TABLE:-}"            # ages of 10 or more healthy people among the scans; empty: none
SCANNER="${SCANNER:-}"                                # training site whose scanner was used; empty: none of them
EXPLAIN="${EXPLAIN:-none}"                            # maps of what looks older: occlusion or integrated_gradients
PICTURES="${PICTURES:-true}"                           # false: no picture of each scan
SHARD="${SHARD:-1/1}"                                 # I/N: the I-th of N parts, each with its own OUTPUT_DIR
STRICT="${STRICT:-false}"                             # true: exit status 1 if a scan is unlike those of training, or failed
BRAIN_EXTRACTED="${BRAIN_EXTRACTED:-auto}"            # brains without skulls, not to extract again: auto, true, false
NUM_WORKERS="${NUM_WORKERS:-8}"                       # processes that read and check scans, at most one a core

if (($#)) && [[ "$1" != -* ]]; then
  INPUT="$1"
  shift
fi
set_up_environment requirements.txt requirements-preprocess.txt
exec "$PYTHON" "$HERE/predict.py" \
  --input "$INPUT" \
  --output_dir "$OUTPUT_DIR" \
  --participants "$PARTICIPANTS" \
  --sessions "$SESSIONS" \
  --overwrite "$OVERWRITE" \
  --label_table "$LABEL_TABLE" \
  --weights_dir "$WEIGHTS_DIR" \
  --calibration_table "$CALIBRATION_TABLE" \
  --scanner "$SCANNER" \
  --explain "$EXPLAIN" \
  --shard "$SHARD" \
  --strict "$STRICT" \
  --pictures "$PICTURES" \
  --brain_extracted "$BRAIN_EXTRACTED" \
  --num_workers "$NUM_WORKERS" \
  "$@"
