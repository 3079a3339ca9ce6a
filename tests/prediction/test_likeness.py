"""How far scans are from those of the training: training scans, damaged ones, and the limit."""

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from tests.conftest import VOXEL_SIZE, save_scan, small_volume
from utils.data.dataset import ScanDataset
from utils.data.images import model_grid
from utils.data.scans import ScanStore
from utils.data.subjects import Subject
from utils.prediction.likeness import LIMIT_SHARE, TypicalVolumes, describe_training, measure_distance

SIZE = 30


def dataset_of(folder: Path, volumes: list[np.ndarray]) -> ScanDataset:
    subjects = []
    for number, volume in enumerate(volumes):
        subjects.append(Subject(f"sub-{number}", folder / f"sub-{number}.nii"))
        save_scan(subjects[-1].path, volume, model_grid(VOXEL_SIZE).affine)
    return ScanDataset(subjects, ScanStore(VOXEL_SIZE, "brain"))


def measure_distances(dataset: ScanDataset, typical: TypicalVolumes) -> np.ndarray:
    return np.array([measure_distance(item, typical) for item in dataset])


@pytest.fixture(scope="module")
def volumes() -> list[np.ndarray]:
    """Balls of people of all ages."""
    rng = np.random.default_rng(0)
    return [small_volume(rng, age) for age in rng.uniform(20, 80, SIZE)]


@pytest.fixture(scope="module")
def training(volumes, tmp_path_factory) -> ScanDataset:
    return dataset_of(tmp_path_factory.mktemp("training"), volumes)


@pytest.fixture(scope="module")
def described(training):
    """What the training scans look like, and the limit of their distances."""
    return describe_training(training, 0)


def test_the_typical_volumes_are_mean_and_deviation_of_the_normalized_scans(training, described) -> None:
    every = np.stack([(item["voxels"].numpy() * item["scaling"][2]) - item["scaling"][3] for item in training])
    mean, deviation = described[0]
    assert mean.shape == deviation.shape == (1, 1, *model_grid(VOXEL_SIZE).shape)
    np.testing.assert_allclose(mean[0, 0], every.mean(0), atol=1e-3)
    np.testing.assert_allclose(deviation[0, 0], every.std(0), atol=1e-3)


def test_training_scans_have_a_distance_of_about_one(training, described) -> None:
    typical, limit = described
    distances = measure_distances(training, typical)
    assert np.sqrt((distances**2).mean()) == pytest.approx(1, abs=1e-3)
    assert 1 < limit < 2


def test_the_limit_comes_from_the_distance_of_each_training_scan_from_all_others(training, described) -> None:
    distances = []
    for number in range(SIZE):
        others = [subject for other, subject in enumerate(training.subjects) if other != number]
        typical, _ = describe_training(ScanDataset(others, training.scans), 0)
        distances.append(measure_distances(ScanDataset([training.subjects[number]], training.scans), typical)[0])
    assert described[1] == pytest.approx(np.quantile(distances, LIMIT_SHARE), rel=1e-3)
    assert described[1] > np.quantile(measure_distances(training, described[0]), LIMIT_SHARE)


def test_new_scans_of_the_same_kind_are_mostly_within_the_limit(described, tmp_path) -> None:
    rng = np.random.default_rng(1)
    typical, limit = described
    new = dataset_of(tmp_path, [small_volume(rng, age) for age in rng.uniform(25, 75, 20)])
    assert (measure_distances(new, typical) < 1.1 * limit).mean() >= 0.9


@pytest.mark.parametrize("damage", ["blurred", "scaled", "noisy", "moved"])
def test_damaged_scans_are_beyond_the_limit(described, volumes, tmp_path, damage) -> None:
    typical, limit = described
    rng = np.random.default_rng(2)
    change = {
        "blurred": lambda volume: np.where(volume > 0, ndimage.gaussian_filter(volume, 3), 0),
        "scaled": lambda volume: ndimage.affine_transform(volume, np.full(3, 1.3), offset=-0.3 * 11, order=1),
        "noisy": lambda volume: np.where(volume > 0, (volume + rng.normal(0, 60, volume.shape)).clip(1), 0),
        "moved": lambda volume: np.roll(volume, 2, 1),
    }[damage]
    damaged = dataset_of(tmp_path, [change(volume).astype(np.float32) for volume in volumes[:5]])
    assert (measure_distances(damaged, typical) > limit).all()
