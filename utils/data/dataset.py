"""Volumes in batches, for training and for prediction."""

import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, default_collate

from utils.common.distributed import Share
from utils.common.machine import usable_cores
from utils.data.augmentation import augment
from utils.data.loading import WorkerLoader
from utils.data.scans import Scan, ScanStore
from utils.data.subjects import Subject


class ScanDataset(Dataset[dict[str, Any]]):
    """Scans of subjects, not yet normalized.

    Parameters
    ----------
    subjects : sequence of Subject
    scans : ScanStore
    """

    def __init__(self, subjects: Sequence[Subject], scans: ScanStore) -> None:
        self.subjects = subjects
        self.scans = scans

    def __len__(self) -> int:
        return len(self.subjects)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one subject and its scan; see `item_of`."""
        subject = self.subjects[index]
        return item_of(subject, self.scans.read(subject.path))


def item_of(subject: Subject, scan: Scan) -> dict[str, Any]:
    """Return what a batch is made of: one subject and its scan.

    Returns
    -------
    dict
        ``voxels`` (D, H, W) tensor of a compact type; ``scaling`` (4,)
        float32 array: slope, intercept, and the inverse of the brain's
        deviation and its mean in deviations; ``sex`` int;
        ``chronological_age``, ``first_stage_age``, ``discretized_age``, years, NaN where
        unknown; ``subject_id`` str.
    """
    scaling = scan.slope, scan.intercept, 1 / scan.deviation, scan.mean / scan.deviation
    return {
        "voxels": torch.from_numpy(scan.voxels),
        "scaling": np.array(scaling, np.float32),
        "sex": subject.sex,
        "chronological_age": np.float32(subject.chronological_age),
        "first_stage_age": np.float32(subject.first_stage_age),
        "discretized_age": np.float32(subject.discretized_age),
        "out_of_fold": subject.out_of_fold,
        "subject_id": subject.subject_id,
    }


class EpochBatches:
    """Batches of indices: every subject once an epoch, in an order that depends on the seed.

    Several processes divide the batches that one process with all their
    subjects would have; see `utils.common.distributed.Share`.

    Parameters
    ----------
    ages : sequence of float, years, of the subjects
    batch_size : int
        Of one process.
    seed : int
    stratified : bool
        Whether every joint batch of the processes covers the range of ages.
    least : int
        Leave out a last joint batch of fewer subjects.
    rank, world_size : int
        Number of this process and of all; each process gets the same number of batches.

    Attributes
    ----------
    joint : int
        Subjects of a joint batch.
    epoch, start : int
        Which epoch, and from which of its batches on.
    evenly : bool
        Whether to give the batches of `even` instead.

    Notes
    -----
    Batch norm subtracts what a batch has in common. In a small random batch
    that includes its mean age, which the network then cannot learn.
    """

    def __init__(
        self,
        ages: Sequence[float],
        batch_size: int,
        seed: int,
        *,
        stratified: bool = False,
        least: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.ages = np.asarray(ages)
        self.size = len(ages)
        self.joint = batch_size * world_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.least = least
        self.stratified = stratified
        self.epoch = 0
        self.start = 0
        self.evenly = False

    def __len__(self) -> int:
        full, rest = divmod(self.size, self.joint)
        return full + (rest >= self.least)

    def __iter__(self) -> Iterator[list[int]]:
        if self.evenly:
            yield from self.even()
            return
        order = self._order()
        for index in range(self.start, len(self)):
            yield self._own(order[index * self.joint : (index + 1) * self.joint])

    def even(self) -> list[list[int]]:
        """Return this process's part of the epoch's subjects in batches of equal sizes, give or take one."""
        order = self._order()[: len(self) * self.joint]
        return [self._own(part) for part in np.array_split(order, min(len(self), len(order) // self.least))]

    def share(self, index: int) -> Share:
        """Return how the processes divide a joint batch of the epoch."""
        return Share(min(self.joint, self.size - index * self.joint), self.rank, self.world_size)

    def _order(self) -> np.ndarray:
        """Return the subjects of the epoch, joint batch after joint batch."""
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(self.size)
        return stratify(order, self.ages, min(self.joint, self.size), rng) if self.stratified else order

    def _own(self, batch: np.ndarray) -> list[int]:
        """Return this process's part of a joint batch."""
        return batch[Share(len(batch), self.rank, self.world_size).own].tolist()


def stratify(order: np.ndarray, ages: np.ndarray, batch_size: int, rng: np.random.Generator) -> np.ndarray:
    """Reorder subjects so that each batch of consecutive ones covers the range of ages.

    Parameters
    ----------
    order : (N,) int array, indices of subjects
    ages : (N,) float array
    batch_size : int
    rng : numpy.random.Generator

    Returns
    -------
    (N,) int array
        The subjects are divided by age into `batch_size` groups, and every
        full batch takes one of each. The incomplete last batch takes one of
        some groups, drawn at random.
    """
    full, rest = divmod(len(order), batch_size)
    larger = rng.permutation(batch_size) < rest
    by_age = order[np.argsort(ages[order], kind="stable")]
    groups = [rng.permutation(group) for group in np.split(by_age, np.cumsum(full + larger)[:-1])]
    whole = np.stack([group[:full] for group in groups], 1)
    return np.concatenate([rng.permuted(whole, axis=1).ravel(), *(group[full:] for group in groups)])


def make_loader(dataset: ScanDataset, batches: Any, num_workers: int, device: torch.device) -> WorkerLoader:
    """Make a loader that reads ahead in worker processes, which persist between epochs."""
    own_cores = usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    num_workers = min(num_workers, max(1, own_cores))
    return WorkerLoader(
        dataset,
        num_workers,
        _Collation(dataset),
        batch_sampler=batches,
        persistent_workers=num_workers > 0,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # for the workers' seeds, so that the global one stays as it is
    )


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Join subjects to a batch; scans of different types become float32."""
    if len({item["voxels"].dtype for item in items}) > 1:
        for item in items:
            item["voxels"] = item["voxels"].float()
    return default_collate(items)


@dataclass(frozen=True)
class _Collation:
    """Joins subjects to a batch; one without subjects, of a process that has no part in it, is of the same form."""

    dataset: ScanDataset

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        batch = collate(items or [self.dataset[0]])
        return batch if items else {key: values[:0] for key, values in batch.items()}


def to_device(
    batch: dict[str, Any],
    device: torch.device,
    augmentation: Collection[str] = (),
    seed: Sequence[int] = (),
    share: Share | None = None,
) -> dict[str, Any]:
    """Move a batch to the device, and turn its voxels into normalized volumes there.

    Parameters
    ----------
    batch : dict, of `ScanDataset`
    device : torch.device
    augmentation : collection of str
        Random changes; see `utils.data.augmentation.augment`.
    seed : sequence of int
        Of these changes.
    share : Share or None
        What `batch` is of a joint batch; None: all of it.

    Returns
    -------
    dict
        As `batch`, with ``volume`` in place of ``voxels``: (B, 1, D, H, W)
        float32 tensor, normalized inside the brain, channels last.
    """
    moved = {
        key: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for key, value in batch.items()
    }
    slope, intercept, inverse_deviation, offset = moved.pop("scaling")[:, :, None, None, None].unbind(1)
    volumes = moved.pop("voxels") * slope + intercept
    if augmentation and len(volumes):
        volumes = augment(volumes, augmentation, seed, share)
    volumes = normalize(volumes, inverse_deviation, offset)
    # Channels-last strides, which .contiguous() would not give to a single channel.
    moved["volume"] = volumes[..., None].permute(0, 4, 1, 2, 3)
    return moved


def normalize(volumes: torch.Tensor, inverse_deviation: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """Give the voxels above 0 zero mean and unit standard deviation, as the authors do.

    Parameters
    ----------
    volumes : (B, D, H, W) float32 tensor
    inverse_deviation, offset : (B, 1, 1, 1) float32 tensors
        With the mean M and the deviation S of `utils.data.images.brain_statistics`:
        1 / S and M / S.

    Returns
    -------
    (B, D, H, W) float32 tensor
        The background becomes -M / S.

    Notes
    -----
    With the mask m of the voxels above 0, the released code computes
    (v m - M) / S + v (1 - m).

    References
    ----------
    The authors' ``load_data.py``.
    """
    return torch.where(volumes > 0, volumes * inverse_deviation, volumes) - offset
