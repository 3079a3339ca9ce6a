"""What the estimates of the validation subjects tell."""

import torch

from utils.evaluation.metrics import Predictions
from utils.training.stages import Criterion


def validation_losses(
    criterion: Criterion, predictions: Predictions, batch_size: int, seed: int, device: torch.device
) -> dict[str, float]:
    """Return the losses and the MAE of predictions.

    Parameters
    ----------
    criterion : Criterion
    predictions : dict of str to (N,) float32 array, years
        ``brain_age`` and ``chronological_age``.
    batch_size : int
        Of all processes together. A sorter leaves out an incomplete batch.
    seed : int
        Of the random pairs.
    device : torch.device
    """
    brain_age = torch.from_numpy(predictions["brain_age"])
    age = torch.from_numpy(predictions["chronological_age"])
    generator = torch.Generator().manual_seed(seed)
    totals: dict[str, float] = {}
    count = 0
    for part, target in zip(brain_age.split(batch_size), age.split(batch_size), strict=True):
        if criterion.batch_size in (None, len(part)):
            losses = criterion(part.to(device), target.to(device), generator)
            for key, value in losses.items():
                totals[key] = totals.get(key, 0.0) + value.item() * len(part)
            count += len(part)
    return {key: total / count for key, total in totals.items()} | {"mae": (brain_age - age).abs().mean().item()}
