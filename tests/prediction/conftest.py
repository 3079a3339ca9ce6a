"""Fixtures of prediction: small weights, and brains on the 2 mm grid."""

from pathlib import Path

import numpy as np
import pytest
import torch

from model.building import make_network
from model.scaledense import NetworkConfig
from tests.conftest import VOXEL_SIZE, save_scan
from utils.data.images import MNI152_T1_2MM, model_grid
from utils.prediction.likeness import TypicalVolumes
from utils.prediction.weights import save_weights
from utils.training.state import describe_checkpoint

AGE_INTERVAL = 5.0
MANIFEST_ENTRIES = {
    "age_range": [20.0, 80.0],
    "out_of_fold_errors": np.linspace(0, 10, 30).tolist(),
    "training_persons": ["sub-01"],
    "preprocessing": [None],
    "distance_limit": 1000.0,
}
GRID = 1, 1, *model_grid(VOXEL_SIZE).shape
TYPICAL = TypicalVolumes(torch.zeros(GRID), torch.ones(GRID))


def random_checkpoint(stage: int, seed: int) -> dict:
    """A checkpoint of a small network whose estimates differ from scan to scan."""
    config = NetworkConfig(
        stage, "scaledense_paper", True, model_grid(VOXEL_SIZE).shape, 3, 4, age_mean=50.0 if stage == 1 else 0.0,
        age_sd=15.0 if stage == 1 else 3.0,
    )  # fmt: skip
    network = make_network(config, seed, released_start=True)
    described = describe_checkpoint(config.to_dict(), VOXEL_SIZE, "brain", AGE_INTERVAL, [], [])
    return {"state_dict": network.state_dict(), **described}


@pytest.fixture(scope="session")
def checkpoints() -> list[list[dict]]:
    """First and second stage of two members, with random weights."""
    return [[random_checkpoint(stage, 2 * member + stage) for stage in (1, 2)] for member in range(2)]


@pytest.fixture(scope="session")
def weights(checkpoints, tmp_path_factory) -> Path:
    """A folder of weights of `checkpoints`."""
    folder = tmp_path_factory.mktemp("weights")
    save_weights(folder, checkpoints, MANIFEST_ENTRIES, "# Card\n", TYPICAL)
    return folder


def prepared_scan(path: Path, radius: float = 30.0) -> None:
    """Write a ball on the 2 mm grid, in place of a prepared brain."""
    rng = np.random.default_rng(0)
    indices = np.indices(MNI152_T1_2MM.shape) - np.array(MNI152_T1_2MM.shape)[:, None, None, None] / 2
    volume = np.where(np.linalg.norm(indices, axis=0) < radius, 120 + rng.normal(0, 5, MNI152_T1_2MM.shape), 0)
    save_scan(path, volume.astype(np.float32), MNI152_T1_2MM.affine)
