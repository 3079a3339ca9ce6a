"""Build networks and losses from flags or from a checkpoint."""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from model.ranking import CascadeLoss, SoftRank
from model.released import convert_released, is_released
from model.scaledense import NetworkConfig, ScaleDense
from model.sorter import load_sorter


def make_config(
    args: Namespace,
    stage: int,
    volume_shape: tuple[int, int, int],
    field_of_view: tuple[tuple[int, int], ...] | None,
    train_ages: Sequence[float],
) -> NetworkConfig:
    """Make the configuration of a network that is to be trained.

    Parameters
    ----------
    args : Namespace with ``model``, ``use_sex``, ``blocks``, ``filters``, ``flip_averaging``,
        ``dense_connections``
    stage : {1, 2}
    volume_shape : tuple of 3 int
    field_of_view : tuple of 3 (first, last) int, voxels, or None
    train_ages : sequence of float, years
        The chronological ages of the training subjects.

    Raises
    ------
    ValueError
        If the flags and the volume do not go together.
    """
    ages = torch.tensor(train_ages, dtype=torch.float64)
    sd = float(ages.std(correction=0))
    return NetworkConfig(
        stage=stage,
        model=args.model,
        use_sex=args.use_sex,
        volume_shape=volume_shape,
        field_of_view=field_of_view,
        flip_averaging=args.flip_averaging,
        dense_connections=args.dense_connections,
        blocks=args.blocks,
        filters=args.filters,
        age_mean=float(ages.mean()),
        age_sd=sd if sd > 0 else 1.0,
    )


def make_network(config: NetworkConfig, seed: int, activation_checkpointing: bool = False) -> ScaleDense:
    """Make a network with new weights; sets the seed of torch's global generator."""
    torch.manual_seed(seed)
    network = ScaleDense(config)
    network.trunk.activation_checkpointing = activation_checkpointing
    return network


def start_from_first_stage(second: ScaleDense, first: ScaleDense) -> None:
    """Let a second stage begin where the first has ended: its residual undoes the discretization.

    Parameters
    ----------
    second : ScaleDense, changed in place
    first : ScaleDense

    Raises
    ------
    ValueError
        If the two have other layers or another grid.

    Notes
    -----
    With the first stage's output a + s z (a and s are the mean and the
    deviation of the training ages) and the discretized age a + s d, the
    residual starts as s (z - d), so that the cascade starts with the first
    stage's estimates. Two units carry d and -d through the layers of the
    discretized age.

    From new weights the second stage stands on a plateau: the residual is
    nearly uncorrelated with anything in the image until both the age that
    the image shows and the discretized age are taken together, so that it
    goes on predicting a constant.
    """
    names = ["model", "volume_shape", "field_of_view", "filters", "use_sex"]
    if first.config.model != "perceptron":
        names += ["blocks", "dense_connections"]
    different = [name for name in names if getattr(first.config, name) != getattr(second.config, name)]
    if different:
        raise ValueError(
            f"the first stage differs in {', '.join(different)}; train the second with the same, "
            "or start it from new weights (--start_from_first_stage false)"
        )
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


def make_loss(args: Namespace) -> CascadeLoss:
    """Make the loss that the flags name.

    Parameters
    ----------
    args : Namespace with ``loss``, ``ranking``, ``sorter``, ``rank_temperature``,
        ``ranking_weight``, ``age_difference_weight``

    Raises
    ------
    ValueError
        If the sorter is missing or unusable.
    """
    ranker: torch.nn.Module | None = None
    if args.ranking == "soft":
        ranker = SoftRank(args.rank_temperature)
    elif args.ranking == "sodeep":
        if args.sorter is None:
            raise ValueError("--ranking sodeep needs --sorter; make one with bash_train_sorter.sh")
        ranker = load_sorter(args.sorter)
    return CascadeLoss(args.loss, ranker, args.ranking_weight, args.age_difference_weight)


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
    weights = checkpoint["state_dict"]
    if not isinstance(weights, Mapping) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise ValueError("has a 'state_dict' that holds no weights by name")
    if "network" in checkpoint:
        try:
            config = NetworkConfig(**checkpoint["network"])
        except TypeError as error:
            raise ValueError(f"describes its network in an unknown way ({error})") from error
        if use_sex not in (None, config.use_sex):
            raise ValueError(f"was trained with --use_sex {config.use_sex}; leave the flag out")
    elif is_released(weights):
        config, weights = convert_released(weights, use_sex is not False)
    else:
        raise ValueError("is no checkpoint of this project or of the authors")
    if config.stage != stage:
        names = {1: "first", 2: "second"}
        raise ValueError(f"holds a {names[config.stage]} stage; expected a {names[stage]} stage")
    with torch.device("meta"):
        network = ScaleDense(config)
    try:
        network.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise ValueError(f"its weights do not fit its network ({str(error).splitlines()[1].strip()})") from error
    return network.eval()
