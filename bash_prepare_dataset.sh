#!/usr/bin/env bash
# Split preprocessed scans by person into training, validation and test sets, with their labels.
# Edit the variables, or set them in the environment; further flags are passed on.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/bash_setup.sh"

PREPROCESSED="${PREPROCESSED:-preprocessed}"          # folder of bash_preprocess.sh or of fsl_anat
LABEL_TABLE="${LABEL_TABLE:-labels.csv}"              # of IXI, OASIS, ADNI, Cam-CAN, BIDS; or subject_id, age, sex
OUTPUT_DIR="${OUTPUT_DIR:-data}"                      # folder for train/, valid/, test/, labels.csv, splits.csv
FRACTIONS="${FRACTIONS:-70,15,15}"                    # percent of the persons: training, validation, test
SITE_COLUMN="${SITE_COLUMN:-}"                        # column of the table to balance over the splits, too; empty: none
SEED="${SEED:-0}"                                     # random seed of the split

exec "$PYTHON" "$HERE/prepare_dataset.py" \
  --preprocessed "$PREPROCESSED" \
  --label_table "$LABEL_TABLE" \
  --output_dir "$OUTPUT_DIR" \
  --fractions "$FRACTIONS" \
  --site_column "$SITE_COLUMN" \
  --seed "$SEED" \
  "$@"
