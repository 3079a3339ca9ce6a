#!/usr/bin/env bash
# Measure what each part of TSAN is worth: its losses, its network, its second stage. docs/ablation.md shows the results.
# Edit the variables, or set them in the environment; further flags are passed on. The variables of
# bash_train_first_stage.sh and bash_train_second_stage.sh work here, too, in the environment or in a recipe, but for
# EPOCHS; those of the rows (benchmarks/ablation_rows.py) win. A second call goes on where the first was stopped.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/bash_setup.sh"

DATA="${DATA:-data}"                                  # of bash_make_demo_cohort.sh, or of bash_prepare_dataset.sh
SCAN_FOLDER="${SCAN_FOLDER:-$DATA/train $DATA/valid $DATA/test}"  # folders of prepared scans; their people are split anew
LABEL_TABLE="${LABEL_TABLE:-$DATA/labels.csv}"        # subject, age in years, sex
OUTPUT_DIR="${OUTPUT_DIR:-runs/ablation}"             # folder for everything
export RECIPE="${RECIPE-recipes/small_cohort.sh}"     # variables that all rows share; empty: the default network
ROWS="${ROWS:-all}"                                   # names of rows, separated by commas, or all
FOLDS="${FOLDS:-3}"                                   # parts of the people, each tested once
SEEDS="${SEEDS:-1}"                                   # trainings of each row in each fold
FIRST_EPOCHS="${FIRST_EPOCHS:-30}"                    # passes over the training people in the first stage
SECOND_EPOCHS="${SECOND_EPOCHS:-10}"                  # passes over the training people in the second stage
NARROW="${NARROW:-40,60}"                             # range of ages, years, for the rows with a narrow one
SORTER="${SORTER:-runs/sorter_16.pt}"                 # of bash_train_sorter.sh, of the length of a batch
SHARD="${SHARD:-1/1}"                                 # I/N: the I-th of N parts of the trainings, as a job array
JOBS="${JOBS:-1}"                                     # trainings side by side; they share the GPUs, or the cores
NUM_WORKERS="${NUM_WORKERS:-8}"                       # processes that read scans, of each training
CACHE_FOLDER="${CACHE_FOLDER-runs/cache}"             # decoded scans; empty: decode them each time
export CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES-0}"  # which GPUs, such as 0,1; empty: the CPU

exec "$PYTHON" "$HERE/benchmarks/ablation.py" \
  --scan_folder "$SCAN_FOLDER" \
  --label_table "$LABEL_TABLE" \
  --output_dir "$OUTPUT_DIR" \
  --rows "$ROWS" \
  --folds "$FOLDS" \
  --seeds "$SEEDS" \
  --first_epochs "$FIRST_EPOCHS" \
  --second_epochs "$SECOND_EPOCHS" \
  --narrow "$NARROW" \
  --sorter "$SORTER" \
  --shard "$SHARD" \
  --jobs "$JOBS" \
  --num_workers "$NUM_WORKERS" \
  --cache_folder "$CACHE_FOLDER" \
  "$@"
