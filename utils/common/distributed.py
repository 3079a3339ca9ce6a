"""The same calls for one process and for many; most do nothing for one that torchrun has not started."""

import ctypes
import gc
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import distributed, nn
from torch.distributed.distributed_c10d import _set_pg_timeout
from torch.nn import functional

from utils.common.errors import InputError
from utils.common.first_failure import own_store, started_by_torchrun
from utils.common.machine import use_gpu

T = TypeVar("T")
CONNECTING = timedelta(minutes=10)  # within which all processes must have found each other
PATIENCE = timedelta(hours=12)  # for which they then wait for each other: one may have 100,000 scans to decode


def start(device: str) -> torch.device:
    """Choose the device, and join the other processes if torchrun started this one.

    Parameters
    ----------
    device : {"auto", "cuda", "cpu"}
        ``auto`` is CUDA where there is a GPU.

    Raises
    ------
    InputError
        If CUDA is asked for and there is none, or fewer GPUs than processes.
    """
    use_cuda = use_gpu(device)
    if use_cuda:
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        if int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > torch.cuda.device_count():
            raise InputError(
                f"{os.environ['LOCAL_WORLD_SIZE']} processes need as many GPUs, but {torch.cuda.device_count()} can be "
                "seen; name a GPU for each in CUDA_VISIBLE_DEVICES, or lower PROCESSES"
            )
        torch.cuda.set_device(local_rank)
        # float32 means float32, whatever the environment says of TF32
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    else:
        keep_freed_memory()
    if started_by_torchrun() and not distributed.is_initialized():
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if use_cuda else "gloo", timeout=CONNECTING, store=own_store(),
            rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"]),
        )  # fmt: skip
        _set_pg_timeout(PATIENCE)
        if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
            print("note: a process has died, so all were started anew (MAX_RESTARTS); a run goes on from its last.pt")
    return torch.device("cuda", torch.cuda.current_device()) if use_cuda else torch.device("cpu")


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for the next step, as torch does on a GPU.

    Otherwise the system zeroes the memory of each large tensor page by page,
    which takes a third of a training step on a CPU. Without glibc this does
    nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(-4, 0)  # M_MMAP_MAX: take large tensors from the heap
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: never give the end of the heap back


def stop() -> None:
    """Leave the group of processes, all at the same time."""
    if distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()
        gc.collect()  # joins the group's threads, which must not outlive the interpreter


def grouped() -> bool:
    """Tell whether this process belongs to a group, be it of one; torchrun makes one."""
    return distributed.is_initialized()


def world_size() -> int:
    """Return the number of processes."""
    return distributed.get_world_size() if grouped() else 1


def rank() -> int:
    """Return which process this is; 0 writes the files."""
    return distributed.get_rank() if grouped() else 0


@dataclass(frozen=True)
class Share:
    """What a process has of a joint batch: neighbouring subjects, in the order of the ranks.

    Parameters
    ----------
    total : int
        Subjects of the joint batch.
    rank, world_size : int
        Number of the process and of all.
    """

    total: int
    rank: int = 0
    world_size: int = 1

    @property
    def ends(self) -> list[int]:
        """Where the parts begin and end; their sizes differ by one at most, and may be 0."""
        return [rank * self.total // self.world_size for rank in range(self.world_size + 1)]

    @property
    def sizes(self) -> list[int]:
        """Subjects of each process."""
        return [last - first for first, last in pairwise(self.ends)]

    @property
    def own(self) -> slice:
        """The place of this process's subjects in the joint batch."""
        return slice(*self.ends[self.rank : self.rank + 2])


def wrap(network: nn.Module) -> nn.Module:
    """Average gradients over the processes in the backward pass."""
    if not grouped():
        return network
    # Strides of axes of length 1, of which kernels have many, mean nothing.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    parallel = nn.parallel.DistributedDataParallel(network, gradient_as_bucket_view=True)
    parallel.broadcast_buffers = False  # after the start; as an argument it is deprecated
    return parallel


def average_gradients(parallel: nn.Module, now: bool) -> None:
    """Say whether the next backward pass of a wrapped network ends a sum of gradients, which is then averaged."""
    parallel.require_backward_grad_sync = now  # type: ignore[assignment]  # as no_sync() of torch does


def gather(tensor: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """Join the tensors of all processes to that of the joint batch; the gradient flows back to the own part only.

    The mean over processes that `wrap` computes is therefore the gradient of
    the joint loss divided by `world_size`.

    Parameters
    ----------
    tensor : (N,) tensor
    sizes : sequence of int
        N of each process; see `Share`.
    """
    if not grouped():
        return tensor
    padded = functional.pad(tensor.detach(), (0, max(sizes) - len(tensor)))  # gloo takes equal sizes alone
    parts = [torch.empty_like(padded) for _ in sizes]
    distributed.all_gather(parts, padded)
    parts = [part[:size] for part, size in zip(parts, sizes, strict=True)]
    parts[rank()] = tensor
    return torch.cat(parts)


def average_statistics(network: nn.Module) -> None:
    """Replace running means and variances by those over the scans of all processes."""
    if not grouped():
        return
    for module in network.modules():
        mean, variance = getattr(module, "running_mean", None), getattr(module, "running_var", None)
        if not module.training or getattr(module, "synchronized", False):
            continue  # frozen, or equal already
        if mean is not None and variance is not None:
            variance += mean**2
            for statistic in (mean, variance):
                distributed.all_reduce(statistic)
                statistic /= world_size()
            variance -= mean**2


def gather_objects(item: T) -> list[T]:
    """Collect one object of each process, in the order of their ranks."""
    if not grouped():
        return [item]
    items: list[Any] = [None] * world_size()
    distributed.all_gather_object(items, item)
    return items


def largest(number: int) -> int:
    """Return the largest number of all processes, without waiting for a GPU."""
    if not grouped():
        return number
    tensor = torch.tensor(number)
    distributed.all_reduce(tensor, distributed.ReduceOp.MAX)
    return int(tensor)


def barrier() -> None:
    """Wait for all processes."""
    if distributed.is_initialized():
        distributed.barrier()
