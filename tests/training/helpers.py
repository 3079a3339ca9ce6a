"""What the tests of training share: flags, a small network, and training it."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import torch

from model.ranking import CascadeLoss, SoftRank
from model.scaledense import NetworkConfig, ScaleDense
from tests.conftest import QUICK
from utils.data.dataset import ScanDataset
from utils.options.flags import flags_of, settings_from
from utils.options.training import parse_training_flags
from utils.training.run_log import SPEEDS
from utils.training.settings import TrainingSettings
from utils.training.stages import FirstStage
from utils.training.trainer import Trainer

CPU = torch.device("cpu")
CONFIG = NetworkConfig(1, "scaledense_paper", True, (23, 27, 23), 3, 4, 50.0, 20.0)
Datasets = tuple[ScanDataset, ScanDataset]


def flags(*extra: object) -> Namespace:
    return parse_training_flags(1, [*QUICK, "--warmup_epochs", "0", *map(str, extra)])


def small_network(seed: int = 0) -> ScaleDense:
    torch.manual_seed(seed)
    return ScaleDense(CONFIG)


def make_trainer(
    datasets: Datasets, folder: Path, args: Namespace, network: Any = None, loss: Any = None, stage: Any = None
) -> Trainer:
    network = network or small_network()
    return Trainer(
        network,
        stage or FirstStage(),
        loss or CascadeLoss(ranker=SoftRank()),
        *datasets,
        folder,
        settings_from(TrainingSettings, args),
        flags_of(args),
        CPU,
        {"network": network.config.to_dict()},
    )


def train(datasets: Datasets, folder: Path, args: Namespace, network: Any = None, **parts: Any) -> Path:
    return make_trainer(datasets, folder, args, network, **parts).fit()


def same(a: object, b: object) -> bool:
    """Whether two checkpoints, or parts of them, are equal bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def states(folder: Path) -> list[dict[str, Any]]:
    """What last.pt and best.pt hold, without speeds and names of folders."""
    contents = []
    for name in ("last.pt", "best.pt"):
        content = torch.load(folder / name, weights_only=True)
        content.pop("flags", None)
        for row in content.get("history", []):
            for speed in SPEEDS:
                row.pop(speed)
        contents.append(content)
    return contents
