# A small ScaleDense at 4 mm, for one or two hundred scans of several scanners, that is to hold on others, too: tissue
# means at fixed values, and random changes of intensity. How it was found: docs/results.md.
# shellcheck shell=bash
: "${FILTERS:=2}" "${BLOCKS:=4}" "${VOXEL_SIZE:=4}" "${FLIP_AVERAGING:=true}" "${NORMALIZATION:=tissue}"
: "${AUGMENTATION:=flip,rotation,scaling,blur,erosion,contrast,gain,bias_field,noise}"
if [[ "$STAGE" == first ]]; then
  : "${EPOCHS:=40}" "${LEARNING_RATE:=3e-3}"
else
  : "${EPOCHS:=10}"
fi
