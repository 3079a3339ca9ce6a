#!/usr/bin/env bash
# Cross-validate in a job array; with 5 folds and one member, each of 5 elements trains one fold:
#   SCAN_FOLDER=/shared/preprocessed LABEL_TABLE=labels.csv sbatch --array=1-5 slurm/cross_validate.sh
# The variables of bash_cross_validate.sh and of the trainings work here, too; further flags are passed on. The element
# that ends last reports on all people; if none did, call bash_cross_validate.sh, which trains what is missing.
#SBATCH --job-name=tsan-cross-validate
#SBATCH --array=1-5
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

SHARD="$(shard)" run_or_requeue bash bash_cross_validate.sh "$@"
