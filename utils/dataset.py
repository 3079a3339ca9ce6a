"""Volumes in batches, for training and for prediction."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from utils.images import load_volume, normalize_volume
from utils.subjects import Subject

LARGEST_SHIFT = 2  # voxels


class ScanDataset(Dataset[dict[str, Any]]):
    """Normalized volumes of subjects.

    Parameters
    ----------
    subjects : sequence of Subject
    voxel_size : int, mm
    normalization : {"brain", "legacy"}
    """

    def __init__(self, subjects: Sequence[Subject], voxel_size: int, normalization: str) -> None:
        self.subjects = subjects
        self.voxel_size = voxel_size
        self.normalization = normalization

    def __len__(self) -> int:
        return len(self.subjects)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one subject.

        Returns
        -------
        dict
            ``volume`` (1, D, H, W) float32 tensor, z-scored inside the
            brain; ``sex`` int; ``chronological_age``, ``discretized_age``,
            years, NaN where unknown; ``subject_id`` str.
        """
        subject = self.subjects[index]
        volume = normalize_volume(load_volume(subject.path, self.voxel_size), self.normalization)
        return {
            "volume": torch.from_numpy(volume)[None],
            "sex": subject.sex,
            "chronological_age": np.float32(subject.chronological_age),
            "discretized_age": np.float32(subject.discretized_age),
            "subject_id": subject.subject_id,
        }


class EpochBatches:
    """Batches of indices: every subject once an epoch, in an order drawn from the seed.

    Parameters
    ----------
    size : int
        Number of subjects.
    batch_size : int
        Of one process.
    seed : int
    rank, world_size : int
        Which of how many processes this is; they share each epoch in equal
        numbers of batches.
    drop_last : bool
        Leave out an incomplete last batch.
    """

    def __init__(
        self, size: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1, drop_last: bool = False
    ) -> None:
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.drop_last = drop_last
        self.epoch = 0
        self.start = 0

    def __len__(self) -> int:
        own = self.size // self.world_size
        return own // self.batch_size if self.drop_last else -(-own // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.size)
        own = order[self.rank :: self.world_size][: self.size // self.world_size]
        for index in range(self.start, len(self)):
            yield own[index * self.batch_size : (index + 1) * self.batch_size].tolist()


def make_loader(dataset: ScanDataset, batches: Any, num_workers: int, device: torch.device) -> DataLoader[Any]:
    """Make a loader that reads ahead in worker processes, which live on between epochs."""
    num_workers = min(num_workers, os.cpu_count() or 1)
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # of the workers' seeds; the global one stays as it is
    )


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Move the tensors of a batch, the volumes channels last."""
    moved = {
        key: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for key, value in batch.items()
    }
    moved["volume"] = moved["volume"].contiguous(memory_format=torch.channels_last_3d)
    return moved


def flip_and_shift(volumes: torch.Tensor, seed: Sequence[int]) -> torch.Tensor:
    """Mirror half of the volumes left to right and shift each by up to two voxels.

    Parameters
    ----------
    volumes : (B, 1, D, H, W) float tensor, the first axis left to right
    seed : sequence of int
        The same seed gives the same changes.

    Returns
    -------
    (B, 1, D, H, W) float tensor
    """
    rng = np.random.default_rng(seed)
    flips = rng.random(len(volumes)) < 0.5
    shifts = rng.integers(-LARGEST_SHIFT, LARGEST_SHIFT + 1, (len(volumes), 3)).tolist()
    return torch.stack(
        [
            _shift(volume.flip(1) if flip else volume, shift)
            for volume, flip, shift in zip(volumes, flips, shifts, strict=True)
        ]
    ).contiguous(memory_format=torch.channels_last_3d)


def _shift(volume: torch.Tensor, shift: Sequence[int]) -> torch.Tensor:
    """Shift a (1, D, H, W) volume; what comes in has the value of its first voxel, the background."""
    shifted = torch.full_like(volume, float(volume[0, 0, 0, 0]))
    sizes = volume.shape[1:]
    target = [slice(max(0, by), size + min(0, by)) for by, size in zip(shift, sizes, strict=True)]
    source = [slice(max(0, -by), size + min(0, -by)) for by, size in zip(shift, sizes, strict=True)]
    shifted[:, *target] = volume[:, *source]
    return shifted
