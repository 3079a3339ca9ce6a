# Train as the authors' released code does: RECIPE=recipes/as_released.sh bash bash_train_first_stage.sh
# shellcheck shell=bash
# What differs all the same, and why: docs/differences.md.
: "${FIELD_OF_VIEW:=whole}" "${INITIALIZATION:=released}"
: "${RANKING:=sodeep}" "${SORTER:=runs/sorter_32.pt}"  # made by LENGTH=32 bash bash_train_sorter.sh
: "${EPOCHS:=150}" "${BATCH_SIZE:=32}" "${BATCHES:=shuffled}" "${AUGMENTATION:=none}"
: "${SCHEDULER:=plateau}" "${WARMUP_EPOCHS:=0}" "${KEEP:=best}" "${RECALIBRATE:=false}" "${WEIGHT_DECAY:=5e-4}"
: "${PRECISION:=float32}"
if [[ "$STAGE" == first ]]; then
  : "${OPTIMIZER:=adam}" "${AMSGRAD:=true}" "${LEARNING_RATE:=1e-3}"
else
  : "${OPTIMIZER:=sgd}" "${LEARNING_RATE:=1e-5}" "${START_FROM_FIRST_STAGE:=false}" "${AGE_JITTER:=0}"
fi
