#!/usr/bin/env bash
# Train the first stage: brain age from a T1-weighted scan.
# Edit the variables, or set them in the environment; further flags are passed on:
#   BATCH_SIZE=16 bash bash_train_first_stage.sh --resume
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/bash_setup.sh"

# ---- data ----
DATA="${DATA:-data}"                                  # folder with train/, valid/, test/, labels.csv
TRAIN_FOLDER="${TRAIN_FOLDER:-$DATA/train}"           # scans to train on, .nii or .nii.gz
VALID_FOLDER="${VALID_FOLDER-$DATA/valid}"           # scans to watch the training by; empty: none
TEST_FOLDER="${TEST_FOLDER-$DATA/test}"               # scans that get discretized ages too; empty: none
LABEL_TABLE="${LABEL_TABLE:-$DATA/labels.csv}"        # subject, age in years, sex; .csv .tsv .xlsx .xls
OUTPUT_DIR="${OUTPUT_DIR:-runs/first_stage}"          # folder of the run, new for each run

# ---- recipe: what the empty variables below are then ----
RECIPE="${RECIPE:-small_cohort}"                      # small_cohort (about a hundred scans), or paper: as the authors

# ---- network ----
MODEL="${MODEL:-}"                                    # perceptron, scaledense, or scaledense_paper
USE_SEX="${USE_SEX:-true}"                            # whether the network is told the sex
VOXEL_SIZE="${VOXEL_SIZE:-}"                          # mm: 2, or 4
NORMALIZATION="${NORMALIZATION:-}"                    # brain: intensities; local_sd: local deviations

# ---- loss ----
LOSS="${LOSS:-mse}"                                   # mse or mae
RANKING="${RANKING:-soft}"                            # soft, sodeep (needs SORTER) or none
SORTER="${SORTER:-}"                                  # sorter file, of length BATCH_SIZE
RANKING_WEIGHT="${RANKING_WEIGHT:-}"                  # lambda of the paper; 0: no ranking, no age difference
AGE_DIFFERENCE_WEIGHT="${AGE_DIFFERENCE_WEIGHT:-}"    # beta of the paper

# ---- training ----
EPOCHS="${EPOCHS:-}"                                  # passes over the training set, at most
BATCH_SIZE="${BATCH_SIZE:-}"                          # scans in a batch, of each process
LEARNING_RATE="${LEARNING_RATE:-}"                    # the highest
WEIGHT_DECAY="${WEIGHT_DECAY:-}"                      # L2 penalty, or decoupled
SCHEDULER="${SCHEDULER:-}"                            # plateau, cosine or constant
AGE_INTERVAL="${AGE_INTERVAL:-5}"                     # years, step of the discretized ages
FOLDS="${FOLDS:-0}"                                   # further networks for out-of-fold ages; 0: none
SEED="${SEED:-0}"                                     # of everything random
NUM_WORKERS="${NUM_WORKERS:-8}"                       # processes that read scans
CACHE_FOLDER="${CACHE_FOLDER-$DATA/cache}"            # scans kept ready after the first reading; empty: none
export CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES-0}"  # which GPUs; empty: the CPU
PROCESSES="${PROCESSES:-1}"                           # one for each GPU in CUDA_VISIBLE_DEVICES

launcher=("$PYTHON")
if ((PROCESSES > 1)); then
  launcher=("$PYTHON" -m torch.distributed.run --standalone --nproc_per_node "$PROCESSES")
fi
"${launcher[@]}" "$HERE/train_first_stage.py" \
  --train_folder "$TRAIN_FOLDER" \
  --valid_folder "$VALID_FOLDER" \
  --test_folder "$TEST_FOLDER" \
  --label_table "$LABEL_TABLE" \
  --output_dir "$OUTPUT_DIR" \
  --recipe "$RECIPE" \
  --model "$MODEL" \
  --use_sex "$USE_SEX" \
  --voxel_size "$VOXEL_SIZE" \
  --normalization "$NORMALIZATION" \
  --loss "$LOSS" \
  --ranking "$RANKING" \
  --sorter "$SORTER" \
  --ranking_weight "$RANKING_WEIGHT" \
  --age_difference_weight "$AGE_DIFFERENCE_WEIGHT" \
  --epochs "$EPOCHS" \
  --batch_size "$BATCH_SIZE" \
  --learning_rate "$LEARNING_RATE" \
  --weight_decay "$WEIGHT_DECAY" \
  --scheduler "$SCHEDULER" \
  --age_interval "$AGE_INTERVAL" \
  --folds "$FOLDS" \
  --seed "$SEED" \
  --num_workers "$NUM_WORKERS" \
  --cache_folder "$CACHE_FOLDER" \
  "$@"
