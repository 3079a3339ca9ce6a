"""What a training needs of a GPU's memory, without trying it, and what it runs on."""

from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from model.scaledense import NetworkConfig, ScaleDense
from utils.common import distributed
from utils.evaluation.predicting import uses_bfloat16
from utils.training.settings import TrainingSettings

GIB = 2**30


def announce(network: Any, settings: TrainingSettings, device: torch.device) -> None:
    """Print what a training runs on, and on a GPU the memory that it needs; warn if that is not free.

    Parameters
    ----------
    network : ScaleDense, on `device`
    settings : TrainingSettings
    device : torch.device
    """
    on_gpu, processes, batch = device.type == "cuda", distributed.world_size(), settings.batch_size
    precision = "bfloat16" if uses_bfloat16(device, settings.precision) else "float32"
    place = torch.cuda.get_device_name(device) if on_gpu else f"the CPU (threads: {torch.get_num_threads()})"
    together = f" in each of {processes} processes, {processes * batch} together" if processes > 1 else ""
    print(f"trains on {place} in {precision}, with batches of {batch}{together}")
    if not on_gpu:
        return
    needed = estimate_memory(network.config, batch, precision, network.trunk.activation_checkpointing)["peak"] / GIB
    free, total = (size / GIB for size in torch.cuda.mem_get_info(device))
    free += torch.cuda.memory_reserved(device) / GIB  # by this process, for the weights
    print(f"needs about {needed:.1f} GiB of the GPU's memory; {free:.1f} of {total:.1f} GiB are free")
    if needed > free:
        print(
            "WARNING: that may be too little; lower BATCH_SIZE (--batch_size), or set ACTIVATION_CHECKPOINTING=true "
            "(--activation_checkpointing true)"
        )


def estimate_memory(
    config: NetworkConfig, batch_size: int, precision: str, activation_checkpointing: bool = False
) -> dict[str, float]:
    """Estimate the bytes of one training step with AdamW.

    Parameters
    ----------
    config : NetworkConfig
    batch_size : int
    precision : {"bfloat16", "float32"}
    activation_checkpointing : bool

    Returns
    -------
    dict
        ``parameters``, their number; ``activations``, ``largest`` and the ``peak``, bytes.

    Notes
    -----
    Nothing is computed: fake tensors have shapes and types alone. Counted are

        weights, gradients and AdamW's two moments: 16 bytes a parameter
      + what the forward pass keeps for the backward pass, autocast's copies of the weights included; with activation
        checkpointing, the inputs of all blocks and what one block keeps
      + three times the largest of these tensors, for the gradients on their way

    Not counted are the CUDA context, cuDNN's workspace and a fragmented allocator, 1 to 3 GB.
    """
    kept: dict[int, int] = {}  # bytes of storages, in the order in which they are kept
    inputs: list[int] = []  # bytes, of each block
    marks: list[int] = []  # how many storages are kept before and after each block

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    def enter(_block: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        inputs.append(args[0].untyped_storage().nbytes())
        marks.append(len(kept))

    with FakeTensorMode():
        network = ScaleDense(config)
        for block in network.trunk.blocks:
            block.register_forward_pre_hook(enter)
            block.register_forward_hook(lambda *_: marks.append(len(kept)))
        volumes = torch.zeros(batch_size, *config.volume_shape, 1).permute(0, 4, 1, 2, 3)
        sex, age = torch.zeros(batch_size, dtype=torch.int64), torch.zeros(batch_size)
        with (
            saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"),
        ):
            output = network(volumes, sex, age)  # holds what is kept until it is counted
        weights = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
        sizes = [0 if storage in weights else size for storage, size in kept.items()]
        parameters = sum(parameter.numel() for parameter in network.parameters())
        del output
    activations = sum(sizes)
    if activation_checkpointing:
        of_blocks = [sum(sizes[start:end]) for start, end in zip(marks[::2], marks[1::2], strict=True)]
        activations += sum(inputs) + max(of_blocks) - sum(of_blocks)
    peak = 16 * parameters + activations + 3 * max(sizes)
    return {"parameters": parameters, "activations": activations, "largest": max(sizes), "peak": peak}
