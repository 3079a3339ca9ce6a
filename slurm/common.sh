# Sourced by the other scripts of this folder. sbatch copies them, and starts the copies in the folder of its call,
# which must be that of this project.
# shellcheck shell=bash

export PYTHONUNBUFFERED=1  # lines reach the log at once

# Run a command, and hand it the signals that this script gets. Status 138 means that SIGUSR1 has told it that the time
# is nearly up, and that it can go on: then the job is queued again.
run_or_requeue() {
  local status=0 running
  "$@" &
  running=$!
  trap 'kill -USR1 "$running"' USR1
  trap 'kill -TERM "$running"' TERM  # of scancel, or of Slurm, which queues a preempted job again by itself
  wait "$running" || status=$?
  while kill -0 "$running" 2>/dev/null; do  # a signal ends wait, not the command
    status=0
    wait "$running" || status=$?
  done
  if ((status == 138)); then
    scontrol requeue "${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}"
  fi
  exit "$status"
}

# Print which share of the work this element of a job array does, such as 2/8. SHARDS, the number of shares, must be
# given if only some elements are submitted: SHARDS=8 sbatch --array=3 ...
shard() {
  echo "$SLURM_ARRAY_TASK_ID/${SHARDS:-$SLURM_ARRAY_TASK_MAX}"
}
