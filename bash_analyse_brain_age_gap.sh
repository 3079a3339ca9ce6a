#!/usr/bin/env bash
# Analyse brain ages: accuracy, correction for age, diagnosis, uncertainty, repeated scans; write one report.
# Separate several files by blanks: PREDICTIONS="test.csv patients.csv"; patterns such as runs/*.csv work too.
# Edit the variables, or set them in the environment; further flags are passed on.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/bash_setup.sh"

PREDICTIONS="${PREDICTIONS:-runs/second_stage/test/predictions.csv}"  # brain ages of the test set, including patients
LABEL_TABLE="${LABEL_TABLE:-}"                        # diagnosis, site, sex, session; empty: columns of the predictions
OUTPUT_DIR="${OUTPUT_DIR:-runs/brain_age_gap}"        # folder for report.html, tables and figures
OVERWRITE="${OVERWRITE:-false}"                       # true: replace results of an earlier call
CORRECTION="${CORRECTION:-none}"                      # linear-gap, linear-prediction, covariate; separate by commas
FIT_PREDICTIONS="${FIT_PREDICTIONS:-}"                # healthy subjects outside the test set, for the fit
CORRECTION_FILE="${CORRECTION_FILE:-}"                # corrections.json of an earlier analysis, instead of a fit
CALIBRATION_PREDICTIONS="${CALIBRATION_PREDICTIONS:-}" # the same; their errors give the intervals
HEALTHY_LABEL="${HEALTHY_LABEL:-HC}"                  # diagnosis of healthy subjects
PATIENT_LABELS="${PATIENT_LABELS:-}"                  # diagnoses to compare with them, such as AD,MCI; empty: all
PROTOCOL="${PROTOCOL:-ours}"                          # ours or paper (the classifier of the authors' released script)
MATCH_AGES="${MATCH_AGES:-false}"                     # true: compare pairs of nearly the same age
CHECKPOINTS="${CHECKPOINTS:-}"                        # best.pt of both stages; their subjects must not be tested
WEIGHTS_DIR="${WEIGHTS_DIR:-}"                        # the same for the weights that bash_predict.sh used
SEED="${SEED:-0}"                                     # of bootstrap, folds and permutations

exec "$PYTHON" "$HERE/analyse_brain_age_gap.py" \
  --predictions "$PREDICTIONS" \
  --label_table "$LABEL_TABLE" \
  --output_dir "$OUTPUT_DIR" \
  --overwrite "$OVERWRITE" \
  --correction "$CORRECTION" \
  --fit_predictions "$FIT_PREDICTIONS" \
  --correction_file "$CORRECTION_FILE" \
  --calibration_predictions "$CALIBRATION_PREDICTIONS" \
  --healthy_label "$HEALTHY_LABEL" \
  --patient_labels "$PATIENT_LABELS" \
  --protocol "$PROTOCOL" \
  --match_ages "$MATCH_AGES" \
  --checkpoints "$CHECKPOINTS" \
  --weights_dir "$WEIGHTS_DIR" \
  --seed "$SEED" \
  "$@"
