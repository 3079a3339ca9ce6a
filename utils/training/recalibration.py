"""Statistics of batch norm that fit the weights."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from utils.common import distributed
from utils.evaluation.predicting import autocast


def recompute_statistics(network: Any, volumes: Iterable[torch.Tensor], precision: str) -> None:
    """Replace the running statistics of batch norm by those of some volumes; frozen ones stay.

    Parameters
    ----------
    network : ScaleDense, changed in place
        Ends in training mode.
    volumes : iterable of (B, 1, D, H, W) float32 tensors
        Of this process, in batches of equal size.
    precision : {"auto", "bfloat16", "float32"}

    Notes
    -----
    During training they lag behind the weights, and they see augmented
    scans. With few steps an epoch, estimates are then off by years, all in
    one direction.
    """
    trunk = network.train().trunk
    norms = [part for part in trunk.modules() if isinstance(part, nn.BatchNorm3d) and part.training]  # not frozen
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
    with torch.no_grad():
        for number, batch in enumerate(volumes, 1):
            for norm in norms:
                norm.momentum = 1 / number  # the mean of all batches; None would make torch wait for the device
            with autocast(batch.device, precision):
                trunk(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    distributed.average_statistics(network)
