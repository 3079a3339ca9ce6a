"""Tell scans that are unlike the training scans by their intensities."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from utils.data.dataset import ScanDataset, collate, make_loader, to_device

LIMIT_SHARE = 0.99  # of the training scans that lie below the limit
BATCH = 8
LEAST_DEVIATION = 0.1  # of the largest; voxels that hardly vary would count without limit
CPU = torch.device("cpu")


class TypicalVolumes(NamedTuple):
    """What the training scans look like, normalized.

    Parameters
    ----------
    mean, deviation : (1, 1, D, H, W) float32 tensors
        Over the training scans, in each voxel.
    """

    mean: torch.Tensor
    deviation: torch.Tensor


def _volumes(dataset: ScanDataset, num_workers: int) -> Iterator[torch.Tensor]:
    """Yield the normalized volumes, (B, 1, D, H, W) float32 tensors."""
    batches = [list(range(i, min(i + BATCH, len(dataset)))) for i in range(0, len(dataset), BATCH)]
    for batch in make_loader(dataset, batches, num_workers, CPU):
        yield to_device(batch, CPU)["volume"]


def describe_training(dataset: ScanDataset, num_workers: int) -> tuple[TypicalVolumes, float]:
    """Return what the scans look like, and the distance that `LIMIT_SHARE` of them do not exceed.

    Each scan's distance is that from all others, because a scan is closer to a mean that holds it.
    """
    count = len(dataset)
    total, squares = torch.zeros(()), torch.zeros(())
    for volumes in _volumes(dataset, num_workers):
        total, squares = total + volumes.double().sum(0), squares + volumes.double().square().sum(0)
    typical = _typical(total, squares, count)
    distances = [
        _distance(volume, _typical(total - volume.double(), squares - volume.double().square(), count - 1))
        for volumes in _volumes(dataset, num_workers)
        for volume in volumes
    ]
    return typical, float(np.quantile(distances, LIMIT_SHARE))


def _typical(total: torch.Tensor, squares: torch.Tensor, count: int) -> TypicalVolumes:
    """Return mean and deviation of `count` volumes from their sum and the sum of their squares."""
    mean = total / count
    deviation = (squares / count - mean**2).clamp_min(0).sqrt()
    return TypicalVolumes(mean.float()[None], deviation.float()[None])


def _distance(volume: torch.Tensor, typical: TypicalVolumes) -> float:
    """Return the distance of a (1, D, H, W) volume; see `measure_distance`."""
    mean, deviation = typical
    brain = deviation > LEAST_DEVIATION * deviation.max()
    differences = ((volume - mean)[brain] / deviation[brain]).numpy()
    return float(np.sqrt(np.mean(np.square(differences))))  # NumPy adds in one order; torch's depends on its threads


def measure_distance(item: dict[str, Any], typical: TypicalVolumes) -> float:
    """Return how far a scan is from the training scans.

    Parameters
    ----------
    item : dict, of `utils.data.dataset.item_of`
    typical : TypicalVolumes

    Returns
    -------
    float
        The root mean square over the brain of the difference to the mean
        training scan, in its standard deviations; about 1 for a training scan.
    """
    return _distance(to_device(collate([item]), CPU)["volume"][0], typical)
