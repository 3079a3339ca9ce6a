#!/usr/bin/env bash
# Cross-validate both stages: everybody is estimated by networks that never saw the person.
# With WEIGHTS_DIR, weights for bash_predict.sh are then trained on everybody.
# Edit the variables, or set them in the environment; further flags are passed on.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/bash_setup.sh"

SCAN_FOLDER="${SCAN_FOLDER:-preprocessed}"            # prepared scans, such as bash_preprocess.sh writes
LABEL_TABLE="${LABEL_TABLE:-labels.csv}"              # subject, age in years, sex
OUTPUT_DIR="${OUTPUT_DIR:-runs/cross_validation}"     # folder for everything; a second call goes on with it
FOLDS="${FOLDS:-5}"                                   # parts, each tested by networks trained on the others
MEMBERS="${MEMBERS:-1}"                               # cascades of other seeds, whose estimates are averaged
STAGES="${STAGES:-2}"                                 # 1: the first stage alone
SEED="${SEED:-0}"                                     # of the folds, and of the first member
FLAGS="${FLAGS:-}"                                    # flags of both training scripts, such as "--epochs 20"
FIRST_STAGE_FLAGS="${FIRST_STAGE_FLAGS:-}"            # flags of train_first_stage.py alone
SECOND_STAGE_FLAGS="${SECOND_STAGE_FLAGS:-}"          # flags of train_second_stage.py alone
WEIGHTS_DIR="${WEIGHTS_DIR:-}"                        # folder for weights trained on everybody; empty: none
DATA_NOTICE="${DATA_NOTICE:-}"                        # name, source and licence of the data, for the model card
PRECISION="${PRECISION:-auto}"                        # bfloat16 halves the time on a CPU that has it
NUM_WORKERS="${NUM_WORKERS:-8}"                       # processes that read scans
CACHE_FOLDER="${CACHE_FOLDER-runs/cache}"             # scans kept ready after the first reading; empty: none

"$PYTHON" "$HERE/cross_validate.py" \
  --scan_folder "$SCAN_FOLDER" \
  --label_table "$LABEL_TABLE" \
  --output_dir "$OUTPUT_DIR" \
  --folds "$FOLDS" \
  --members "$MEMBERS" \
  --stages "$STAGES" \
  --seed "$SEED" \
  --flags="$FLAGS" \
  --first_stage_flags="$FIRST_STAGE_FLAGS" \
  --second_stage_flags="$SECOND_STAGE_FLAGS" \
  --weights_dir "$WEIGHTS_DIR" \
  --data_notice "$DATA_NOTICE" \
  --precision "$PRECISION" \
  --num_workers "$NUM_WORKERS" \
  --cache_folder "$CACHE_FOLDER" \
  "$@"
