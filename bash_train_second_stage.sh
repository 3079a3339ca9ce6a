#!/usr/bin/env bash
# Train the second stage: the residual to the first stage's discretized ages.
# Edit the variables, or set them in the environment; further flags are passed on:
#   BATCH_SIZE=16 bash bash_train_second_stage.sh --resume
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/bash_setup.sh"

# ---- data ----
DATA="${DATA:-data}"                                  # folder with train/, valid/, labels.csv
TRAIN_FOLDER="${TRAIN_FOLDER:-$DATA/train}"           # scans to train on, .nii or .nii.gz
VALID_FOLDER="${VALID_FOLDER-$DATA/valid}"           # scans to watch the training by; empty: none
LABEL_TABLE="${LABEL_TABLE:-$DATA/labels.csv}"        # subject, age in years, sex; .csv .tsv .xlsx .xls
OUTPUT_DIR="${OUTPUT_DIR:-runs/second_stage}"         # folder of the run, new for each run
FIRST_STAGE_CHECKPOINT="${FIRST_STAGE_CHECKPOINT:-runs/first_stage/best.pt}"  # of the trained first stage
DISCRETIZED_AGE_FOLDER="${DISCRETIZED_AGE_FOLDER:-}"  # of <split>_discretized_age.npy; empty: beside the checkpoint

# ---- recipe: what the empty variables below are then ----
RECIPE="${RECIPE:-small_cohort}"                      # small_cohort (about a hundred scans), or paper: as the authors

# ---- network ----
MODEL="${MODEL:-}"                                    # perceptron, scaledense, or scaledense_paper
USE_SEX="${USE_SEX:-true}"                            # whether the network is told the sex

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
AGE_INTERVAL="${AGE_INTERVAL:-5}"                     # years, step of the discretized ages; as in the first stage
SEED="${SEED:-0}"                                     # of everything random
NUM_WORKERS="${NUM_WORKERS:-8}"                       # processes that read scans
CACHE_FOLDER="${CACHE_FOLDER-$DATA/cache}"            # scans kept ready after the first reading; empty: none
export CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES-0}"  # which GPUs; empty: the CPU
PROCESSES="${PROCESSES:-1}"                           # one for each GPU in CUDA_VISIBLE_DEVICES

launcher=("$PYTHON")
if ((PROCESSES > 1)); then
  launcher=("$PYTHON" -m torch.distributed.run --standalone --nproc_per_node "$PROCESSES")
fi
"${launcher[@]}" "$HERE/train_second_stage.py" \
  --train_folder "$TRAIN_FOLDER" \
  --valid_folder "$VALID_FOLDER" \
  --label_table "$LABEL_TABLE" \
  --output_dir "$OUTPUT_DIR" \
  --first_stage_checkpoint "$FIRST_STAGE_CHECKPOINT" \
  --discretized_age_folder "$DISCRETIZED_AGE_FOLDER" \
  --recipe "$RECIPE" \
  --model "$MODEL" \
  --use_sex "$USE_SEX" \
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
  --seed "$SEED" \
  --num_workers "$NUM_WORKERS" \
  --cache_folder "$CACHE_FOLDER" \
  "$@"
