"""The losses of both stages: error, Spearman ranking and age difference."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from model.conventions import LOSSES

ERRORS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "mse": functional.mse_loss,
    "mae": functional.l1_loss,
}


def tied_rank(values: torch.Tensor) -> torch.Tensor:
    """Rank values as fractions of their number: the largest 1/N, the smallest 1.

    Parameters
    ----------
    values : (N,) float tensor

    Returns
    -------
    (N,) float32 tensor
        Equal values share the mean of their ranks.
    """
    difference = values[None, :] - values[:, None]
    above = (difference > 0).float() + 0.5 * (difference == 0).float()
    return (0.5 + above.sum(1)) / len(values)


class SoftRank(nn.Module):
    """Rank values smoothly, in closed form, for any number of them.

    Parameters
    ----------
    temperature : float, years
        Ages much further apart than this have sharp ranks.

    Notes
    -----
    rank_i = (1/2 + sum_j sigmoid((v_j - v_i) / temperature)) / N. The limit
    of small temperatures is `tied_rank`; equal values share their rank at
    every temperature; a single value has rank 1.

    References
    ----------
    Qin, Liu and Li, "A general approximation framework for direct
    optimization of information retrieval measures", Information Retrieval
    2010 (the pairwise logistic rank).
    """

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}; expected a positive number of years")
        self.temperature = temperature

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Map (N,) float values in years to (N,) ranks, the largest value's the smallest."""
        above = torch.sigmoid((values[None, :] - values[:, None]) / self.temperature)
        return (0.5 + above.sum(1)) / len(values)


def age_difference_loss(brain_age: torch.Tensor, chronological_age: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
    """Compare the age differences within pairs of subjects.

    Parameters
    ----------
    brain_age, chronological_age : (N,) float tensors, years
    pairs : (2, P) int64 tensor
        The subjects i and j of each pair.

    Returns
    -------
    () float tensor, years squared
        Mean over the pairs of ((p_i - p_j) - (y_i - y_j))^2.

    References
    ----------
    Cheng et al. 2021, section III-D.
    """
    first, second = pairs
    gap = brain_age - chronological_age
    return (gap[first] - gap[second]).square().mean()


class CascadeLoss(nn.Module):
    """Error + ranking_weight * (ranking + age_difference_weight * age difference).

    Parameters
    ----------
    loss : {"mse", "mae"}
    ranker : Module or None
        Maps (N,) ages to (N,) differentiable ranks: `SoftRank` or a
        `Sorter`. None leaves out the ranking term alone.
    ranking_weight, age_difference_weight : float
        Lambda and beta of the paper.

    Notes
    -----
    The second stage's error is that of the residual age; it equals that of
    the final age, for the discretized age stands on both sides. Everything
    here runs in float32.

    References
    ----------
    Cheng et al. 2021, section III-D.
    """

    def __init__(
        self,
        loss: str = "mse",
        ranker: nn.Module | None = None,
        ranking_weight: float = 10.0,
        age_difference_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if loss not in LOSSES:
            raise ValueError(f"loss is '{loss}'; expected one of {', '.join(LOSSES)}")
        self.error = ERRORS[loss]
        self.error_name = f"{loss}_loss"
        self.ranker = ranker.requires_grad_(False) if ranker is not None else None
        self.ranking_weight = ranking_weight
        self.age_difference_weight = age_difference_weight

    @property
    def batch_size(self) -> int | None:
        """The one number of subjects that the ranker takes, or None for any."""
        return getattr(self.ranker, "length", None)

    def forward(
        self,
        brain_age: torch.Tensor,
        chronological_age: torch.Tensor,
        generator: torch.Generator,
    ) -> dict[str, torch.Tensor]:
        """Compute the total and its parts.

        Parameters
        ----------
        brain_age, chronological_age : (N,) float tensors, years
        generator : torch.Generator, on the CPU
            Draws as many pairs as there are subjects.

        Returns
        -------
        dict of str to () float32 tensor
            ``loss`` is the total; ``mse_loss`` or ``mae_loss``, ``ranking`` and
            ``age_difference`` are its parts, without their weights. Where
            gradients are recorded, ``<part>_gradient`` is the norm of the
            weighted part's gradient with respect to the brain ages.
        """
        predicted, target = brain_age.float(), chronological_age.float()
        pairs = torch.randint(len(target), (2, len(target)), generator=generator).to(target.device, non_blocking=True)
        error = self.error(predicted, target)
        age_difference = age_difference_loss(predicted, target, pairs)
        ranking = torch.zeros_like(error)
        if self.ranker is not None:
            ranking = functional.mse_loss(self.ranker(predicted), tied_rank(target))
        parts = {self.error_name: error, "ranking": ranking, "age_difference": age_difference}
        weights = 1.0, self.ranking_weight, self.ranking_weight * self.age_difference_weight
        weighted = {name: weight * part for (name, part), weight in zip(parts.items(), weights, strict=True) if weight}
        gradients = {
            f"{name}_gradient": torch.autograd.grad(part, predicted, retain_graph=True)[0].norm()
            for name, part in weighted.items()
            if part.requires_grad
        }
        return {"loss": sum(weighted.values(), torch.zeros_like(error)), **parts, **gradients}
