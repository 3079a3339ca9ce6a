"""What the machine has, and what of it this process may use."""

import os
import shutil
import warnings
from functools import cache
from pathlib import Path

from utils.common.errors import InputError
from utils.common.torch_errors import GET_STARTED

CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds of CPU time in each period of so many
NVIDIA_FILES = ("/dev/nvidia0", "/proc/driver/nvidia/version")


def usable_cores() -> int:
    """Return how many cores this process may use: those of its CPU affinity, within the quota of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = CPU_QUOTA.read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, round(int(quota) / int(period))))


def use_gpu(device: str) -> bool:
    """Tell whether to use a CUDA GPU; say why not where one is installed.

    Parameters
    ----------
    device : {"auto", "cuda", "cpu"}
        ``auto`` is CUDA where there is a GPU.

    Raises
    ------
    InputError
        If CUDA is asked for and there is none.
    """
    if device == "cpu":
        return False
    import torch  # takes a second

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if available:
        return True
    installed = any(map(os.path.exists, NVIDIA_FILES)) or shutil.which("nvidia-smi")
    reason = _why_no_gpu([str(warning.message) for warning in warned]) if installed else "check CUDA_VISIBLE_DEVICES"
    if device == "cuda":
        raise InputError(f"--device cuda: no CUDA GPU is visible; {reason}, or use --device cpu")
    if installed:
        _tell(f"note: an NVIDIA GPU is installed, but the CPU is used; {reason}")
    return False


def _why_no_gpu(warned: list[str]) -> str:
    """Return what to do about an installed GPU that torch does not find."""
    import torch

    if not torch.version.cuda:
        return f"this PyTorch ({torch.__version__}) is built without CUDA: install one that has it ({GET_STARTED})"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if warned:  # such as a driver that is too old for this CUDA
        text = warned[0].removeprefix("CUDA initialization: ").strip().rstrip(".")
        return f"PyTorch, built for CUDA {torch.version.cuda}, says: {text}"
    if visible is not None:
        return f"CUDA_VISIBLE_DEVICES={visible} names none of those that nvidia-smi lists: set it to 0, say"
    return "CUDA finds no device: check that nvidia-smi lists it, and restart the machine after a driver's update"


@cache
def _tell(note: str) -> None:
    """Print a note once."""
    print(note)
