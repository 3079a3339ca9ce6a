"""Read ahead in worker processes, which say so where shared memory is too small instead of hanging."""

import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, get_worker_info

from utils.common.errors import InputError
from utils.common.interruption import outlive_signals
from utils.common.torch_errors import SHM_REMEDY

NO_ROOM = f"/dev/shm, through which worker processes hand over the scans that they read, is full; {SHM_REMEDY}"  # nosec B108
OTHER_QUEUES = 4  # of a loader, besides one for each worker


class WorkerLoader(DataLoader[Any]):
    """A loader whose workers outlive signals, and fail in one sentence where shared memory is too small.

    Parameters
    ----------
    dataset : Dataset
    num_workers : int
        0 reads in this process, without shared memory.
    collate : callable
        Turns what the dataset gives into a dict or tuple, some of whose values are tensors.
    **options
        Of `torch.utils.data.DataLoader`.

    Notes
    -----
    Without this class, a thread of the worker moves tensors to shared
    memory. If that fails, the thread drops the batch, and the main process
    waits for it forever.
    """

    def __init__(self, dataset: Any, num_workers: int, collate: Callable[[Any], Any], **options: Any) -> None:
        super().__init__(
            dataset, num_workers=num_workers, collate_fn=_Sharing(collate), worker_init_fn=outlive_signals, **options
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        if self.num_workers:
            try:
                [multiprocessing.Queue() for _ in range(self.num_workers + OTHER_QUEUES)]
            except OSError as error:
                raise InputError(
                    f"worker processes cannot be started ({error}): is /dev/shm full? {SHM_REMEDY}"
                ) from error
        batches: Any = super().__iter__()
        try:
            yield from batches
        except Exception:
            if self.num_workers:
                batches._shutdown_workers()  # otherwise the workers are waited for, 5 s each
            raise


@dataclass(frozen=True)
class _Sharing:
    """Moves a worker's tensors to shared memory at once, where a failure can be told to the main process."""

    collate: Callable[[Any], Any]

    def __call__(self, items: Any) -> Any:
        try:
            batch = self.collate(items)
            if get_worker_info():
                for value in batch.values() if isinstance(batch, dict) else batch:
                    if isinstance(value, torch.Tensor):
                        value.share_memory_()
        except RuntimeError as error:
            if "shared memory" not in str(error):
                raise
            raise InputError(NO_ROOM) from error
        return batch
