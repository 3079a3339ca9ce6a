#!/usr/bin/env bash
# Train a SoDeep sorter for RANKING=sodeep. The default, RANKING=soft, needs none.
# Edit the variables, or set them in the environment; further flags are passed on.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/bash_setup.sh"

LENGTH="${LENGTH:-16}"                                # ages ranked at once: the BATCH_SIZE of the training
OUTPUT="${OUTPUT:-runs/sorter_$LENGTH.pt}"            # file for the sorter
OVERWRITE="${OVERWRITE:-false}"                       # true: replace results of an earlier call
MODEL_TYPE="${MODEL_TYPE:-lstmla}"                    # lstm (128 units) or lstmla (512, the authors')
YOUNGEST="${YOUNGEST:-0}"                             # years, lowest age that is drawn
OLDEST="${OLDEST:-110}"                               # years, highest age that is drawn
STEPS="${STEPS:-3000}"                                # steps of the optimizer
export CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES-0}"  # which GPU; empty: the CPU

exec "$PYTHON" "$HERE/train_sorter.py" \
  --length "$LENGTH" \
  --output "$OUTPUT" \
  --overwrite "$OVERWRITE" \
  --model_type "$MODEL_TYPE" \
  --youngest "$YOUNGEST" \
  --oldest "$OLDEST" \
  --steps "$STEPS" \
  "$@"
