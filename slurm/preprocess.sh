#!/usr/bin/env bash
# Preprocess raw scans in a job array; its elements share the output folder:
#   INPUT=/shared/raw OUTPUT_DIR=/shared/preprocessed sbatch --array=1-32 slurm/preprocess.sh
# The variables of bash_preprocess.sh work here, too; further flags are passed on. Finished scans are not done again, so
# an element that failed can be submitted alone: SHARDS=32 ... sbatch --array=3 slurm/preprocess.sh
#SBATCH --job-name=tsan-preprocess
#SBATCH --array=1-16
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.log
set -euo pipefail
source slurm/common.sh

SHARD="$(shard)" CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES-}" run_or_requeue bash bash_preprocess.sh "$@"
