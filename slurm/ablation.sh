#!/usr/bin/env bash
# Run the ablation in a job array, whose elements share its rows, folds and seeds. Rows of the second stage build on the
# first stage of another one, so a second array finishes what the first had to leave:
#   first=$(sbatch --parsable --array=1-33 slurm/ablation.sh)
#   sbatch --array=1-33 --dependency="afterany:$first" slurm/ablation.sh
# The variables of bash_ablation.sh and of the trainings work here, too; further flags are passed on.
#SBATCH --job-name=tsan-ablation
#SBATCH --array=1-16
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

SHARD="$(shard)" run_or_requeue bash bash_ablation.sh "$@"
