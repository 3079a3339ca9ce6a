#!/usr/bin/env bash
# Started by srun on each machine of a job: run a bash script of this project there.
set -euo pipefail
NODE_RANK="$SLURM_NODEID" exec bash "$@"
