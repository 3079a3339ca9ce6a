#!/usr/bin/env bash
# The whole cascade on SIMULATED brains: sets up the environment, simulates a small cohort,
# trains and tests both stages, reports on the brain-age gap, and says where everything lies. A second call
# reuses the cohort and the trained stages.
# With patients: SUBJECTS=600 PATIENTS=60 DATA=data_600 RUNS=runs/demo_600 bash bash_demo.sh
# Edit the variables, or set them in the environment.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/bash_setup.sh"

if (($#)); then
  echo "error: bash_demo.sh takes no flags; set its variables, such as SUBJECTS=200 bash bash_demo.sh" >&2
  exit 2
fi
export DATA="${DATA:-data}"                           # folder for the simulated cohort
RUNS="${RUNS:-runs/demo}"                             # folder for both stages' runs
export SUBJECTS="${SUBJECTS:-120}"                    # simulated brains
export PATIENTS="${PATIENTS:-0}"                      # simulated brains of each patient group, MCI and AD
export VOXEL_SIZE="${VOXEL_SIZE:-4}"                  # mm
export RECIPE="${RECIPE:-$HERE/recipes/small_cohort.sh}"  # variables of both trainings
export NUM_WORKERS="${NUM_WORKERS:-2}"                # processes that simulate and read scans

set_up_environment requirements.txt
export PYTHON
started=$SECONDS
FIRST_STAGE_CHECKPOINT="$RUNS/first_stage/best.pt"
export FIRST_STAGE_CHECKPOINT
export OVERWRITE=true                                 # tests and the report are made again in seconds

OUTPUT_DIR="$DATA" bash "$HERE/bash_make_demo_cohort.sh"
OUTPUT_DIR="$RUNS/first_stage" bash "$HERE/bash_train_first_stage.sh" --resume
OUTPUT_DIR="$RUNS/second_stage" bash "$HERE/bash_train_second_stage.sh" --resume
CHECKPOINT="$FIRST_STAGE_CHECKPOINT" OUTPUT_DIR="$RUNS/first_stage/test" bash "$HERE/bash_test_first_stage.sh"
tested=()
for split in test valid patients; do
  [[ -d "$DATA/$split" ]] || continue                 # no patients were asked for
  TEST_FOLDER="$DATA/$split" CHECKPOINT="$RUNS/second_stage/best.pt" OUTPUT_DIR="$RUNS/second_stage/$split" \
    bash "$HERE/bash_test_second_stage.sh"
  [[ $split == valid ]] || tested+=("$RUNS/second_stage/$split/predictions.csv")
done
# The correction and the intervals are fitted on the validation brains, which choose nothing in the small recipe.
quoted() { local path; for path in "$@"; do printf "'%s' " "${path//\'/\'\\\'\'}"; done; }  # as the program splits them
VALID="$(quoted "$RUNS/second_stage/valid/predictions.csv")"
REPORT="$RUNS/brain_age_gap/report.html"
corrections=linear-gap,linear-prediction,covariate
if (($(find "$DATA/valid" -name "*.nii.gz" | wc -l) < 10)); then
  echo "note: fewer than 10 validation brains allow no correction and no intervals; set SUBJECTS to 70 or more"
  corrections=none VALID=""
fi
PREDICTIONS="$(quoted "${tested[@]}")" LABEL_TABLE="$DATA/labels.csv" OUTPUT_DIR="$RUNS/brain_age_gap" \
  CORRECTION="$corrections" FIT_PREDICTIONS="$VALID" CALIBRATION_PREDICTIONS="$VALID" \
  CHECKPOINTS="$(quoted "$FIRST_STAGE_CHECKPOINT" "$RUNS/second_stage/best.pt")" \
  bash "$HERE/bash_analyse_brain_age_gap.sh" || REPORT="none, for the reason above"

echo
echo "Done in $((SECONDS - started)) seconds, on simulated brains."
echo "  pictures:    $RUNS/first_stage/test/brain_age.png and $RUNS/second_stage/test/brain_age.png"
echo "  predictions: $RUNS/second_stage/test/predictions.csv"
echo "  report:      $REPORT"
echo "  curves:      \"$PYTHON\" -m tensorboard.main --logdir \"$RUNS\""
[[ -f "$REPORT" ]]                                    # else the demo has failed
