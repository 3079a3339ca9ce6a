"""Small trainings in one process or as one of several, and what comes out of them."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo  # which the first optimizer would import, in each process anew

from model.ranking import CascadeLoss, SoftRank
from model.scaledense import NetworkConfig, ScaleDense
from model.sorter import Sorter
from tests.training.helpers import CPU, flags, make_trainer
from utils.common import distributed
from utils.common.choices import AUGMENTATIONS
from utils.data.dataset import ScanDataset
from utils.data.scans import Scan
from utils.data.subjects import Subject
from utils.evaluation.predicting import predict
from utils.training.stages import FirstStage, SecondStage

SHAPE = (14, 18, 16)
JOINT = 8  # subjects of a joint batch
UNEVEN = 3  # of the last batch: not even one for each of four processes
STEPS = 5
NETWORKS = "scaledense", "scaledense_paper"
RANKINGS = "soft", "sodeep", "none"
TYPES = {"float32": torch.float32, "float64": torch.float64}
Outcome = dict[str, Any]


class MadeScans:
    """Scans that are drawn when they are read."""

    def read(self, path: Path) -> Scan:
        rng = np.random.default_rng(int(path.name))
        coarse = rng.integers(1, 200, (4, 5, 4))  # each scan has structure of its own
        voxels = np.kron(coarse, np.ones((4, 4, 4)))[tuple(map(slice, SHAPE))].astype(np.uint8)
        return Scan(voxels, 1.0, 0.0, float(voxels.mean()), float(voxels.std()))


def made_subjects(count: int, start: int = 0) -> ScanDataset:
    ages = np.random.default_rng(count + start).uniform(20, 80, (count, 2))
    return ScanDataset(
        [
            Subject(f"sub-{start + i}", Path(str(start + i)), age, i % 2, guess, 5 * round(guess / 5), i % 3 == 0)
            for i, (age, guess) in enumerate(ages)
        ],
        MadeScans(),  # type: ignore[arg-type]
    )


def made_network(model: str, dtype: str, stage: int = 1) -> ScaleDense:
    """Make a network whose last layer is not 0, so that all gradients flow from the first step on."""
    torch.manual_seed(0)
    network = ScaleDense(NetworkConfig(stage, model, True, SHAPE, 2, 4, 50.0, 20.0)).to(TYPES[dtype])
    torch.nn.init.normal_(network.output_layer[-1].weight, std=0.1)  # type: ignore[arg-type]
    network.trunk.register_forward_pre_hook(lambda trunk, volumes: volumes[0].to(TYPES[dtype]))
    return network


class Recorded(CascadeLoss):
    """Keeps each loss."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.losses: list[float] = []

    def forward(self, *given: Any) -> dict[str, torch.Tensor]:
        parts = super().forward(*given)
        self.losses.append(parts["loss"].item())
        return parts


def make_ranker(ranking: str) -> torch.nn.Module | None:
    torch.manual_seed(1)
    return {"soft": lambda: SoftRank(), "sodeep": lambda: Sorter("lstm", JOINT), "none": lambda: None}[ranking]()


def take_steps(model: str, ranking: str, dtype: str, folder: Path) -> Outcome:
    """Return losses, gradients, weights and running statistics of an epoch of five steps, the last one uneven.

    A sorter ranks full batches alone.
    """
    network, loss = made_network(model, dtype), Recorded(ranker=make_ranker(ranking))
    size = JOINT * STEPS + UNEVEN if ranking == "sodeep" else JOINT * (STEPS - 1) + UNEVEN
    optimizer = ("sgd", "--lr", 1e-5, "--momentum", 0.9) if dtype == "float32" else ("adamw", "--lr", 1e-3)
    args = flags("--epochs", 1, "--batch_size", JOINT // distributed.world_size(), "--optimizer", *optimizer)
    trainer = make_trainer((made_subjects(size), made_subjects(0)), folder, args, network, loss)
    start = {name: value.clone() for name, value in network.state_dict().items()}
    gradients: list[torch.Tensor] = []

    def keep(*_: object) -> None:
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))

    trainer.optimizer.register_step_pre_hook(keep)
    trainer.train_epoch()
    return {"losses": loss.losses, "gradients": gradients, "start": start, "end": network.state_dict()}


def train_whole(stage: int, folder: Path, local: bool = False) -> Outcome:
    """Return what two epochs write down: with every augmentation, accumulation, recalibration and validation."""
    parts = {1: FirstStage(), 2: SecondStage(5.0, 6.0)}
    network = made_network("scaledense_paper", "float64", stage)
    size = JOINT // distributed.world_size()
    args = flags("--epochs", 2, "--batch_size", size, "--augmentation", ",".join(AUGMENTATIONS),
                 "--accumulation_steps", 2, "--sync_batch_norm", str(not local))  # fmt: skip
    train_set, valid_set = made_subjects(2 * JOINT + UNEVEN), made_subjects(7, start=100)
    trainer = make_trainer(
        (train_set, valid_set), folder, args, network, CascadeLoss(ranker=SoftRank()), parts[stage]
    )  # fmt: skip
    trainer.fit()
    return {"history": trainer.progress.history, "end": network.state_dict()}


def estimate(folder: Path) -> Outcome:
    """Return the estimates of seven subjects by a network that was never trained."""
    return predict(
        made_network("scaledense", "float32", 2), SecondStage(5.0), made_subjects(7), CPU,
        batch_size=2, num_workers=0, precision="float32", label="",
    )  # fmt: skip


STEP_CASES = [
    *((model, ranking, "float32") for model in NETWORKS for ranking in RANKINGS),
    *((model, "soft", "float64") for model in NETWORKS),
]
CASES: dict[str, Callable[[Path], Outcome]] = {
    **{", ".join(case): partial(take_steps, *case) for case in STEP_CASES},
    "first stage": partial(train_whole, 1),
    "second stage": partial(train_whole, 2),
    "local batch norm": partial(train_whole, 1, local=True),
    "prediction": estimate,
}


def run_cases(folder: Path) -> dict[str, Outcome]:
    """Return the outcome of every case; each case has a folder of its own."""
    return {name: case(folder / name) for name, case in CASES.items()}


def join_and_run(rank: int, world_size: int, folder: Path) -> None:
    """Run the cases as one of several processes, and save the outcomes."""
    start = f"file://{folder}/start"
    torch.distributed.init_process_group("gloo", init_method=start, rank=rank, world_size=world_size)
    torch.save(run_cases(folder), folder / f"outcomes_{rank}.pt")
    distributed.stop()
