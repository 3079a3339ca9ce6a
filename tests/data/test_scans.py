"""What networks expect of scans, and the cache: filled once, damaged entries found out, safe from other processes."""

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import utils.data.scans
from tests.conftest import ROOT, VOXEL_SIZE, save_scan, small_volume
from utils.common.errors import InputError
from utils.data.dataset import ScanDataset, collate, to_device
from utils.data.images import BRIGHTEST, model_grid, read_image, scale_by_tissue
from utils.data.scans import TISSUE_LEVELS, ScanStore, data_settings
from utils.data.subjects import Subject

# Fills a cache, but stops before the entry of the third scan is in its place until the file `go` exists.
PREPARE = f"""
import os, sys, time
from pathlib import Path
from utils.data.scans import ScanStore

folder, cache, go, stopped = map(Path, sys.argv[1:5])
replace, entries = os.replace, []

def replace_slowly(source, target):
    entries.append(target)
    if len(entries) == 3:
        stopped.touch()
        while not go.exists():
            time.sleep(0.01)
    replace(source, target)

os.replace = replace_slowly
problems = ScanStore({VOXEL_SIZE}, "brain", cache, int(sys.argv[5])).prepare(sorted(folder.iterdir()))
sys.exit(len(problems))
"""


def test_data_settings() -> None:
    assert data_settings({}, None) == (2, "brain")
    assert data_settings({}, "legacy") == (2, "legacy")
    own = {"voxel_size": 4, "normalization": "legacy", "network": {"volume_shape": list(model_grid(4).shape)}}
    assert data_settings(own, None) == data_settings(own, "legacy") == (4, "legacy")
    with pytest.raises(ValueError, match="was trained with NORMALIZATION=legacy"):
        data_settings(own, "brain")


def test_a_network_for_another_grid_of_its_voxel_size_is_refused() -> None:
    earlier = {"voxel_size": 4, "normalization": "brain", "network": {"volume_shape": (46, 55, 46)}}
    with pytest.raises(ValueError, match=r"was made for 46x55x46 voxels of 4 mm, .* has 45x55x45; train it again"):
        data_settings(earlier, None)


def save_small_scan(path: Path, seed: int, kind: type = np.int16) -> None:
    volume = small_volume(np.random.default_rng(seed), 50)
    save_scan(path, volume if kind is np.float32 else volume.round().astype(kind), model_grid(VOXEL_SIZE).affine)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Nine scans: whole numbers, and one with fractions."""
    for number in range(9):
        kind = np.float32 if number == 3 else np.int16
        save_small_scan(tmp_path / "train.v1" / f"sub-{number}.nii.gz", number, kind)
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
        if one[1:] != other[1:] or one.voxels.dtype != other.voxels.dtype:
            return False
        if not np.array_equal(one.voxels, other.voxels):
            return False
    return True


def entries(folder: Path) -> dict[str, os.stat_result]:
    """The files of the cache, by the name of their scan."""
    files = (folder.parent / "cache").glob("*/*")
    return {path.name.rsplit("-", 2)[0]: path.stat() for path in files if not path.name.startswith(".")}


def entry(folder: Path, name: str) -> Path:
    (path,) = (folder.parent / "cache").glob(f"*/{name}-*")
    return path


def unfinished(folder: Path) -> list[Path]:
    return list((folder.parent / "cache").glob("*/.*"))


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """The names of the scans that are decoded."""
    decoded, read_brain = [], utils.data.scans.read_brain
    monkeypatch.setattr(
        utils.data.scans, "read_brain", lambda path, size: (decoded.append(path.name), read_brain(path, size))[1]
    )
    return decoded


def test_filled_once_and_reused(folder, reads) -> None:
    scans = prepared(folder)
    assert len(reads) == len(entries(folder)) == 9
    again = prepared(folder)
    for path in folder.iterdir():
        again.read(path)
    assert len(reads) == 9
    assert same(scans, folder)
    assert same(again, folder)
    assert {str(scans.read(path).voxels.dtype) for path in folder.iterdir()} == {"uint8", "float32"}


def test_workers_fill_it_with_the_same(folder) -> None:
    prepared(folder)
    alone = {path: path.read_bytes() for path in (folder.parent / "cache").glob("*/*")}
    for path in alone:
        path.unlink()
    assert same(prepared(folder, workers=2), folder)
    assert {path: path.read_bytes() for path in alone} == alone


def test_adding_a_scan_leaves_the_other_entries_untouched(folder, reads) -> None:
    before = prepared(folder)
    untouched = entries(folder)
    reads.clear()
    save_small_scan(folder / "sub-9.nii.gz", 9)
    scans = prepared(folder)
    assert reads == ["sub-9.nii.gz"]
    now = entries(folder)
    assert now.keys() - untouched.keys() == {"sub-9.nii.gz"}
    for name, status in untouched.items():
        assert (now[name].st_ino, now[name].st_mtime_ns) == (status.st_ino, status.st_mtime_ns), name
    assert same(scans, folder)
    assert before.read(folder / "sub-9.nii.gz").voxels.shape == model_grid(VOXEL_SIZE).shape  # from its file


@pytest.mark.parametrize("change", ["content", "touch"])
def test_an_entry_goes_with_its_scan(folder, reads, change) -> None:
    before = prepared(folder)
    others = {name: status.st_ino for name, status in entries(folder).items() if name != "sub-2.nii.gz"}
    reads.clear()
    if change == "content":
        save_small_scan(folder / "sub-2.nii.gz", 7)
    else:
        os.utime(folder / "sub-2.nii.gz", (1, 1))
    scans = prepared(folder)
    assert reads == ["sub-2.nii.gz"]
    now = entries(folder)
    assert len(list((folder.parent / "cache").glob("*/*"))) == 9  # the stale one has left
    assert {name: now[name].st_ino for name in others} == others
    assert same(scans, folder)
    # Who began with the scan as it was is not given another one.
    with pytest.raises(InputError, match=r"sub-2\.nii\.gz: has changed since it was checked"):
        before.read(folder / "sub-2.nii.gz")
    assert before.prepare(sorted(folder.iterdir())) == []
    assert same(before, folder)


def test_each_normalization_and_folder_has_its_own(folder) -> None:
    brain, legacy = prepared(folder), prepared(folder, normalization="legacy")
    path = folder / "sub-1.nii.gz"
    assert brain.read(path).deviation < legacy.read(path).deviation
    other = folder.parent / "other" / folder.name
    save_small_scan(other / "sub-1.nii.gz", 20)
    assert store(folder).prepare([path, other / path.name]) == []
    assert len([cache for cache in (folder.parent / "cache").iterdir() if cache.is_dir()]) == 3
    assert same(prepared(folder), folder)


def test_unusable_scans_are_named_and_the_others_kept(folder, reads) -> None:
    (folder / "sub-5.nii.gz").write_bytes(b"no image")
    save_scan(folder / "sub-6.nii.gz", np.zeros((9, 9, 9), np.uint8), model_grid(VOXEL_SIZE).affine)
    problems = store(folder).prepare(sorted(folder.iterdir()))
    assert len(problems) == 2
    assert "sub-5.nii.gz: not a readable NIfTI or MGH image" in problems[0]
    assert ScanStore(VOXEL_SIZE, "brain").prepare(sorted(folder.iterdir())) == problems
    assert store(folder).prepare(sorted(folder.iterdir())) == problems
    reads.clear()
    for name in ("sub-5.nii.gz", "sub-6.nii.gz"):
        (folder / name).unlink()
    scans = prepared(folder)
    assert not reads
    assert same(scans, folder)


@pytest.mark.parametrize(
    "damage",
    ["cut", "cut in its header", "longer", "unknown type", "other numbers", "other voxels", "foreign", "missing"],
)
def test_a_damaged_entry_is_found_out_and_the_scan_read(folder, reads, damage) -> None:
    scans, path = prepared(folder), entry(folder, "sub-8.nii.gz")
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(
            {"cut": content[:-1], "cut in its header": content[:7], "longer": content + b"0",
             "unknown type": content[:4] + b"\xff" + content[5:], "other numbers": content[:9] + b"\x40" + content[10:],
             "other voxels": content[:-900] + b"\x01" + content[-899:], "foreign": b"\0" * len(content)}[damage]
        )  # fmt: skip
    reads.clear()
    assert same(scans, folder)
    assert reads.count("sub-8.nii.gz") == 2  # once more than `same` reads every file
    assert len(reads) == 10


@pytest.fixture
def filling(folder):
    """Start processes that fill the cache; see PREPARE."""
    processes = []

    def start(workers: int = 0) -> subprocess.Popen:
        places = folder, folder.parent / "cache", folder.parent / "go", folder.parent / "stopped"
        command = [sys.executable, "-u", "-c", PREPARE, *map(str, places), str(workers)]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


def wait_until_stopped(folder: Path, process: subprocess.Popen) -> None:
    while not (folder.parent / "stopped").exists():
        assert process.poll() is None, "the process ended before it had filled anything"
        time.sleep(0.01)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_process_leaves_nothing_that_is_read(folder, filling, workers, reads) -> None:
    process = filling(workers)
    wait_until_stopped(folder, process)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert len(entries(folder)) == 2
    assert len(unfinished(folder)) == 1
    scans = prepared(folder)
    assert len(reads) == 7
    assert not unfinished(folder)
    assert same(scans, folder)


def test_two_processes_at_once(folder, filling, reads) -> None:
    """The second waits for the first, and then has nothing to do."""
    first = filling()
    wait_until_stopped(folder, first)
    second = filling()
    assert "waiting for another process" in second.stdout.readline()
    (folder.parent / "go").touch()
    outputs = [process.communicate()[0] for process in (first, second)]
    assert [process.returncode for process in (first, second)] == [0, 0]
    assert "9 scans of" in outputs[0]
    assert outputs[1] == ""
    scans = prepared(folder)
    assert not reads
    assert same(scans, folder)


def test_where_no_cache_can_be_written_scans_are_read(folder, capsys) -> None:
    (folder.parent / "cache").write_text("a file")
    (folder / "sub-5.nii.gz").write_bytes(b"no image")
    scans = store(folder)
    assert "sub-5.nii.gz" in scans.prepare(sorted(folder.iterdir()))[0]
    shown = capsys.readouterr().out
    assert "note: " in shown
    assert "set another CACHE_FOLDER (--cache_folder)" in shown
    (folder / "sub-5.nii.gz").unlink()
    assert same(scans, folder)


def test_a_full_disk_leaves_nothing_behind(folder, monkeypatch) -> None:
    def fail(path: Path, content: bytes) -> None:
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(InputError, match=r"No space left on device.*set another CACHE_FOLDER"):
        store(folder).prepare(sorted(folder.iterdir()))
    assert not entries(folder)
    assert not unfinished(folder)


def test_a_store_can_be_sent_to_a_process_that_was_not_forked(folder) -> None:
    scans = prepared(folder)
    assert same(pickle.loads(pickle.dumps(scans)), folder)


def test_links_to_one_scan_share_its_entry(folder, reads) -> None:
    """As those of data sets and of the folds of cross-validation."""
    prepared(folder)
    reads.clear()
    links = folder.parent / "fold_1"
    links.mkdir()
    for path in folder.iterdir():
        (links / path.name).symlink_to(path)
    assert same(prepared(links), links)
    assert len(reads) == len(list(folder.iterdir()))  # by `same` alone
    assert len(entries(folder)) == len(list(folder.iterdir()))


def test_a_damaged_entry_is_mended_by_the_next_reading(folder, reads) -> None:
    scans = prepared(folder)
    os.truncate(entry(folder, "sub-4.nii.gz"), 100)
    scans.read(folder / "sub-4.nii.gz")
    reads.clear()
    scans.read(folder / "sub-4.nii.gz")
    assert not reads


@pytest.mark.parametrize("workers", [0, 2])
def test_scans_scaled_by_tissue_are_cached_beside_the_others(folder, reads, workers) -> None:
    brain, tissue = prepared(folder), prepared(folder, normalization="tissue", workers=workers)
    assert same(brain, folder)
    reads.clear()
    again = prepared(folder, normalization="tissue")
    for path in folder.iterdir():
        again.read(path)
    assert not reads
    assert same(tissue, folder)
    assert same(again, folder)
    assert {scan.voxels.dtype for scan in map(tissue.read, folder.iterdir())} == {np.dtype(np.int16)}


@pytest.mark.parametrize("cached", [False, True])
def test_volumes_scaled_by_tissue_reach_the_network_as_they_are(folder, cached) -> None:
    """Neither z-scored nor shifted: the background stays 0."""
    scans = prepared(folder, normalization="tissue") if cached else ScanStore(VOXEL_SIZE, "tissue")
    paths = sorted(folder.iterdir())[2:5]
    dataset = ScanDataset([Subject(path.name, path) for path in paths], scans)
    volumes = to_device(collate([dataset[i] for i in range(3)]), torch.device("cpu"))["volume"].numpy()
    for path, volume in zip(paths, volumes[:, 0], strict=True):
        original = read_image(path, VOXEL_SIZE)
        np.testing.assert_allclose(volume, scale_by_tissue(original), atol=0.51 / TISSUE_LEVELS)
        assert (volume[original == 0] == 0).all()
        assert 0.5 < volume.max() <= BRIGHTEST + 1 / TISSUE_LEVELS
