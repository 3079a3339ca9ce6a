"""What tells the two stages apart in training and testing."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from utils.data.discretized_ages import discretize_age
from utils.evaluation.metrics import Predictions, residual_sd_within_bins

Batch = Mapping[str, torch.Tensor]
COLLAPSED_SD = 0.1  # of the age interval


class FirstStage:
    """Estimate the brain age from the volume and the sex."""

    def predict(self, network: Callable[..., torch.Tensor], batch: Batch) -> dict[str, torch.Tensor]:
        """Return ``brain_age``, (B,) float32 tensor, years."""
        return {"brain_age": network(batch["volume"], batch["sex"])}

    def disturb(self, batch: dict[str, Any], seed: Sequence[int]) -> dict[str, Any]:
        """Change nothing."""
        return batch

    def report(self, predictions: Predictions) -> tuple[dict[str, float], str]:
        """Return no scalars and no warning beyond those of every stage."""
        return {}, ""


class SecondStage:
    """Refine the discretized age of the first stage by a residual.

    Parameters
    ----------
    age_interval : float, years
        The step of the discretized ages.
    age_jitter : float, years
        Standard deviation of what `disturb` adds to the first stage's ages.
    """

    columns = ("first_stage_age", "discretized_age", "residual_age")

    def __init__(self, age_interval: float, age_jitter: float = 0.0) -> None:
        self.age_interval = age_interval
        self.age_jitter = age_jitter

    def predict(self, network: Callable[..., torch.Tensor], batch: Batch) -> dict[str, torch.Tensor]:
        """Return ``residual_age`` and ``brain_age``, (B,) float32 tensors, years."""
        residual_age = network(batch["volume"], batch["sex"], batch["discretized_age"])
        return {
            "residual_age": residual_age,
            "brain_age": batch["discretized_age"] + residual_age,
        }

    def disturb(self, batch: dict[str, Any], seed: Sequence[int]) -> dict[str, Any]:
        """Let the first stage err on training subjects as it does on new ones.

        Parameters
        ----------
        batch : dict
            With ``first_stage_age``, (B,) float tensor, years, and
            ``out_of_fold``, (B,) bool tensor: their errors are honest already.
        seed : sequence of int

        Returns
        -------
        dict
            As `batch`, with ``discretized_age`` of ages to which a normal
            error of `age_jitter` was added.

        Notes
        -----
        A first stage errs little on subjects that it was trained on, which
        leaves the second nothing to learn from them.
        """
        if not self.age_jitter:
            return batch
        ages = batch["first_stage_age"].cpu().numpy()
        error = np.random.default_rng((*seed, 1)).normal(0, self.age_jitter, len(ages))
        ages = np.where(batch["out_of_fold"].cpu().numpy(), ages, ages + error)
        discretized = torch.from_numpy(discretize_age(ages, self.age_interval).astype(np.float32))
        return batch | {"discretized_age": discretized.to(batch["discretized_age"].device)}

    def report(self, predictions: Predictions) -> tuple[dict[str, float], str]:
        """Tell what the second stage adds to the first, and whether it collapsed.

        Parameters
        ----------
        predictions : dict of str to (N,) float array, years
            ``chronological_age``, ``brain_age``, ``first_stage_age``,
            ``discretized_age``, ``residual_age``.

        Returns
        -------
        scalars : dict
            ``residual_sd`` within equal discretized ages, and
            ``gain_over_first_stage``, the first stage's MAE minus this one's.
        warning : str
            Empty unless the stage has collapsed: `residual_sd` below a tenth
            of the age interval, so that it does little but add a constant
            to each discretized age.
        """
        age = predictions["chronological_age"]
        sd = residual_sd_within_bins(predictions["residual_age"], predictions["discretized_age"])
        gain = np.abs(predictions["first_stage_age"] - age).mean() - np.abs(predictions["brain_age"] - age).mean()
        scalars = {"residual_sd": sd, "gain_over_first_stage": float(gain)}
        if not sd < COLLAPSED_SD * self.age_interval:
            return scalars, ""
        return scalars, (
            f"SECOND STAGE COLLAPSED: within equal discretized ages its residual varies by {sd:.3f} "
            f"years only (below {COLLAPSED_SD * self.age_interval:g}); it adds a constant to each "
            "discretized age. In the first epochs that is usual; later, train longer or with a higher "
            "--learning_rate."
        )
