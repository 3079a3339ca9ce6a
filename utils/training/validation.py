"""What the estimates of the validation subjects tell."""

from collections.abc import Sequence

import numpy as np
import torch

from utils.evaluation.metrics import Predictions
from utils.training.stages import Criterion

JUDGED_EPOCHS = 10  # after which a network must be better than the mean age


def warn_of_mean_age(predictions: Predictions, train_ages: Sequence[float]) -> str:
    """Warn of brain ages that err more than the mean age of the training subjects would, given to everybody.

    Parameters
    ----------
    predictions : dict of str to (N,) float array, years
        ``brain_age`` and ``chronological_age``.
    train_ages : sequence of float, years
    """
    age, mean = predictions["chronological_age"], float(np.mean(train_ages))
    own, constant = (float(np.abs(guess - age).mean()) for guess in (predictions["brain_age"], mean))
    if own <= constant:
        return ""
    return (
        f"WORSE THAN THE MEAN AGE: the validation MAE is {own:.2f} years; {mean:.1f} years for everybody, the mean "
        f"of the training subjects, would have {constant:.2f}. Check that the ages belong to the scans; then train "
        "longer or change LEARNING_RATE (--learning_rate)."
    )


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
