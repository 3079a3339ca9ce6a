"""The SoDeep sorter: a recurrent network that ranks a fixed number of ages."""

import argparse  # only for the class that released sorters hold
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from model.conventions import SORTER_TYPES
from model.ranking import tied_rank
from model.state_dicts import read_plain, usable_weights

HIDDEN_UNITS = dict(zip(SORTER_TYPES, (128, 512), strict=True))


class Sorter(nn.Module):
    """Approximate `tied_rank` by a two-layer bidirectional LSTM and a convolution.

    Parameters
    ----------
    model_type : {"lstm", "lstmla"}
        128 or 512 units a direction, by the names of the SoDeep code.
    length : int
        How many ages are ranked at once.
    score_mean, score_sd : float
        Scores are standardized by these; the authors' sorters have 0 and 1.

    References
    ----------
    Engilberge et al., "SoDeep: a sorting deep net to learn ranking loss
    surrogates", CVPR 2019.
    """

    def __init__(self, model_type: str, length: int, score_mean: float = 0.0, score_sd: float = 1.0) -> None:
        super().__init__()
        if model_type not in HIDDEN_UNITS:
            raise ValueError(f"sorter type is '{model_type}'; expected one of {', '.join(HIDDEN_UNITS)}")
        if length < 2:
            raise ValueError(f"sorter length is {length}; expected at least 2")
        self.model_type = model_type
        self.length = length
        self.score_mean = score_mean
        self.score_sd = score_sd
        hidden = HIDDEN_UNITS[model_type]
        self.lstm = nn.LSTM(1, hidden, 2, batch_first=True, bidirectional=True)
        self.conv1 = nn.Conv1d(length, length, 2 * hidden)

    def forward(self, scores: torch.Tensor) -> torch.Tensor:
        """Map (length,) or (B, length) scores to ranks of the same shape.

        Raises
        ------
        ValueError
            If the number of scores is not `length`.
        """
        if scores.shape[-1] != self.length:
            raise ValueError(f"{scores.shape[-1]} scores for a sorter of length {self.length}")
        standardized = (scores.reshape(-1, self.length, 1) - self.score_mean) / self.score_sd
        # The backward pass of cuDNN's LSTM exists in training mode alone; without dropout
        # the mode changes nothing else.
        self.lstm.train()
        states, _ = self.lstm(standardized)
        return self.conv1(states).view(scores.shape)

    def to_checkpoint(self) -> dict[str, Any]:
        """Return what `load_sorter` reads."""
        settings = ("model_type", "length", "score_mean", "score_sd")
        return {
            "sorter": {name: getattr(self, name) for name in settings},
            "state_dict": self.state_dict(),
        }


def load_sorter(path: Path) -> Sorter:
    """Read a sorter of this project or of the SoDeep authors.

    Parameters
    ----------
    path : Path
        Loaded without running code: only tensors, plain values and the
        `argparse.Namespace` that released sorters hold are allowed.

    Raises
    ------
    ValueError
        If the file is missing, holds anything else, or is no sorter.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such sorter; train one, or use soft ranking")
    try:
        content = read_plain(path, argparse.Namespace)
        weights = usable_weights(content["state_dict"])
        if "sorter" in content:
            settings = dict(content["sorter"])
        else:
            released = content["args_dict"]
            settings = {"model_type": released.model_type, "length": released.seq_len}
        if weights["conv1.weight"].shape[0] != settings["length"]:  # before memory is taken for as many
            raise ValueError(f"its weights do not fit a sorter of length {settings['length']}")
        sorter = Sorter(**settings)
        sorter.load_state_dict({name.removeprefix("module."): value for name, value in weights.items()})
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: is no sorter; expected one of this project or of the SoDeep authors") from error
    except RuntimeError as error:
        raise ValueError(f"{path}: its weights do not fit a {settings['model_type']} sorter") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}; train a sorter, or use soft ranking") from error
    return sorter


def draw_scores(batch_size: int, length: int, low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    """Draw synthetic ages as a batch of subjects would have them.

    A third each is uniform over the range, normal around a random centre,
    and evenly spaced with noise; some ages are whole years, so that ties
    occur.

    Parameters
    ----------
    batch_size, length : int
    low, high : float, years
    generator : torch.Generator

    Returns
    -------
    (batch_size, length) float32 tensor, years
    """

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    span = high - low
    spread = uniform(batch_size, length)
    clustered = uniform(batch_size, 1) + 0.3 * uniform(batch_size, 1) * normal(batch_size, length)
    order = uniform(batch_size, length).argsort(1).float() / max(1, length - 1)
    even = order + 0.02 * normal(batch_size, length)
    kinds = torch.randint(3, (batch_size, 1), generator=generator)
    fractions = torch.where(kinds == 0, spread, torch.where(kinds == 1, clustered, even))
    scores = low + span * fractions.clamp(0, 1)
    return torch.where(uniform(batch_size, 1) < 0.2, scores.round(), scores)


def fit_sorter(
    sorter: Sorter,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    low: float,
    high: float,
    generator: torch.Generator,
    device: torch.device,
) -> Iterator[tuple[int, float]]:
    """Train a sorter on synthetic ages, yielding each step and its loss.

    Parameters
    ----------
    sorter : Sorter
    steps, batch_size : int
    learning_rate : float
        Of Adam; falls to zero along a cosine.
    low, high : float, years
    generator : torch.Generator
    device : torch.device

    Yields
    ------
    step : int
    loss : float
        Mean absolute error of the ranks, in places.
    """
    sorter.to(device).train()
    optimizer = torch.optim.Adam(sorter.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(1, steps + 1):
        scores = draw_scores(batch_size, sorter.length, low, high, generator).to(device)
        target = torch.vmap(tied_rank)(scores)
        loss = (sorter(scores) - target).abs().mean() * sorter.length
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(sorter.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        yield step, loss.item()


@torch.no_grad()
def evaluate_sorter(
    sorter: Sorter, low: float, high: float, generator: torch.Generator, batches: int = 500
) -> dict[str, float]:
    """Measure how well a sorter ranks new synthetic ages.

    Returns
    -------
    dict
        ``rank_error``: mean absolute error in places; ``correlation``: mean
        Pearson correlation of approximate and true ranks within a batch.
    """
    device = next(sorter.parameters()).device
    scores = draw_scores(batches, sorter.length, low, high, generator).to(device)
    target = torch.vmap(tied_rank)(scores)
    ranks = sorter(scores)
    a = ranks - ranks.mean(1, keepdim=True)
    b = target - target.mean(1, keepdim=True)
    correlation = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp_min(1e-12)
    return {
        "rank_error": float((ranks - target).abs().mean() * sorter.length),
        "correlation": float(correlation.mean()),
    }
