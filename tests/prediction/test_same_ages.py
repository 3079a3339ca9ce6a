"""The same scan gets the same age, bit for bit: alone or among others, on any number of threads and cores."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits

from model.building import load_network
from model.cascade import Cascade
from tests.conftest import ROOT, save_scan
from utils.data.dataset import ScanDataset
from utils.data.images import MNI152_T1_2MM, find_tissue_means
from utils.data.scans import ScanStore
from utils.data.subjects import Subject
from utils.evaluation.predicting import predict
from utils.prediction.likeness import measure_distance
from utils.prediction.weights import load_typical_volumes, load_weights
from utils.preparation.simulation import draw_subjects, simulate_volume
from utils.training.stages import FirstStage

SCANS = 5


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> list[Subject]:
    folder = tmp_path_factory.mktemp("scans")
    subjects = []
    for number, simulated in enumerate(draw_subjects(SCANS)):
        path = folder / f"sub-{number}.nii.gz"
        save_scan(path, simulate_volume(simulated, 0), MNI152_T1_2MM.affine)
        subjects.append(Subject(path.name, path, sex=simulated.sex))
    return subjects


def load_shipped() -> tuple[dict, Cascade]:
    """Load the networks that ``bash_predict.sh`` uses; smaller ones would not show the difference."""
    manifest, members = load_weights(ROOT / "weights")
    stages = [(load_network(first, 1), load_network(second, 2)) for first, second in members]
    return manifest, Cascade(stages, manifest["age_interval"])


def estimate(manifest: dict, network: Cascade, subjects: list[Subject], batch_size: int = SCANS, workers: int = 0):
    dataset = ScanDataset(subjects, ScanStore(manifest["voxel_size"], manifest["normalization"]))
    return predict(
        network, FirstStage(), dataset, torch.device("cpu"), batch_size=batch_size, num_workers=workers,
        precision="float32", label="",
    )["brain_age"].tolist()  # fmt: skip


@pytest.fixture(scope="module")
def shipped() -> tuple[dict, Cascade]:
    return load_shipped()


@pytest.fixture(scope="module")
def ages_of(shipped):
    def run(subjects: list[Subject], threads: int = 1, **options: int) -> list[float]:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            found = estimate(*shipped, subjects, **options)
            assert torch.get_num_threads() == threads  # as it was
            return found
        finally:
            torch.set_num_threads(before)

    return run


@pytest.fixture(scope="module")
def ages(scans, ages_of) -> list[float]:
    """Of all scans, in one batch, on one thread."""
    return ages_of(scans)


def test_a_lone_scan_gets_the_age_that_it_gets_among_others(scans, ages_of, ages) -> None:
    assert [ages_of([scan])[0] for scan in scans] == ages
    assert ages_of(scans[::-1])[::-1] == ages
    assert len(set(ages)) == SCANS


@pytest.mark.parametrize(("threads", "batch_size", "workers"), [(2, 2, 0), (8, 3, 0), (1, 2, 2)])
def test_ages_depend_on_neither_threads_nor_batches_nor_workers(
    scans, ages_of, ages, threads, batch_size, workers
) -> None:
    assert ages_of(scans, threads, batch_size=batch_size, workers=workers) == ages


def test_distances_and_tissues_do_not_depend_on_the_threads(scans, shipped) -> None:
    manifest, _ = shipped
    dataset = ScanDataset(scans[:2], ScanStore(manifest["voxel_size"], manifest["normalization"]))
    typical = load_typical_volumes(ROOT / "weights")
    volume = simulate_volume(draw_subjects(1)[0], 0).astype(np.float32)
    found = []
    for threads in (1, 8):
        torch.set_num_threads(threads)
        with threadpool_limits(threads):
            found.append(([measure_distance(item, typical) for item in dataset], find_tissue_means(volume)))
        torch.set_num_threads(1)
    assert found[0] == found[1]


# What another machine would do: the libraries choose their threads when they start.
ALONE = """
import sys
from pathlib import Path
import tests.prediction.test_same_ages as same
from utils.data.subjects import Subject

print(same.estimate(*same.load_shipped(), [Subject("a", Path(sys.argv[1]), sex=int(sys.argv[2]))])[0])
"""


def test_a_new_process_with_other_threads_gives_the_same_age(scans, ages) -> None:
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "6")
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(scans[3].path), str(scans[3].sex)], capture_output=True, text=True,
        check=True, cwd=ROOT, env={**os.environ, **threads},
    )  # fmt: skip
    assert float(done.stdout) == ages[3]
