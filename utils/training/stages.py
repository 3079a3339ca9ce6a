"""What tells the two stages apart in training and testing."""

from collections.abc import Callable, Mapping, Sequence, Sized
from typing import Any, Protocol

import numpy as np
import torch

from model.building import scale_output
from model.conventions import discretize_age
from utils.common.distributed import Share
from utils.common.errors import InputError
from utils.data.draws import Draws
from utils.evaluation.metrics import Predictions, residual_sd_within_bins

Batch = Mapping[str, torch.Tensor]
COLLAPSED_SD = 0.1  # of the age interval
STUCK_SHARE = 0.05  # of the SD of the chronological ages
LEAST_SLOPE = 0.5  # of brain age over age in the training subjects, from which on it is corrected


class Stage(Protocol):
    """What training needs of a stage; see `FirstStage` and `SecondStage`."""

    def predict(self, network: Callable[..., torch.Tensor], batch: Any) -> dict[str, torch.Tensor]:
        """Turn a batch into predictions, with ``brain_age`` among them."""

    def perturb(self, batch: dict[str, Any], seed: Sequence[int], share: Share | None = None) -> dict[str, Any]:
        """Perturb what a training batch tells the network besides the volume."""

    def recalibrate(self, network: Any, predictions: Predictions) -> None:
        """Correct the scale of the output by the predictions of the training subjects."""

    def report(self, predictions: Predictions) -> tuple[dict[str, float], str]:
        """Return scalars of a split's predictions, and a warning or nothing."""


class Criterion(Protocol):
    """What the trainer needs of a loss; see `model.ranking.CascadeLoss`."""

    @property
    def batch_size(self) -> int | None:
        """The number of subjects that it ranks at once, or None for any."""

    def __call__(
        self, brain_age: torch.Tensor, chronological_age: torch.Tensor, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        """Return ``loss`` and its parts."""


def check_batches(criterion: Criterion, batches: Sized, train_size: int, valid_size: int, joint: int) -> None:
    """Refuse batches with which no step, or no ranking, could be computed.

    Parameters
    ----------
    criterion : Criterion
    batches : sized
        Of an epoch.
    train_size, valid_size : int
        Numbers of subjects.
    joint : int
        Subjects in a batch of all processes together.

    Raises
    ------
    InputError
    """
    needed = criterion.batch_size
    if needed is not None and joint != needed:
        raise InputError(
            f"--batch_size: a step has {joint} subjects, but the sorter ranks {needed}; set BATCH_SIZE so "
            f"that all processes together have {needed}, or use --ranking soft"
        )
    if needed is not None and 0 < valid_size < needed:
        print(f"note: the sorter ranks {needed} subjects, so validation on {valid_size} has no losses")
    if len(batches) == 0:
        raise InputError(
            f"--train_folder: {train_size} subjects do not fill one batch of {joint}; lower BATCH_SIZE (--batch_size)"
        )


class FirstStage:
    """Estimate the brain age from the volume and the sex."""

    def predict(self, network: Callable[..., torch.Tensor], batch: Batch) -> dict[str, torch.Tensor]:
        """Return ``brain_age``, (B,) float32 tensor, years."""
        return {"brain_age": network(batch["volume"], batch["sex"])}

    def perturb(self, batch: dict[str, Any], seed: Sequence[int], share: Share | None = None) -> dict[str, Any]:
        """Return the batch as it is."""
        return batch

    def recalibrate(self, network: Any, predictions: Predictions) -> None:
        """Correct level and slope of the brain ages, so that they fit the training subjects.

        Parameters
        ----------
        network : ScaleDense, changed in place
        predictions : dict of str to (N,) float array, years
            ``brain_age`` and ``chronological_age`` of the training subjects, without augmentation.

        Notes
        -----
        Augmented scans look older than clean ones, so that networks trained
        on them estimated clean scans up to 5 years too young, and flat.
        """
        age, brain_age = predictions["chronological_age"], predictions["brain_age"]
        slope = float(np.polyfit(age, brain_age, 1)[0]) if np.ptp(age) > 0 else 1.0
        if not LEAST_SLOPE < slope < 1 / LEAST_SLOPE:
            slope = 1.0  # it has not learned yet
        scale_output(network, 1 / slope, float(age.mean() - (brain_age.mean() - network.config.age_mean) / slope)
                     - network.config.age_mean)  # fmt: skip

    def report(self, predictions: Predictions) -> tuple[dict[str, float], str]:
        """Find out whether everybody gets nearly the same age.

        Parameters
        ----------
        predictions : dict of str to (N,) float array, years
            ``chronological_age``, ``brain_age``.

        Returns
        -------
        scalars : dict
            ``brain_age_sd``, years.
        warning : str
            Empty unless `brain_age_sd` is below a twentieth of that of the chronological ages.
        """
        sd, age_sd = (float(np.std(predictions[name])) for name in ("brain_age", "chronological_age"))
        if not sd < STUCK_SHARE * age_sd:
            return {"brain_age_sd": sd}, ""
        return {"brain_age_sd": sd}, (
            f"FIRST STAGE STUCK: its brain ages have a standard deviation of only {sd:.2f} years, the chronological "
            f"ages {age_sd:.1f}, so everybody gets nearly the same age. This is usual in the first epochs; later, "
            "train longer or raise LEARNING_RATE (--learning_rate)."
        )


class SecondStage:
    """Refine the discretized age of the first stage by a residual.

    Parameters
    ----------
    age_interval : float, years
        The step of the discretized ages.
    age_jitter : float, years
        Standard deviation of the error that `perturb` adds to the first stage's ages.
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

    def perturb(self, batch: dict[str, Any], seed: Sequence[int], share: Share | None = None) -> dict[str, Any]:
        """Add an error to the first stage's ages, so that they err as much as on new subjects.

        Parameters
        ----------
        batch : dict
            With ``first_stage_age``, (B,) float tensor, years, and
            ``out_of_fold``, (B,) bool tensor; out-of-fold ages stay as they are.
        seed : sequence of int
        share : Share or None
            What `batch` is of a joint batch; None: all of it.

        Returns
        -------
        dict
            As `batch`, with ``discretized_age`` of the perturbed ages.

        Notes
        -----
        A first stage errs less on its training subjects than on new ones,
        which leaves the second stage little to learn.
        """
        if not self.age_jitter:
            return batch
        ages = batch["first_stage_age"].numpy()
        error = Draws((*seed, 1), share or Share(len(ages))).normal(self.age_jitter)
        ages = np.where(batch["out_of_fold"].numpy(), ages, ages + error)
        discretized = torch.from_numpy(discretize_age(ages, self.age_interval).astype(np.float32))
        return batch | {"discretized_age": discretized}

    def recalibrate(self, network: Any, predictions: Predictions) -> None:
        """Correct the level of the brain ages; the slope of in-sample ages tells nothing of new subjects."""
        scale_output(network, 1.0, float((predictions["chronological_age"] - predictions["brain_age"]).mean()))

    def report(self, predictions: Predictions) -> tuple[dict[str, float], str]:
        """Compare the second stage with the first, and find out whether it has collapsed.

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
            Empty unless the stage has collapsed: `residual_sd` is below a
            tenth of the age interval, so all it does is to add a constant to
            each discretized age.
        """
        age = predictions["chronological_age"]
        sd = residual_sd_within_bins(predictions["residual_age"], predictions["discretized_age"])
        gain = np.abs(predictions["first_stage_age"] - age).mean() - np.abs(predictions["brain_age"] - age).mean()
        scalars = {"residual_sd": sd, "gain_over_first_stage": float(gain)}
        if not sd < COLLAPSED_SD * self.age_interval:
            return scalars, ""
        return scalars, (
            f"SECOND STAGE COLLAPSED: its residual has a standard deviation of only {sd:.3f} years within equal "
            f"discretized ages (limit {COLLAPSED_SD * self.age_interval:g}), so it adds a constant to each. This is "
            "usual in the first epochs; later, train longer or raise LEARNING_RATE (--learning_rate)."
        )
