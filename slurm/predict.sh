#!/usr/bin/env bash
# Estimate brain ages in a job array; each element writes a folder of its own, shard_1, shard_2, ... in OUTPUT_DIR:
#   INPUT=/shared/preprocessed OUTPUT_DIR=/shared/ages PICTURES=false sbatch --array=1-8 slurm/predict.sh
# The variables of bash_predict.sh work here, too; further flags are passed on. The analysis reads all tables at once
# (PREDICTIONS="/shared/ages/shard_*/predictions.csv"); docs/clusters.md has a command that makes one of them.
#SBATCH --job-name=tsan-predict
#SBATCH --array=1-8
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.log
set -euo pipefail
source slurm/common.sh

export OUTPUT_DIR="${OUTPUT_DIR:-predictions}/shard_$SLURM_ARRAY_TASK_ID"
SHARD="$(shard)" run_or_requeue bash bash_predict.sh "$@"
