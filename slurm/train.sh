#!/usr/bin/env bash
# Train a stage, on one machine or several:
#   sbatch slurm/train.sh first                                    # one GPU
#   sbatch --gpus-per-node=4 slurm/train.sh first                  # four of one machine
#   sbatch --nodes=2 --gpus-per-node=4 slurm/train.sh second       # eight of two machines
#   sbatch --partition=preemptible slurm/train.sh first            # whatever your cluster calls it
# The variables of bash_train_first_stage.sh and bash_train_second_stage.sh work here, too (DATA, OUTPUT_DIR, RECIPE);
# further flags are passed on. Two minutes before the time is up, and when the job is preempted, the training saves; the
# job is queued again and goes on.
#SBATCH --job-name=tsan
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail
source slurm/common.sh

script="bash_train_${1:-first}_stage.sh"
if [[ ! -f "$script" ]]; then
  echo "error: $1: is no stage; give first or second" >&2
  exit 2
fi
export NODES="${SLURM_JOB_NUM_NODES:-1}" PROCESSES="${PROCESSES:-${SLURM_GPUS_ON_NODE:-1}}"
read -r first_node < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export RENDEZVOUS="$first_node:$((20000 + SLURM_JOB_ID % 10000))"
run_or_requeue srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" bash slurm/on_node.sh "$script" --resume "${@:2}"
