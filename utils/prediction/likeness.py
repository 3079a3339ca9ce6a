"""Tell scans that are unlike the training scans by their intensities."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from utils.data.dataset import ScanDataset, make_loader, to_device

LIMIT_SHARE = 0.99  # of the training scans that lie below the limit
BATCH = 8
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
    """Return what the scans look like, and the distance that `LIMIT_SHARE` of them do not exceed."""
    total, squares = torch.zeros(()), torch.zeros(())
    for volumes in _volumes(dataset, num_workers):
        total, squares = total + volumes.double().sum(0), squares + volumes.double().square().sum(0)
    mean = total / len(dataset)
    deviation = (squares / len(dataset) - mean**2).clamp_min(0).sqrt()
    typical = TypicalVolumes(mean.float()[None], deviation.float()[None])
    return typical, float(np.quantile(measure_distances(dataset, typical, num_workers), LIMIT_SHARE))


def measure_distances(dataset: ScanDataset, typical: TypicalVolumes, num_workers: int) -> np.ndarray:
    """Return how far each scan is from the training scans.

    Returns
    -------
    (N,) float array
        The root mean square over the brain of the difference to the mean
        training scan, in its standard deviations; about 1 for a training scan.
    """
    mean, deviation = typical
    brain = deviation > 0.1 * deviation.max()  # nearly constant voxels would count without limit
    weights = brain / deviation.where(brain, torch.ones(())) / brain.sum().sqrt()
    distances = [((volumes - mean) * weights).flatten(1).norm(dim=1) for volumes in _volumes(dataset, num_workers)]
    return torch.cat(distances).numpy() if distances else np.zeros(0)
