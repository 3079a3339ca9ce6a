"""Optimizers, learning rates and compilation."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from utils.common import distributed
from utils.training.settings import TrainingSettings


def make_optimizer(parameters: Iterable[nn.Parameter], settings: TrainingSettings) -> torch.optim.Optimizer:
    """Make the optimizer, fused: it updates all weights in one pass over them."""
    options: dict[str, Any] = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay, "fused": True}
    if settings.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=settings.momentum, **options)
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, amsgrad=settings.amsgrad, **options)


def make_scheduler(optimizer: torch.optim.Optimizer, settings: TrainingSettings) -> Any:
    """Make the schedule of the learning rate, stepped once an epoch."""
    if settings.scheduler == "plateau":
        return torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer,
            factor=settings.plateau_factor,
            patience=settings.plateau_epochs,
            min_lr=settings.minimum_learning_rate,
        )
    lowest = settings.minimum_learning_rate / settings.learning_rate
    warmup = settings.warmup_epochs

    def factor(epoch: int) -> float:
        if epoch < warmup:
            return (epoch + 1) / (warmup + 1)
        if settings.scheduler == "constant":
            return 1.0
        part = (epoch - warmup) / max(1, settings.epochs - warmup)
        return lowest + (1 - lowest) * 0.5 * (1 + math.cos(math.pi * min(1.0, part)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def compiled(network: nn.Module, device: torch.device) -> nn.Module:
    """Compile a network, or print why that is not possible here and return it as it is."""
    try:
        torch.compile(torch.nn.functional.elu)(torch.zeros(8, device=device))
    except Exception as error:  # a missing or failing compiler raises many types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if distributed.rank() == 0:
            print(f"note: torch.compile does not work here ({reason}); training goes on without it", flush=True)
        return network
    return torch.compile(network)  # type: ignore[return-value]
