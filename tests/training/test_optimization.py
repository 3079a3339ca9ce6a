"""Optimizers and learning rates."""

import pytest
import torch

from tests.training.helpers import flags
from utils.options.flags import settings_from
from utils.training.optimization import make_optimizer, make_scheduler
from utils.training.settings import TrainingSettings


def rates(*extra: object) -> list[float]:
    settings = settings_from(TrainingSettings, flags("--epochs", 10, "--lr", 1.0, "--optimizer", "sgd", *extra))
    optimizer = make_optimizer([torch.nn.Parameter(torch.zeros(1))], settings)
    scheduler = make_scheduler(optimizer, settings)
    seen = []
    for _ in range(10):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step(*([5.0] if settings.scheduler == "plateau" else []))
    return seen


def test_schedules() -> None:
    cosine = rates("--scheduler", "cosine", "--warmup_epochs", 2, "--min_lr", 0.1)
    assert cosine[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert cosine[2:] == sorted(cosine[2:], reverse=True)
    assert 0.1 < cosine[-1] < 0.2
    assert rates("--scheduler", "constant") == [1.0] * 10
    assert rates("--scheduler", "plateau", "--plateau_epochs", 3) == pytest.approx([1.0] * 5 + [0.5] * 4 + [0.25])


def test_optimizers() -> None:
    def make(*extra: object) -> torch.optim.Optimizer:
        settings = settings_from(TrainingSettings, flags("--lr", 0.1, "--weight_decay", 5e-4, *extra))
        return make_optimizer([torch.nn.Parameter(torch.zeros(1))], settings)

    sgd, adam, adamw = (
        make("--optimizer", "sgd", "--momentum", 0.9),
        make("--optimizer", "adam", "--amsgrad", "true"),
        make(),
    )
    assert (type(sgd), type(adam), type(adamw)) == (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
    assert sgd.defaults["momentum"] == 0.9
    assert (adam.defaults["amsgrad"], adamw.defaults["amsgrad"]) == (True, False)
    assert all((one.defaults["lr"], one.defaults["weight_decay"]) == (0.1, 5e-4) for one in (sgd, adam, adamw))
