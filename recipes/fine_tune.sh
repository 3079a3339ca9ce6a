# Go on from trained weights with tens of scans of one's own scanner: a low rate, few epochs, mild changes.
# INITIAL_WEIGHTS is the folder of weights of this project, unless it is set. Measured in docs/results.md.
# shellcheck shell=bash
: "${INITIAL_WEIGHTS:=$HERE/weights}" "${LEARNING_RATE:=3e-4}" "${BATCH_SIZE:=8}" "${WARMUP_EPOCHS:=1}"
if [[ "$STAGE" == first ]]; then
  : "${EPOCHS:=20}"
else
  : "${EPOCHS:=10}"
fi
