"""Both stages as one network, and several of them together."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from model.conventions import UNKNOWN_SEX, discretize_age
from model.scaledense import ScaleDense


class Cascade(nn.Module):
    """The mean of several two-stage cascades, for prediction alone.

    Parameters
    ----------
    members : sequence of (first stage, second stage)
    age_interval : float, years
        Step of the discretized ages.

    Notes
    -----
    The gradient passes the discretization unchanged, so that maps show both
    stages. A subject of unknown sex gets the mean of the estimates for a
    woman and for a man.
    """

    def __init__(self, members: Sequence[tuple[ScaleDense, ScaleDense]], age_interval: float) -> None:
        super().__init__()
        self.members = nn.ModuleList(nn.ModuleList(member) for member in members)
        self.age_interval = age_interval
        self.eval()

    @property
    def uses_sex(self) -> bool:
        """Whether any network takes the sex."""
        members: Any = self.members
        return any(network.config.use_sex for member in members for network in member)

    def folded(self) -> "Cascade":
        """Return a faster copy for evaluation alone; see `model.folding`."""
        members: Any = self.members
        return Cascade([(first.folded(), second.folded()) for first, second in members], self.age_interval)

    def forward(self, volumes: torch.Tensor, sex: torch.Tensor) -> torch.Tensor:
        """Estimate brain ages.

        Parameters
        ----------
        volumes : (B, 1, D, H, W) float32 tensor, MNI152 space, normalized
        sex : (B,) int64 tensor, 0 female, 1 male, -1 unknown

        Returns
        -------
        (B,) float32 tensor, years
        """
        if self.uses_sex and bool((sex == UNKNOWN_SEX).any()):
            return (self(volumes, torch.where(sex < 0, 0, sex)) + self(volumes, torch.where(sex < 0, 1, sex))) / 2
        members: Any = self.members
        ages = []
        for first, second in members:
            age = first(volumes, sex)
            discretized_age = age + (discretize_age(age.detach(), self.age_interval) - age.detach())
            ages.append(discretized_age + second(volumes, sex, discretized_age))
        return torch.stack(ages).mean(0)
