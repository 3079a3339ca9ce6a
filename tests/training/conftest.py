"""Data sets for the tests of training."""

from pathlib import Path

import pytest

from tests.conftest import VOXEL_SIZE
from utils.data.cohort import load_cohort
from utils.data.dataset import ScanDataset
from utils.data.scans import ScanStore


@pytest.fixture(scope="session")
def datasets(synthetic_cohort: Path) -> tuple[ScanDataset, ScanDataset]:
    """Training (12) and validation (5)."""
    scans = ScanStore(VOXEL_SIZE, "brain")
    folders = {split: synthetic_cohort / split for split in ("train", "valid")}
    cohort = load_cohort(folders, synthetic_cohort / "labels.csv", scans)
    return ScanDataset(cohort["train"], scans), ScanDataset(cohort["valid"], scans)
