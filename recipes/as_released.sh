# Train as the authors' released code does: RECIPE=recipes/as_released.sh bash bash_train_first_stage.sh
# shellcheck shell=bash
# What differs all the same, and why: docs/differences.md.
: "${INITIALIZATION:=released}" "${AGE_INTERVAL:=5}"
: "${LOSS:=mse}" "${RANKING_WEIGHT:=10}" "${AGE_DIFFERENCE_WEIGHT:=1}"
: "${RANKING:=sodeep}" "${SORTER:=runs/sorter_32.pt}"  # made by LENGTH=32 bash bash_train_sorter.sh
: "${EPOCHS:=150}" "${BATCH_SIZE:=32}" "${ACCUMULATION_STEPS:=1}" "${BATCHES:=shuffled}" "${AUGMENTATION:=none}"
: "${SCHEDULER:=plateau}" "${WARMUP_EPOCHS:=0}" "${KEEP:=best}" "${RECALIBRATE:=false}" "${WEIGHT_DECAY:=5e-4}"
: "${PRECISION:=float32}"
if [[ "$STAGE" == first ]]; then
  : "${MODEL:=scaledense}" "${BLOCKS:=5}" "${FILTERS:=8}" "${USE_SEX:=true}"
  : "${DENSE_CONNECTIONS:=true}" "${ASYMMETRIC_CONVOLUTIONS:=true}" "${SQUEEZE_EXCITATION:=true}"
  : "${VOXEL_SIZE:=2}" "${FIELD_OF_VIEW:=whole}" "${NORMALIZATION:=brain}" "${FLIP_AVERAGING:=false}"
  : "${OPTIMIZER:=adam}" "${AMSGRAD:=true}" "${LEARNING_RATE:=1e-3}"
else
  : "${OPTIMIZER:=sgd}" "${AMSGRAD:=false}" "${LEARNING_RATE:=1e-5}"
  : "${START_FROM_FIRST_STAGE:=false}" "${AGE_JITTER:=0}"
fi
