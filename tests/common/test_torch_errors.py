"""What errors of torch mean to a user; their texts are those of torch 2.13 and of its issues."""

import errno

import pytest
import torch
from torch.distributed import DistBackendError, DistNetworkError

from utils.common.torch_errors import explain, is_out_of_gpu_memory

ACCELERATOR = getattr(torch, "AcceleratorError", RuntimeError)
OUT_OF_GPU_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 15.77 GiB"),
    ACCELERATOR("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("GET was unable to find an engine to execute this computation"),
    DistBackendError("NCCL error in: ProcessGroupNCCL.cpp:3356, unhandled cuda error, Last error:\nCuda failure 2 'out of memory'"),
    RuntimeError("Caught OutOfMemoryError in pin memory thread for device 0.\nOriginal Traceback: CUDA out of memory."),
]  # fmt: skip


@pytest.mark.parametrize("error", OUT_OF_GPU_MEMORY)
def test_too_little_gpu_memory_names_the_settings_to_lower(error) -> None:
    assert is_out_of_gpu_memory(error)
    meaning = explain(error)
    assert "the GPU has too little memory" in meaning
    assert "BATCH_SIZE" in meaning
    assert "ACTIVATION_CHECKPOINTING" in meaning


def test_how_much_was_asked_for_is_told() -> None:
    assert explain(OUT_OF_GPU_MEMORY[0]).endswith("(Tried to allocate 20.00 GiB)")


def allocate_too_much() -> None:
    torch.empty(2**60, dtype=torch.uint8)


def test_too_little_memory_of_the_machine_is_another_thing() -> None:
    with pytest.raises(RuntimeError) as caught:
        allocate_too_much()
    for error in (caught.value, MemoryError(), OSError(errno.ENOMEM, "Cannot allocate memory")):
        meaning = explain(error)
        assert "this machine has too little memory" in meaning
        assert "NUM_WORKERS" in meaning
        assert not is_out_of_gpu_memory(error)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("CUDA error: no kernel image is available for execution on the device", "too old or too new"),
        ("CUDA error: device-side assert triggered", "CUDA_LAUNCH_BLOCKING=1"),
        ("CUDA error: an illegal memory access was encountered", "--resume"),
        ("CUDA error: uncorrectable ECC error encountered", "nvidia-smi -q"),
        ("CUDA error: unknown error", "restart the machine"),
        ("CUDA error: unspecified launch failure", "FUSE=false"),
        ("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", "(cuDNN error: CUDNN_STATUS_EXECUTION_FAILED)"),
        ("CUDA error: all CUDA-capable devices are busy or unavailable", "another program has the GPU for itself"),
        ("The NVIDIA driver on your system is too old (found version 11040).", "driver is too old"),
    ],
)
def test_a_gpu_that_fails_is_told_in_one_line(text, expected) -> None:
    meaning = explain(
        ACCELERATOR(f"{text}\nSearch for `cudaErrorX' for more information.\nCompile with `TORCH_USE_CUDA_DSA`")
    )
    assert expected in meaning
    assert "\n" not in meaning
    assert "CUDA error: " not in text or f"({text})" in meaning
    assert not is_out_of_gpu_memory(RuntimeError(text))


def test_the_place_of_a_gpus_error_can_be_asked_for(monkeypatch) -> None:
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "1")
    assert explain(ACCELERATOR("CUDA error: device-side assert triggered")) == ""


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("gloo: timed out waiting for 30000ms for recv operation to complete"),
        RuntimeError(
            "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [::1]:38651"
        ),
        DistNetworkError("recvVector failed on SocketImpl"),
        DistBackendError("NCCL communicator was aborted on rank 1."),
        DistBackendError("NCCL error: remote process exited or there was a network error"),
    ],
)
def test_a_lost_process_is_told(error) -> None:
    assert "the connection to another process is lost" in explain(error)


def test_other_errors_of_nccl_point_to_its_log() -> None:
    error = DistBackendError("NCCL error in: init.cc:912, invalid usage: Duplicate GPU detected : rank 1 and rank 0")
    assert "NCCL_DEBUG=INFO" in explain(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("stack expects each tensor to be equal size"),
        KeyError("out of memory"),
        FileNotFoundError(errno.ENOENT, "No such file", "NCCL error/CUDA error: unknown error.nii"),
    ],
)
def test_errors_of_the_program_stay_what_they_are(error) -> None:
    assert explain(error) == ""
