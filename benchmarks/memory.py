"""Estimate the peak memory of a training step by network, voxel size and batch, without a GPU.

python -m benchmarks.memory [--precision float32]

Nothing is computed: fake tensors have shapes and types alone. Counted are

    weights, gradients and AdamW's two moments: 16 bytes a parameter
  + what the forward pass keeps for the backward pass, autocast's copies of the weights included
  + three times the largest of these tensors, for the gradients on their way

Not counted are the CUDA context, cuDNN's workspace and a fragmented allocator, 1 to 3 GB.
"""

import argparse

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from model.conventions import MODELS
from model.scaledense import NetworkConfig, ScaleDense
from utils.data.images import brain_box, model_grid

SIZES = ((2, 5), (4, 4))  # voxel size in mm, blocks
BATCHES = (1, 4, 8, 16, 32)


def estimate_memory(config: NetworkConfig, batch_size: int, precision: str) -> dict[str, float]:
    """Estimate the bytes of one training step with AdamW.

    Parameters
    ----------
    config : NetworkConfig
    batch_size : int
    precision : {"bfloat16", "float32"}

    Returns
    -------
    dict
        ``parameters``, their number; ``activations``, ``largest`` and the ``peak``, bytes.
    """
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    with FakeTensorMode():
        network = ScaleDense(config)
        volumes = torch.zeros(batch_size, *config.volume_shape, 1).permute(0, 4, 1, 2, 3)
        sex, age = torch.zeros(batch_size, dtype=torch.int64), torch.zeros(batch_size)
        with (
            saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"),
        ):
            output = network(volumes, sex, age)  # holds what is kept until it is counted
        weights = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
        activations = [size for storage, size in kept.items() if storage not in weights]
        parameters = sum(parameter.numel() for parameter in network.parameters())
        del output
    peak = 16 * parameters + sum(activations) + 3 * max(activations)
    return {"parameters": parameters, "activations": sum(activations), "largest": max(activations), "peak": peak}


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
