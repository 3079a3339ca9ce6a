"""What errors of torch, which names its own functions and files, mean to a user."""

import errno
import os
import re

from utils.common.interruption import CONTINUE

SHM_REMEDY = "set NUM_WORKERS=0 (--num_workers 0), or give a container more shared memory, such as --shm-size=8g"
GET_STARTED = "https://pytorch.org/get-started/locally"
GPU_MEMORY = (  # of torch's own allocator, CUDA, NCCL, and the libraries that need memory beside torch's
    r"OutOfMemoryError|\bout of memory|(CUBLAS|CUDNN|CUSOLVER|CUSPARSE|CUFFT)_(STATUS_)?ALLOC_FAILED"
    r"|(CUBLAS|CUDNN|CUSOLVER|CUSPARSE)_STATUS_NOT_INITIALIZED|CUDNN_STATUS_INTERNAL_ERROR"
    r"|unable to find (an engine|a valid cuDNN algorithm)"
)
LOST_PROCESS = (
    r"^Dist(Network|Store)?Error|DistBackendError.*(remote|connection|closed|timed? ?out|abort)"
    r"|gloo.*(closed|reset|timed out|refused)"
)
MEANINGS = (  # of the first pattern that is found in the type and the text of an error
    (
        r"^RuntimeError: DataLoader worker \(pid",
        f"a worker process was killed, perhaps for want of memory; {SHM_REMEDY}",
    ),
    (
        r"DefaultCPUAllocator|[Cc]annot allocate memory|^(_Array)?MemoryError|std::bad_alloc",
        "this machine has too little memory; lower BATCH_SIZE (--batch_size) or NUM_WORKERS (--num_workers), or give "
        "fewer scans at a time",
    ),
    (
        GPU_MEMORY,
        "the GPU has too little memory, or other programs use it (nvidia-smi shows them); lower BATCH_SIZE "
        "(--batch_size), set ACTIVATION_CHECKPOINTING=true (--activation_checkpointing true) for a training, or use "
        "another GPU or --device cpu",
    ),
    (
        "no kernel image is available|not compatible with the current PyTorch installation",
        "this PyTorch has no code for this GPU, which is too old or too new for it; install a build that has it "
        f"({GET_STARTED}), or use --device cpu",
    ),
    (
        "NVIDIA driver on your system is too old|driver version is insufficient|no NVIDIA driver",
        f"the NVIDIA driver is too old for this PyTorch; update it, install another build ({GET_STARTED}), or use "
        "--device cpu",
    ),
    (
        "busy or unavailable",
        "another program has the GPU for itself; wait for it, or choose another GPU with CUDA_VISIBLE_DEVICES",
    ),
    (
        "ECC error|hardware stack error|CUDA error: unknown error|[Dd]evice (is|was) lost|fallen off the bus",
        "the GPU has failed; look for errors in nvidia-smi -q and dmesg, restart the machine or choose another GPU "
        f"with CUDA_VISIBLE_DEVICES, then {CONTINUE}",
    ),
    (
        "device-side assert",
        "a check on the GPU has failed, a defect of this program; please report what it prints with "
        "CUDA_LAUNCH_BLOCKING=1",
    ),
    (
        "CUDA error|AcceleratorError|cuDNN error|CUDA driver error",
        f"the GPU or its driver has failed; {CONTINUE}; if it happens again, set FUSE=false (--fuse false), update the "
        "driver, or choose another GPU with CUDA_VISIBLE_DEVICES",
    ),
    (
        LOST_PROCESS,
        "the connection to another process is lost; it was killed, or its machine cannot be reached",
    ),
    (
        "NCCL error|DistBackendError",
        "the processes cannot exchange data between their GPUs; NCCL_DEBUG=INFO tells more",
    ),
)  # fmt: skip


def is_out_of_gpu_memory(error: Exception) -> bool:
    """Tell whether a GPU has too little memory, which CUDA's libraries say in other words than torch."""
    return isinstance(error, RuntimeError) and bool(re.search(GPU_MEMORY, f"{type(error).__name__}: {error}"))


def is_lost_process(error: Exception) -> bool:
    """Tell whether another process has ended or cannot be reached."""
    return isinstance(error, RuntimeError) and bool(re.search(LOST_PROCESS, f"{type(error).__name__}: {error}"))


def explain(error: Exception) -> str:
    """Return what an error of torch or of the machine means, and what to do; nothing if it is another one.

    Errors of the GPU keep their traceback with CUDA_LAUNCH_BLOCKING=1, which
    tells the place where they arise.
    """
    if not isinstance(error, RuntimeError | MemoryError) and getattr(error, "errno", None) != errno.ENOMEM:
        return ""  # the names of files in it must not be taken for words of torch
    text = " ".join(f"{type(error).__name__}: {error}".split())
    meaning = next((meaning for pattern, meaning in MEANINGS if re.search(pattern, text)), "")
    if not meaning or (os.environ.get("CUDA_LAUNCH_BLOCKING") == "1" and "CUDA error" in text):
        return ""
    told = re.search(
        r"(?:CUDA|cuDNN|NCCL) (?:driver )?error: ?[^.;,\n]{0,80}|[Tt]ried to allocate [\d.]+ \w+", str(error)
    )
    return f"{meaning} ({told[0].strip()})" if told else meaning
