# A small ScaleDense at 4 mm, for about a hundred scans or for a CPU. How it was found: docs/results.md.
# shellcheck shell=bash
: "${FILTERS:=2}" "${BLOCKS:=4}" "${VOXEL_SIZE:=4}" "${FLIP_AVERAGING:=true}"
if [[ "$STAGE" == first ]]; then
  : "${EPOCHS:=30}" "${LEARNING_RATE:=3e-3}"
else
  : "${EPOCHS:=10}"
fi
