#!/usr/bin/env bash
# Train the second stage: the residual to the first stage's discretized ages.
# Edit the variables, or set them in the environment; further flags are passed on:
#   RECIPE=recipes/small_cohort.sh DATA=/path/to/data bash bash_train_second_stage.sh --resume
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/bash_setup.sh"
source_recipe second  # if RECIPE names one: it sets variables that are not set yet

# ---- data ----
DATA="${DATA:-data}"                                  # folder with train/, valid/, test/, labels.csv
TRAIN_FOLDER="${TRAIN_FOLDER:-$DATA/train}"           # scans to train on, .nii or .nii.gz
VALID_FOLDER="${VALID_FOLDER-$DATA/valid}"            # scans to watch the training by; empty: none
LABEL_TABLE="${LABEL_TABLE:-$DATA/labels.csv}"        # subject, age in years, sex; .csv .tsv .xlsx .xls
OUTPUT_DIR="${OUTPUT_DIR:-runs/second_stage}"         # folder of the run, new for each run
FIRST_STAGE_CHECKPOINT="${FIRST_STAGE_CHECKPOINT:-runs/first_stage/best.pt}"  # of the trained first stage
DISCRETIZED_AGE_FOLDER="${DISCRETIZED_AGE_FOLDER:-$(dirname "$FIRST_STAGE_CHECKPOINT")}"  # of the .npy tables
START_FROM_FIRST_STAGE="${START_FROM_FIRST_STAGE:-true}"  # start with the first stage's weights; false: new weights
AGE_JITTER="${AGE_JITTER:-6}"                         # years, SD of the error added to in-sample ages; 0: none
AGE_INTERVAL="${AGE_INTERVAL:-5}"                     # years, step of the discretized ages; as in the first stage

# ---- network ----
INITIAL_WEIGHTS="${INITIAL_WEIGHTS:-}"                # to start from: folder of weights or best.pt; empty: new ones
FREEZE_BLOCKS="${FREEZE_BLOCKS:-0}"                   # stem and first blocks that keep them; 0: all is trained
INITIALIZATION="${INITIALIZATION:-live}"              # live: starts at the mean age; released: as the authors'

# ---- loss ----
LOSS="${LOSS:-mse}"                                   # error of the ages: mse or mae
RANKING="${RANKING:-soft}"                            # soft, sodeep (needs SORTER) or none
RANK_TEMPERATURE="${RANK_TEMPERATURE:-1}"             # years; smaller makes soft ranks sharper
SORTER="${SORTER:-}"                                  # of bash_train_sorter.sh, of length BATCH_SIZE; empty: none
RANKING_WEIGHT="${RANKING_WEIGHT:-10}"                # lambda, of ranking and age difference together; 0: neither
AGE_DIFFERENCE_WEIGHT="${AGE_DIFFERENCE_WEIGHT:-1}"   # beta of the paper

# ---- training ----
EPOCHS="${EPOCHS:-20}"                                # passes over the training set, at most; more than WARMUP_EPOCHS
BATCH_SIZE="${BATCH_SIZE:-16}"                        # scans in a batch, of each process; 16 fit a GPU of 24 GB
ACCUMULATION_STEPS="${ACCUMULATION_STEPS:-1}"         # batches whose gradients are averaged for a step
BATCHES="${BATCHES:-stratified}"                      # stratified by age, or shuffled
AUGMENTATION="${AUGMENTATION:-flip,gain,gamma}"       # some of the names that --help lists, or none
OPTIMIZER="${OPTIMIZER:-adamw}"                       # adamw, adam or sgd
LEARNING_RATE="${LEARNING_RATE:-3e-4}"                # the highest
WEIGHT_DECAY="${WEIGHT_DECAY:-1e-2}"                  # decoupled (adamw), or L2 penalty (adam, sgd)
AMSGRAD="${AMSGRAD:-false}"                           # of adam and adamw
SCHEDULER="${SCHEDULER:-cosine}"                      # cosine, plateau or constant
WARMUP_EPOCHS="${WARMUP_EPOCHS:-1}"                   # epochs of rising rate; 0 for plateau
KEEP="${KEEP:-last}"                                  # weights of the last epoch, or the best by validation MAE
RECALIBRATE="${RECALIBRATE:-true}"                    # recompute batch norm's statistics before evaluation
SYNC_BATCH_NORM="${SYNC_BATCH_NORM:-true}"            # of several PROCESSES: statistics over the scans of all
SEED="${SEED:-0}"                                     # of everything random

# ---- machine ----
PRECISION="${PRECISION:-auto}"                        # bfloat16, float32, or auto: bfloat16 on GPUs from Ampere on
ACTIVATION_CHECKPOINTING="${ACTIVATION_CHECKPOINTING:-false}"  # recompute blocks in the backward pass, to save memory
FUSE="${FUSE:-auto}"                                   # torch.compile on CUDA: auto (from 5,000 steps on), true, false
DETERMINISTIC="${DETERMINISTIC:-false}"               # on CUDA, whether equal runs give equal bits; slower
NUM_WORKERS="${NUM_WORKERS:-8}"                       # processes that read scans
CACHE_FOLDER="${CACHE_FOLDER-$DATA/cache}"            # decoded scans; empty: decode them each time
export CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES-0}"  # which GPUs; empty: the CPU
PROCESSES="${PROCESSES:-1}"                           # on this machine: one for each GPU in CUDA_VISIBLE_DEVICES
NODES="${NODES:-1}"                                   # machines; docs/clusters.md explains the use of several
NODE_RANK="${NODE_RANK:-0}"                           # which of them this is: 0, 1, ...
RENDEZVOUS="${RENDEZVOUS:-}"                          # address and port of machine 0, such as gpu1:29500; empty: none
MAX_RESTARTS="${MAX_RESTARTS:-0}"                     # how often to go on from last.pt after a process has died

choose_launcher
exec "${launcher[@]}" "$HERE/train_second_stage.py" \
  --train_folder "$TRAIN_FOLDER" \
  --valid_folder "$VALID_FOLDER" \
  --label_table "$LABEL_TABLE" \
  --output_dir "$OUTPUT_DIR" \
  --first_stage_checkpoint "$FIRST_STAGE_CHECKPOINT" \
  --discretized_age_folder "$DISCRETIZED_AGE_FOLDER" \
  --start_from_first_stage "$START_FROM_FIRST_STAGE" \
  --age_jitter "$AGE_JITTER" \
  --age_interval "$AGE_INTERVAL" \
  --initial_weights "$INITIAL_WEIGHTS" \
  --freeze_blocks "$FREEZE_BLOCKS" \
  --initialization "$INITIALIZATION" \
  --loss "$LOSS" \
  --ranking "$RANKING" \
  --rank_temperature "$RANK_TEMPERATURE" \
  --sorter "$SORTER" \
  --ranking_weight "$RANKING_WEIGHT" \
  --age_difference_weight "$AGE_DIFFERENCE_WEIGHT" \
  --epochs "$EPOCHS" \
  --batch_size "$BATCH_SIZE" \
  --accumulation_steps "$ACCUMULATION_STEPS" \
  --batches "$BATCHES" \
  --augmentation "$AUGMENTATION" \
  --optimizer "$OPTIMIZER" \
  --learning_rate "$LEARNING_RATE" \
  --weight_decay "$WEIGHT_DECAY" \
  --amsgrad "$AMSGRAD" \
  --scheduler "$SCHEDULER" \
  --warmup_epochs "$WARMUP_EPOCHS" \
  --keep "$KEEP" \
  --recalibrate "$RECALIBRATE" \
  --sync_batch_norm "$SYNC_BATCH_NORM" \
  --seed "$SEED" \
  --precision "$PRECISION" \
  --fuse "$FUSE" \
  --deterministic "$DETERMINISTIC" \
  --activation_checkpointing "$ACTIVATION_CHECKPOINTING" \
  --num_workers "$NUM_WORKERS" \
  --cache_folder "$CACHE_FOLDER" \
  "$@"
