"""Choose the fastest ways to train on a device."""

import os
from typing import Any

import torch

from model.batch_norm import is_synchronized, synchronize
from model.cpu_layers import use_cpu_layers
from model.gpu_layers import use_gpu_layers
from utils.common import distributed
from utils.evaluation.predicting import uses_bfloat16
from utils.training.settings import TrainingSettings

FUSED_STEPS = 5000  # from which on torch.compile gains more time than it takes


def speed_up(network: Any, settings: TrainingSettings, steps: int, device: torch.device) -> None:
    """Give a network the layers that are fastest on a device.

    Parameters
    ----------
    network : ScaleDense, changed in place
    settings : TrainingSettings
        ``deterministic`` leaves out whatever may differ between equal runs.
    steps : int
        Of the whole training.
    device : torch.device
    """
    if settings.sync_batch_norm and distributed.grouped():
        synchronize(network)
    if device.type == "cpu":
        use_cpu_layers(network)
        return
    torch.backends.cudnn.deterministic = settings.deterministic
    # Searching takes 40 s for each size of a batch. In bfloat16 it gains nothing; in float32 a step takes a quarter.
    in_bfloat16 = uses_bfloat16(device, settings.precision)
    torch.backends.cudnn.benchmark = not in_bfloat16 and not settings.deterministic  # prediction switches it off
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at the first matrix product
    fuse = settings.fuse == "true" or (settings.fuse == "auto" and steps >= FUSED_STEPS and not settings.deterministic)
    problem = ""
    if fuse and is_synchronized(network):  # compiled or not, processes would have to sum in the same order
        problem = "batch norm goes over several processes (--sync_batch_norm)"
    elif fuse:
        problem = _problem_of_compiler(device)
    if problem:
        print(f"note: trains without torch.compile, as with --fuse false: {problem}")
    use_gpu_layers(network, fuse and not problem)


def _problem_of_compiler(device: torch.device) -> str:
    """Compile a small function; return the first line of the error, if any: often a C compiler is missing."""
    try:
        torch.compile(lambda x: 2 * x + 1)(torch.ones(8, device=device))
    except Exception as error:
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return ""
