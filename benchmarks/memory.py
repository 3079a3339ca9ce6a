"""Estimate the peak memory of a training step by network, voxel size and batch, without a GPU.

python -m benchmarks.memory [--precision float32]

`utils.training.memory` explains what is counted and what is not.
"""

import argparse

from model.conventions import MODELS
from model.scaledense import NetworkConfig
from utils.data.images import brain_box, model_grid
from utils.training.memory import estimate_memory

SIZES = ((2, 5), (4, 4))  # voxel size in mm, blocks
BATCHES = (1, 4, 8, 16, 32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=("bfloat16", "float32"), default="bfloat16", help="of the network")
    precision = parser.parse_args().precision
    print(f"GiB, {precision}, the box of the brain, 8 filters\n")
    print("| network | voxels | blocks | parameters | " + " | ".join(f"batch {size}" for size in BATCHES) + " |")
    print("| --- " * (4 + len(BATCHES)) + "|")
    for model in MODELS:
        for voxel_size, blocks in SIZES:
            config = NetworkConfig(
                1, model, volume_shape=model_grid(voxel_size).shape, blocks=blocks, field_of_view=brain_box(voxel_size)
            )
            estimates = [estimate_memory(config, batch, precision) for batch in BATCHES]
            cells = " | ".join(f"{estimate['peak'] / 2**30:.1f}" for estimate in estimates)
            print(f"| `{model}` | {voxel_size} mm | {blocks} | {estimates[0]['parameters'] / 1e6:.1f} M | {cells} |")


if __name__ == "__main__":
    main()
