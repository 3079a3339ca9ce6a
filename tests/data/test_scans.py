"""The cache: made once, found out when stale or damaged, safe from other processes."""

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT, VOXEL_SIZE, save_scan, small_volume
from utils.common.errors import InputError
from utils.data.images import DEVIATIONS, model_grid
from utils.data.scans import ScanStore

PREPARE = f"""
import sys, time; from pathlib import Path; import utils.data.scans
read_image = utils.data.scans.read_image
utils.data.scans.read_image = lambda *place, **how: (time.sleep(0.3), read_image(*place, **how))[1]
folder, cache = map(Path, sys.argv[1:3])
print(utils.data.scans.ScanStore({VOXEL_SIZE}, "brain", cache, int(sys.argv[3])).prepare(sorted(folder.iterdir())))
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    """Nine scans: whole numbers, and one with fractions."""
    rng = np.random.default_rng(0)
    for number in range(9):
        volume = small_volume(rng, 30 + 5 * number)
        volume = volume if number == 3 else volume.round().astype(np.int16)
        save_scan(tmp_path / "train.v1" / f"sub-{number}.nii.gz", volume, model_grid(VOXEL_SIZE).affine)
    return tmp_path / "train.v1"


def store(folder: Path, normalization: str = "brain", workers: int = 0) -> ScanStore:
    return ScanStore(VOXEL_SIZE, normalization, folder.parent / "cache", workers)


def prepared(folder: Path, **options) -> ScanStore:
    scans = store(folder, **options)
    assert scans.prepare(sorted(folder.iterdir())) == []
    return scans


def same(scans: ScanStore, folder: Path) -> bool:
    """Whether the store gives what the files hold."""
    plain = ScanStore(VOXEL_SIZE, scans.normalization)
    for path in sorted(folder.iterdir()):
        one, other = scans.read(path), plain.read(path)
        if (
            one[1:] != other[1:]
            or one.voxels.dtype != other.voxels.dtype
            or not np.array_equal(one.voxels, other.voxels)
        ):
            return False
    return True


def files(folder: Path, suffix: str) -> list[Path]:
    return sorted((folder.parent / "cache").glob(f"*.{suffix}"))


@pytest.fixture
def reads(monkeypatch) -> list[Path]:
    """The scans that are decoded."""
    import utils.data.scans

    decoded, read_image = [], utils.data.scans.read_image
    monkeypatch.setattr(
        utils.data.scans,
        "read_image",
        lambda path, *size, **how: (decoded.append(path), read_image(path, *size, **how))[1],
    )
    return decoded


def test_built_once_and_reused(folder, reads) -> None:
    scans = prepared(folder)
    assert len(reads) == 9
    prepared(folder)
    scans.read(sorted(folder.iterdir())[0])
    assert len(reads) == 9
    assert same(scans, folder)
    assert {str(scans.read(path).voxels.dtype) for path in folder.iterdir()} == {"uint8", "float32"}
    assert len(files(folder, "npy")) == len(files(folder, "voxels")) == 1


def test_workers_build_the_same(folder) -> None:
    prepared(folder)
    one = files(folder, "voxels")[0].read_bytes()
    for path in (folder.parent / "cache").iterdir():
        path.unlink()
    assert same(prepared(folder, workers=2), folder)
    assert files(folder, "voxels")[0].read_bytes() == one


def test_only_what_changed_is_read_again(folder, reads) -> None:
    before = prepared(folder)
    kept = before.read(folder / "sub-0.nii.gz").voxels.copy()
    reads.clear()
    save_scan(folder / "sub-2.nii.gz", small_volume(np.random.default_rng(7), 50), model_grid(VOXEL_SIZE).affine)
    save_scan(folder / "sub-9.nii.gz", small_volume(np.random.default_rng(8), 50), model_grid(VOXEL_SIZE).affine)
    scans = prepared(folder)
    assert [path.name for path in reads] == ["sub-2.nii.gz", "sub-9.nii.gz"]
    assert same(scans, folder)
    assert len(files(folder, "voxels")) == 1
    # Who opened the cache before goes on with what it was.
    np.testing.assert_array_equal(before.read(folder / "sub-0.nii.gz").voxels, kept)


def test_a_store_that_is_prepared_again_sees_what_changed(folder) -> None:
    scans = prepared(folder)
    save_scan(folder / "sub-2.nii.gz", small_volume(np.random.default_rng(7), 50), model_grid(VOXEL_SIZE).affine)
    assert scans.prepare(sorted(folder.iterdir())) == []
    assert same(scans, folder)


def test_a_touched_scan_is_stale(folder, reads) -> None:
    prepared(folder)
    reads.clear()
    os.utime(folder / "sub-4.nii.gz", (1, 1))
    prepared(folder)
    assert [path.name for path in reads] == ["sub-4.nii.gz"]


def test_deviations_that_were_measured_anew_are_stale(folder, reads) -> None:
    for path in list(folder.iterdir()):
        save_scan(
            folder / DEVIATIONS / path.name, small_volume(np.random.default_rng(3), 50), model_grid(VOXEL_SIZE).affine
        )
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    store = ScanStore(VOXEL_SIZE, "native_sd", folder.parent / "native_cache")
    assert store.prepare(paths) == []
    reads.clear()
    os.utime(folder / DEVIATIONS / "sub-4.nii.gz", (1, 1))
    assert ScanStore(VOXEL_SIZE, "native_sd", folder.parent / "native_cache").prepare(paths) == []
    assert [path.name for path in reads] == ["sub-4.nii.gz"]


def test_each_normalization_and_folder_has_its_own(folder) -> None:
    brain, legacy = prepared(folder), prepared(folder, normalization="legacy")
    path = folder / "sub-1.nii.gz"
    assert brain.read(path).deviation < legacy.read(path).deviation
    assert len(files(folder, "npy")) == 2
    assert same(prepared(folder), folder)


def test_unusable_scans_are_named_and_the_others_kept(folder, reads) -> None:
    (folder / "sub-5.nii.gz").write_bytes(b"no image")
    save_scan(folder / "sub-6.nii.gz", np.zeros((9, 9, 9), np.uint8), model_grid(VOXEL_SIZE).affine)
    problems = store(folder).prepare(sorted(folder.iterdir()))
    assert len(problems) == 2
    assert "sub-5.nii.gz: not a readable NIfTI image" in problems[0]
    assert ScanStore(VOXEL_SIZE, "brain").prepare(sorted(folder.iterdir())) == problems
    reads.clear()
    for name in ("sub-5.nii.gz", "sub-6.nii.gz"):
        (folder / name).unlink()
    assert same(prepared(folder), folder)
    assert len(reads) == len(list(folder.iterdir()))  # by `same` alone


@pytest.mark.parametrize("damage", ["cut", "longer", "missing", "index"])
def test_a_damaged_cache_is_found_out(folder, reads, damage) -> None:
    prepared(folder)
    voxels, index = files(folder, "voxels")[0], files(folder, "npy")[0]
    if damage == "cut":
        os.truncate(voxels, voxels.stat().st_size - 1)
    elif damage == "longer":
        voxels.write_bytes(voxels.read_bytes() + b"0")
    elif damage == "missing":
        voxels.unlink()
    else:
        os.truncate(index, 200)
    reads.clear()
    assert same(prepared(folder), folder)
    assert len(reads) == 9 + 9


def test_a_cache_cut_short_while_it_is_used(folder) -> None:
    scans = prepared(folder)
    os.truncate(files(folder, "voxels")[0], 20000)
    with pytest.raises(InputError, match="the cache was cut short; start again"):
        scans.read(folder / "sub-8.nii.gz")


def slowly(folder: Path, workers: int = 0) -> subprocess.Popen:
    """Prepare the cache in another process, a third of a second for each scan."""
    return subprocess.Popen(
        [sys.executable, "-c", PREPARE, folder, folder.parent / "cache", str(workers)],
        stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip


def wait_for(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_build_leaves_nothing_that_is_read(folder, workers) -> None:
    process = slowly(folder, workers)
    wait_for(lambda: files(folder, "partial"))
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    assert files(folder, "partial")
    assert not files(folder, "npy")
    assert same(prepared(folder), folder)
    assert not files(folder, "partial")


def test_two_processes_at_once(folder, reads) -> None:
    """The second waits for the first, and then has nothing to do."""
    first = slowly(folder)
    wait_for(lambda: files(folder, "partial"))
    second = slowly(folder)
    outputs = [process.communicate(timeout=120)[0] for process in (first, second)]
    assert [process.returncode for process in (first, second)] == [0, 0]
    assert "9 scans of" in outputs[0]
    assert "waiting for another process" in outputs[1]
    assert "9 scans of" not in outputs[1]
    assert len(files(folder, "npy")) == len(files(folder, "voxels")) == 1
    prepared(folder)
    assert not reads


def test_where_no_cache_can_be_written_scans_are_read(folder, capsys) -> None:
    (folder.parent / "cache").write_text("a file")
    (folder / "sub-5.nii.gz").write_bytes(b"no image")
    scans = store(folder)
    assert "sub-5.nii.gz" in scans.prepare(sorted(folder.iterdir()))[0]
    assert "scans are read anew each time; set another CACHE_FOLDER (--cache_folder)" in capsys.readouterr().out
    (folder / "sub-5.nii.gz").unlink()
    assert same(scans, folder)


def test_a_full_disk_leaves_nothing_behind(folder, monkeypatch) -> None:
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(InputError, match="No space left on device.*set another CACHE_FOLDER"):
        store(folder).prepare(sorted(folder.iterdir()))
    assert not files(folder, "partial") + files(folder, "npy") + files(folder, "voxels")


def test_one_unusable_scan_does_not_write_everything_again(folder) -> None:
    prepared(folder)
    before = files(folder, "voxels")[0].stat().st_mtime_ns
    (folder / "sub-z.nii.gz").write_bytes(b"no image")
    assert len(store(folder).prepare(sorted(folder.iterdir()))) == 1
    assert files(folder, "voxels")[0].stat().st_mtime_ns == before


def test_a_store_can_be_sent_to_a_process_that_was_not_forked(folder) -> None:
    scans = prepared(folder)
    assert same(pickle.loads(pickle.dumps(scans)), folder)
