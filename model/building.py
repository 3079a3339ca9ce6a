"""Build networks and losses, new or from a checkpoint."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from model.ranking import CascadeLoss, SoftRank
from model.released import convert_released, is_released, translate_name
from model.scaledense import NetworkConfig, ScaleDense
from model.sorter import load_sorter
from model.state_dicts import usable_weights

REMOVED = ("local_sd", "registered_sd", "native_sd")  # normalizations of version 0.1


def scale_to(config: NetworkConfig, train_ages: Sequence[float], stage: int) -> NetworkConfig:
    """Return a configuration of the same network for a stage and for these training ages, years."""
    ages = torch.tensor(train_ages, dtype=torch.float64)
    sd = float(ages.std(correction=0))
    return replace(config, stage=stage, age_mean=float(ages.mean()), age_sd=sd if sd > 0 else 1.0)


def make_network(
    config: NetworkConfig,
    seed: int,
    activation_checkpointing: bool = False,
    released_start: bool = False,
    initial: ScaleDense | None = None,
    freeze_blocks: int = 0,
) -> ScaleDense:
    """Make a network to be trained; sets the seed of torch's global generator.

    Parameters
    ----------
    config : NetworkConfig
    seed : int
    activation_checkpointing : bool
        Whether training keeps only the inputs of the blocks.
    released_start : bool
        Whether the last layer starts as the authors' does, rather than at 0.
    initial : ScaleDense or None
        One of the same configuration, whose weights it starts from; None: new weights.
    freeze_blocks : int
        See `freeze`.

    Raises
    ------
    ValueError
        If the network has fewer blocks than that.
    """
    torch.manual_seed(seed)
    network = ScaleDense(config)
    if released_start:
        nn.init.xavier_normal_(network.output_layer[-1].weight)  # type: ignore[arg-type]
    if initial is not None:
        network.load_state_dict(initial.state_dict())
    network.trunk.activation_checkpointing = activation_checkpointing
    freeze(network, freeze_blocks)
    return network


def freeze(network: ScaleDense, blocks: int) -> None:
    """Keep the weights and the running statistics of the stem and the first blocks as they are.

    Parameters
    ----------
    network : ScaleDense, changed in place
    blocks : int
        0 freezes nothing, not even the stem; all of them leaves the head to train.

    Raises
    ------
    ValueError
        If the network has fewer blocks.
    """
    trunk = network.trunk
    if blocks > len(trunk.blocks):
        raise ValueError(f"the network has only {len(trunk.blocks)} blocks, not {blocks}")
    trunk.frozen = [trunk.stem, *trunk.blocks[:blocks]] if blocks else []
    for part in trunk.frozen:
        part.requires_grad_(False)


def scale_output(network: ScaleDense, factor: float, shift: float) -> None:
    """Multiply what a network adds to its constant by a factor, and add a shift in years.

    Parameters
    ----------
    network : ScaleDense, changed in place
    factor : float
    shift : float, years
    """
    last: Any = network.output_layer[-1]
    with torch.no_grad():
        last.weight *= factor
        last.bias *= factor
        last.bias += shift / network.config.age_sd


def start_from_first_stage(second: ScaleDense, first: ScaleDense) -> None:
    """Give a second stage the first one's weights, and a residual that undoes the discretization.

    Parameters
    ----------
    second : ScaleDense, changed in place
    first : ScaleDense
        With the same layers, apart from the head.

    Notes
    -----
    Write the first stage's output as a + s z and the discretized age as
    a + s d, where a and s are mean and standard deviation of the training
    ages. The residual starts as s (z - d), so the cascade starts with the
    first stage's estimates. Two units carry d and -d through the layers of
    the discretized age.

    From new weights the second stage tends to stay at a constant: the
    residual is hardly correlated with the image alone or with the
    discretized age alone, only with both together.
    """
    own = ("output_layer.", "discretized_age_layer.")
    second.load_state_dict(
        {name: value for name, value in first.state_dict().items() if not name.startswith(own)}, strict=False
    )
    layers: Any = second.discretized_age_layer
    ours: Any = second.output_layer
    theirs: Any = first.output_layer
    known = theirs[0].in_features  # what the first stage's head sees comes first
    scale = first.config.age_sd / second.config.age_sd
    shift = (first.config.age_mean - second.config.age_mean) / second.config.age_sd
    with torch.no_grad():
        layers[0].weight[:2] = torch.tensor([[1.0], [-1.0]])
        layers[0].bias[:2] = 0
        layers[2].weight[:2] = torch.eye(2, layers[2].in_features)
        layers[2].bias[:2] = 0
        ours[1].weight.copy_(scale * theirs[1].weight)
        ours[1].bias.copy_(scale * theirs[1].bias + shift)
        ours[0].weight[:, :known] = theirs[0].weight
        ours[0].weight[:, known:] = 0
        ours[0].bias.copy_(theirs[0].bias)
        column = ours[1].weight[0] / ours[1].weight.square().sum().clamp_min(1e-12)
        ours[0].weight[:, known] = -column
        ours[0].weight[:, known + 1] = column


def make_loss(
    loss: str,
    ranking: str,
    sorter: Path | None,
    rank_temperature: float,
    ranking_weight: float,
    age_difference_weight: float,
) -> CascadeLoss:
    """Make the loss of a stage.

    Parameters
    ----------
    loss : {"mse", "mae"}
    ranking : {"soft", "sodeep", "none"}
    sorter : Path or None
        See `model.sorter.load_sorter`; for ``sodeep``.
    rank_temperature : float, years
        For ``soft``; see `model.ranking.SoftRank`.
    ranking_weight, age_difference_weight : float
        Lambda and beta of the paper.

    Raises
    ------
    ValueError
        If the sorter is missing or unusable.
    """
    ranker: nn.Module | None = None
    if ranking == "soft":
        ranker = SoftRank(rank_temperature)
    elif ranking == "sodeep":
        if sorter is None:
            raise ValueError("sodeep ranking needs a sorter; none was given")
        ranker = load_sorter(sorter)
    return CascadeLoss(loss, ranker, ranking_weight, age_difference_weight)


def load_network(checkpoint: Mapping[str, Any], stage: int, use_sex: bool | None = None) -> ScaleDense:
    """Rebuild the network of a checkpoint, ours or the authors'.

    Parameters
    ----------
    checkpoint : mapping
        With ``state_dict``, and ``network`` unless the authors released it.
    stage : {1, 2}
        The stage that it must be of.
    use_sex : bool or None
        Which head of a released checkpoint to take; None takes that with
        sex. Checkpoints of this project have one head.

    Returns
    -------
    ScaleDense in evaluation mode

    Raises
    ------
    ValueError
        If the checkpoint is of the other stage, contradicts `use_sex`, or
        its weights do not fit.
    """
    weights = usable_weights(checkpoint["state_dict"])
    if "network" in checkpoint:
        if checkpoint["network"].get("model") == "perceptron" or checkpoint.get("normalization") in REMOVED:
            raise ValueError("is a network of version 0.1 on local deviations, which were removed; train a new one")
        unknown = sorted(set(checkpoint["network"]) - {part.name for part in fields(NetworkConfig)})
        if unknown:
            raise ValueError(
                f"is of a newer version: its network has {', '.join(unknown)}, unknown to this one; update this project"
            )
        try:
            config = NetworkConfig(**checkpoint["network"])
        except TypeError as error:
            raise ValueError(f"describes its network in an unknown way ({error})") from error
        if use_sex not in (None, config.use_sex):
            raise ValueError(
                f"was trained {'with' if config.use_sex else 'without'} sex; do not ask for the other head"
            )
        weights = {translate_name(name) or name: value for name, value in weights.items()}
    elif is_released(weights):
        config, weights = convert_released(weights, use_sex is not False)
    else:
        raise ValueError("is neither a checkpoint of this project nor one of the authors'")
    if config.stage != stage:
        names = {1: "first", 2: "second"}
        raise ValueError(f"holds a {names[config.stage]} stage; expected a {names[stage]} stage")
    try:
        with torch.device("meta"):
            network = ScaleDense(config)
        network.load_state_dict(weights, assign=True)
    except (RuntimeError, TypeError, OverflowError) as error:
        reason = str(error).splitlines()[:2]
        raise ValueError(f"its weights do not fit its network ({reason[-1].strip()})") from error
    return network.eval()
