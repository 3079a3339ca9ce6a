#!/usr/bin/env bash
# The whole cascade on SIMULATED brains: sets up the environment, simulates a small cohort,
# trains and tests both stages, and says where everything lies. A second call reuses what is there.
# Edit the variables, or set them in the environment.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/bash_setup.sh"

export DATA="${DATA:-data}"                           # folder for the simulated cohort
RUNS="${RUNS:-runs/demo}"                             # folder for both stages' runs
export SUBJECTS="${SUBJECTS:-120}"                    # simulated brains
export VOXEL_SIZE="${VOXEL_SIZE:-4}"                  # mm
export EPOCHS="${EPOCHS:-20}"                         # of each training
export NUM_WORKERS="${NUM_WORKERS:-2}"                # processes that simulate and read scans

set_up_environment requirements.txt
export PYTHON
started=$SECONDS
FIRST_STAGE_CHECKPOINT="$RUNS/first_stage/best.pt"
export FIRST_STAGE_CHECKPOINT

OUTPUT_DIR="$DATA" bash "$HERE/bash_make_demo_cohort.sh"
OUTPUT_DIR="$RUNS/first_stage" bash "$HERE/bash_train_first_stage.sh" --resume
OUTPUT_DIR="$RUNS/second_stage" bash "$HERE/bash_train_second_stage.sh" --resume
CHECKPOINT="$FIRST_STAGE_CHECKPOINT" OUTPUT_DIR="$RUNS/first_stage/test" bash "$HERE/bash_test_first_stage.sh"
CHECKPOINT="$RUNS/second_stage/best.pt" OUTPUT_DIR="$RUNS/second_stage/test" bash "$HERE/bash_test_second_stage.sh"

echo
echo "Done in $((SECONDS - started)) seconds, on simulated brains."
echo "  pictures:    $RUNS/first_stage/test/brain_age.png and $RUNS/second_stage/test/brain_age.png"
echo "  predictions: $RUNS/second_stage/test/predictions.csv"
echo "  curves:      \"$PYTHON\" -m tensorboard.main --logdir \"$RUNS\""
