#!/usr/bin/env bash
# Preprocess raw T1-weighted scans: brains in MNI152 space, 2 mm.
# Edit the variables, or set them in the environment; further flags are passed on.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/bash_setup.sh"

INPUT="${INPUT:-raw}"                                 # a scan, a folder of scans, of BIDS, or of FreeSurfer
OUTPUT_DIR="${OUTPUT_DIR:-preprocessed}"              # folder for the brains, qc.csv, index.html
LAYOUT="${LAYOUT:-flat}"                              # of the results: flat, one file a scan, or bids, a derivative
PARTICIPANTS="${PARTICIPANTS:-}"                      # people to take, such as 01,02; empty: all
SESSIONS="${SESSIONS:-}"                              # sessions to take, such as 1,2; empty: all
OVERWRITE="${OVERWRITE:-false}"                       # true: make scans again that were made with other parameters
REGISTRATION="${REGISTRATION:-affine}"                # affine, as the weights that ship, or nonlinear, as the paper
BRAIN_EXTRACTED="${BRAIN_EXTRACTED:-auto}"            # brains without skulls, not to extract again: auto, true, false
SHARD="${SHARD:-1/1}"                                 # I/N: the I-th of N parts, as a job array does them
STRICT="${STRICT:-false}"                             # true: exit status 1 if a scan is doubtful or failed
NUM_WORKERS="${NUM_WORKERS:-0}"                       # scans at a time; 0: as many as cores and memory allow
export CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES-0}"  # which GPU; empty: the CPU

exec "$PYTHON" "$HERE/preprocess.py" \
  --input "$INPUT" \
  --output_dir "$OUTPUT_DIR" \
  --layout "$LAYOUT" \
  --participants "$PARTICIPANTS" \
  --sessions "$SESSIONS" \
  --overwrite "$OVERWRITE" \
  --registration "$REGISTRATION" \
  --brain_extracted "$BRAIN_EXTRACTED" \
  --shard "$SHARD" \
  --strict "$STRICT" \
  --num_workers "$NUM_WORKERS" \
  "$@"
