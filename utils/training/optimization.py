"""Optimizers and learning rates."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

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
