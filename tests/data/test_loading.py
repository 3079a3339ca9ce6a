"""Workers whose shared memory is too small: one sentence, no traceback, and above all no waiting for ever."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import QUICK, SHORT, SMALL_NETWORK, VOXEL_SIZE, data_flags, save_scan, small_volume
from utils.common.errors import InputError, run_command
from utils.data.dataset import ScanDataset, make_loader
from utils.data.images import model_grid
from utils.data.loading import WorkerLoader
from utils.data.scans import ScanStore
from utils.data.subjects import Subject

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path) -> Path:
    for number in range(5):
        volume = small_volume(np.random.default_rng(number), 50)
        save_scan(tmp_path / "scans" / f"sub-{number}.nii.gz", volume, model_grid(VOXEL_SIZE).affine)
    return tmp_path / "scans"


def subjects(folder: Path) -> list[Subject]:
    return [Subject(path.name, path) for path in sorted(folder.iterdir())]


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make sharing fail as torch does where /dev/shm is full; workers are forked, so they inherit it."""

    def fail(*_: object) -> None:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", fail)


def test_full_shared_memory_is_told_while_scans_are_checked(folder, full) -> None:
    paths = sorted(folder.iterdir())
    with pytest.raises(InputError, match=r"/dev/shm.* is full; set NUM_WORKERS=0 .* --shm-size"):
        ScanStore(VOXEL_SIZE, "brain", None, workers=2).prepare(paths)
    assert ScanStore(VOXEL_SIZE, "brain", None, workers=0).prepare(paths) == []


def test_full_shared_memory_is_told_while_batches_are_read(folder, full) -> None:
    dataset = ScanDataset(subjects(folder), ScanStore(VOXEL_SIZE, "brain"))
    with pytest.raises(InputError, match=r"/dev/shm.* is full; set NUM_WORKERS=0 .* --shm-size"):
        list(make_loader(dataset, [[0, 1], [2, 3]], 2, CPU))
    assert len(list(make_loader(dataset, [[0, 1], [2, 3]], 0, CPU))) == 2


def test_where_no_process_can_be_started_it_is_told(folder, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("multiprocessing.Queue", fail)
    with pytest.raises(InputError, match=r"cannot be started \(.*No space left on device\).* set NUM_WORKERS=0"):
        ScanStore(VOXEL_SIZE, "brain", None, workers=2).prepare(sorted(folder.iterdir()))


class _Deadly(torch.utils.data.Dataset):
    """Kills the process that reads it."""

    def __init__(self, number: signal.Signals) -> None:
        self.number = number

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> None:
        os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGBUS])  # want of memory, of /dev/shm
def test_a_killed_worker_is_told(number, capsys) -> None:
    with pytest.raises(SystemExit):
        run_command(lambda: list(WorkerLoader(_Deadly(number), 1, lambda item: item, batch_size=None)))
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "a worker process was killed" in line
    assert told(line)


def test_errors_of_the_program_stay_what_they_are(folder) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("stack expects each tensor to be equal size")

    with pytest.raises(RuntimeError, match="equal size"):
        list(WorkerLoader([1, 2], 1, fail, batch_size=None))


def told(shown: str) -> bool:
    return "NUM_WORKERS=0" in shown and "--shm-size" in shown


def test_training_with_a_small_shm_ends_in_one_sentence(small_shm, synthetic_cohort, tmp_path) -> None:
    """There is room for the locks of the workers, but not for a batch."""
    shown = small_shm(
        "200k", "train_first_stage.py", *data_flags(synthetic_cohort, "train"), *SMALL_NETWORK, *QUICK, *SHORT,
        "--voxel_size", VOXEL_SIZE, "--keep", "last", "--num_workers", 2, "--output_dir", tmp_path / "out",
    )  # fmt: skip
    assert told(shown)
    assert "is full" in shown


def test_testing_without_any_shm_ends_in_one_sentence(small_shm, synthetic_cohort, first_stage, tmp_path) -> None:
    shown = small_shm(
        "4k", "test_first_stage.py", *data_flags(synthetic_cohort, "test"), *QUICK, "--num_workers", 2,
        "--checkpoint", first_stage / "best.pt", "--output_dir", tmp_path / "out",
    )  # fmt: skip
    assert told(shown)
    assert "cannot be started" in shown
