#!/usr/bin/env bash
# Cross-validate both stages: each subject is estimated by networks that never saw the person.
# With WEIGHTS_DIR, weights for bash_predict.sh are then trained on all subjects.
# Edit the variables, or set them in the environment; further flags are passed on. The variables of
# bash_train_first_stage.sh and bash_train_second_stage.sh work here, too, in the environment or in a recipe:
#   RECIPE=recipes/small_cohort.sh RANKING_WEIGHT=0 SCAN_FOLDER=preprocessed bash bash_cross_validate.sh
# Only FOLDS means another number here; a recipe can set that of the first stage.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/bash_setup.sh"

SCAN_FOLDER="${SCAN_FOLDER:-preprocessed}"            # prepared scans, such as bash_preprocess.sh writes
LABEL_TABLE="${LABEL_TABLE:-labels.csv}"              # subject, age in years, sex
OUTPUT_DIR="${OUTPUT_DIR:-runs/cross_validation}"     # folder for everything; a second call goes on with it
FOLDS="${FOLDS:-5}"                                   # parts, each tested by networks trained on the others
HOLD_OUT="${HOLD_OUT:-people}"                        # who is tested: people (K parts), sites (each in turn) or both
SITE_COLUMN="${SITE_COLUMN:-}"                        # column of the label table: scanner or center; empty: none
MEMBERS="${MEMBERS:-1}"                               # cascades of other seeds, whose estimates are averaged
STAGES="${STAGES:-2}"                                 # 1: the first stage alone
SEED="${SEED:-0}"                                     # of the folds, and of the first member
WEIGHTS_DIR="${WEIGHTS_DIR:-}"                        # folder for weights trained on all subjects; empty: none
DATA_NOTICE="${DATA_NOTICE:-}"                        # name, source and licence of the data, for the model card
REMARK="${REMARK:-}"                                  # paragraph for the top of the model card; empty: none
SHARD="${SHARD:-1/1}"                                 # I/N: the I-th of N parts of the networks, as a job array
JOBS="${JOBS:-1}"                                     # networks that are trained side by side
NUM_WORKERS="${NUM_WORKERS:-8}"                       # processes that read scans
CACHE_FOLDER="${CACHE_FOLDER-runs/cache}"             # decoded scans; empty: decode them each time

exec "$PYTHON" "$HERE/cross_validate.py" \
  --scan_folder "$SCAN_FOLDER" \
  --label_table "$LABEL_TABLE" \
  --output_dir "$OUTPUT_DIR" \
  --folds "$FOLDS" \
  --hold_out "$HOLD_OUT" \
  --site_column "$SITE_COLUMN" \
  --members "$MEMBERS" \
  --stages "$STAGES" \
  --seed "$SEED" \
  --weights_dir "$WEIGHTS_DIR" \
  --data_notice "$DATA_NOTICE" \
  --remark "$REMARK" \
  --shard "$SHARD" \
  --jobs "$JOBS" \
  --num_workers "$NUM_WORKERS" \
  --cache_folder "$CACHE_FOLDER" \
  "$@"
