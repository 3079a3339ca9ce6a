"""Fixtures: small seeded cohorts, and where reference numbers and real scans lie."""

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import hypothesis
import nibabel
import numpy as np
import pytest
import torch
from scipy import ndimage

from utils.data.images import MNI152_T1_2MM, model_grid

hypothesis.settings.register_profile("same", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("same")
torch.set_num_threads(1)  # two test processes share the processors

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("TSAN_SHARED", ROOT.parent / "shared"))
VOXEL_SIZE = 8  # mm: 23x27x23 voxels, the grid of the small cohorts
SMALL_NETWORK = ["--model", "scaledense_paper", "--blocks", "3", "--filters", "4"]
QUICK = ["--batch_size", "4", "--num_workers", "0", "--device", "cpu", "--cache_folder", ""]
SHORT = ["--epochs", "2", "--warmup_epochs", "0"]
RELEASED_KEYS = {1: "first_stage_keys.json", 2: "second_stage_keys.json"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--long", action="store_true", help="the long forms of tests/faults/: hours of faults, not seconds"
    )
    parser.addoption("--write_pages", action="store_true", help="write the pages of docs/ that tests generate anew")


@pytest.fixture
def mni_affine() -> np.ndarray:
    return MNI152_T1_2MM.affine.copy()


def shared_folder(name: str, what: str) -> Path:
    """Return a folder of shared data, or skip the test where it is absent."""
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"{what} are not at {folder}")
    return folder


@pytest.fixture(scope="session")
def reference_folder() -> Path:
    return shared_folder("reference", "reference numbers")


@pytest.fixture(scope="session")
def real_scans() -> Path:
    return shared_folder("data/ixi_hh", "real scans (IXI, CC BY-SA 3.0)")


@pytest.fixture(scope="session")
def pac2019() -> Path:
    return shared_folder("data/pac2019_predictions", "published predictions (PAC 2019, MIT licence, ARAMIS Lab)")


def save_scan(path: Path, volume: np.ndarray, affine: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(volume, affine), path)


def small_volume(rng: np.random.Generator, age: float) -> np.ndarray:
    """A ball with a hollow that grows with the age."""
    grid = model_grid(VOXEL_SIZE)
    indices = np.indices(grid.shape) - np.array(grid.shape)[:, None, None, None] / 2
    radius = np.linalg.norm(indices, axis=0)
    volume = np.where(radius < 2 + age / 15, 40, 120) * (radius < 10)
    return np.where(volume > 0, volume + rng.normal(0, 5, volume.shape), 0).clip(0).astype(np.float32)


def random_brain(rng: np.random.Generator) -> np.ndarray:
    """Random numbers where the template has its brain, (91, 109, 91) uint8."""
    from utils.preparation.template import load_template

    return np.where(load_template().brain, rng.integers(0, 255, MNI152_T1_2MM.shape), 0).astype(np.uint8)


@pytest.fixture(scope="session")
def synthetic_cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train (12), valid (5), test (5) and labels.csv, on the 8 mm grid."""
    folder = tmp_path_factory.mktemp("cohort")
    rng = np.random.default_rng(0)
    rows = ["subject_id,age,sex"]
    number = 0
    for split, size in (("train", 12), ("valid", 5), ("test", 5)):
        for age in np.linspace(22, 84, size) + rng.uniform(-2, 2, size):
            number += 1
            save_scan(
                folder / split / f"sub-{number:02d}.nii.gz", small_volume(rng, age), model_grid(VOXEL_SIZE).affine
            )
            rows.append(f"sub-{number:02d},{age:.2f},{'FM'[number % 2]}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


def around_mni(volume: np.ndarray) -> nibabel.Nifti1Image:
    """Give a volume of the model's grid, with 12 voxels more on each side, its place."""
    affine = MNI152_T1_2MM.affine @ nibabel.affines.from_matvec(np.eye(3), [-12] * 3)
    image = nibabel.Nifti1Image(volume.astype(np.uint8), affine)
    image.set_qform(image.affine, 1)
    image.set_sform(image.affine, 1)
    return image


@pytest.fixture(scope="session")
def simulated_brain() -> nibabel.Nifti1Image:
    """A simulated brain without a skull, 2 mm."""
    from utils.preparation.simulation import draw_subjects, simulate_volume

    return around_mni(np.pad(simulate_volume(draw_subjects(3)[0], 0), 12))


@pytest.fixture(scope="session")
def simulated_head(simulated_brain) -> nibabel.Nifti1Image:
    """The same brain with skull and scalp around it."""
    brain = simulated_brain.get_fdata()
    skull = ndimage.binary_dilation(brain > 0, iterations=3)
    scalp = ndimage.binary_dilation(skull, iterations=3) & ~skull
    return around_mni(brain + 20 * (skull & (brain == 0)) + 130 * scalp)


def data_flags(cohort: Path, *splits: str) -> list[str]:
    flags = ["--label_table", str(cohort / "labels.csv")]
    for split in splits:
        flags += [f"--{split}_folder", str(cohort / split)]
    return flags


def run_script(script: str, *flags: object, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run an entry point as a user does, on one thread, and check its exit status."""
    result = subprocess.run(
        [sys.executable, str(ROOT / script), *map(str, flags)],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert result.returncode == status, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    return result


@pytest.fixture
def small_shm() -> Callable[..., str]:
    """Run an entry point with a small /dev/shm of its own, and return the one line that it ends with."""
    private = ["unshare", "-m", "bash", "-c", 'mount -t tmpfs -o size="$0" tmpfs /dev/shm && exec "$@"']
    try:
        tried = subprocess.run([*private, "1m", "true"], capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"no private /dev/shm can be mounted here: {error}")
    if tried.returncode:
        pytest.skip(f"no private /dev/shm can be mounted here: {tried.stderr.strip()}")

    def run(size: str, script: str, *flags: object) -> str:
        result = subprocess.run(
            [*private, size, sys.executable, str(ROOT / script), *map(str, flags)],
            capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert result.returncode == 2, result.stdout + result.stderr
        assert "Traceback" not in result.stderr
        (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        return line

    return run


@pytest.fixture
def run_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run an entry point in this process, which is faster, and return what it prints."""
    monkeypatch.setattr("utils.common.distributed.keep_freed_memory", lambda: None)

    def run(script: str, *flags: object) -> str:
        monkeypatch.setattr(sys, "argv", [script, *map(str, flags)])
        capsys.readouterr()
        importlib.import_module(script.removesuffix(".py")).main()
        return capsys.readouterr().out

    return run


@pytest.fixture(scope="session")
def first_stage(synthetic_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a first stage, trained with two folds."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    run_script(
        "train_first_stage.py", *data_flags(synthetic_cohort, "train", "valid", "test"), *SMALL_NETWORK, *QUICK, *SHORT,
        "--voxel_size", VOXEL_SIZE, "--output_dir", folder, "--folds", 2,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def second_stage(synthetic_cohort: Path, first_stage: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a second stage on `first_stage`."""
    folder = tmp_path_factory.mktemp("runs") / "second"
    run_script(
        "train_second_stage.py", *data_flags(synthetic_cohort, "train", "valid"), *QUICK, *SHORT,
        "--first_stage_checkpoint", first_stage / "best.pt", "--output_dir", folder,
    )  # fmt: skip
    return folder
