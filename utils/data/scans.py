"""Scans on the model's grid: read from files, or from a cache that is filled on first use."""

import hashlib
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import AcquireReturnProxy, FileLock, Timeout
from torch.utils.data import Dataset
from tqdm import tqdm

from model.conventions import NORMALIZATIONS
from utils.common.errors import InputError, user_errors
from utils.common.files import replacing
from utils.common.machine import usable_cores
from utils.data.images import (
    Brain,
    brain_statistics,
    coarsen_volume,
    encode_volume,
    model_grid,
    read_brain,
    scale_by_tissue,
)
from utils.data.loading import WorkerLoader

TISSUE_LEVELS = 4096  # of normalized intensities between 0 and 1
FORMAT = 7  # of the cache; raise it when the content of an entry changes, or what is checked before one is made
TYPES = tuple(np.dtype(name) for name in ("uint8", "int16", "float32"))
NUMBERS = ("slope", "intercept", "mean", "deviation")  # of a `Scan`
# Of an entry; its voxels follow. The checksum is that of all the rest.
HEADER = np.dtype([("checksum", "u4"), ("type", "u1"), *((name, "f8") for name in NUMBERS)])
HINT = "set another CACHE_FOLDER (--cache_folder), or '' for no cache"


class Scan(NamedTuple):
    """A scan before normalization: its intensities are ``voxels * slope + intercept``.

    Parameters
    ----------
    voxels : (D, H, W) uint8, int16 or float32 array or tensor
        The smallest of these types that loses nothing.
    slope, intercept : float
    mean, deviation : float
        What normalization subtracts and divides by; see `utils.data.images.brain_statistics`.
    """

    voxels: Any
    slope: float
    intercept: float
    mean: float
    deviation: float


def data_settings(checkpoint: Mapping[str, Any], normalization: str | None) -> tuple[int, str]:
    """Return the voxel size in mm and the normalization that a network expects.

    Parameters
    ----------
    checkpoint : mapping
        One that the authors released works at 2 mm.
    normalization : str or None
        For a released checkpoint; None means ``brain``.

    Raises
    ------
    ValueError
        If `normalization` contradicts the checkpoint, or its network was
        made for another grid of this voxel size.
    """
    own = checkpoint.get("normalization", normalization or "brain")
    if normalization not in (None, own):
        raise ValueError(f"was trained with NORMALIZATION={own}; leave it as it is")
    if own not in NORMALIZATIONS:
        raise ValueError(f"was trained with NORMALIZATION={own}, which is unknown to this version; update this project")
    voxel_size = checkpoint.get("voxel_size", 2)
    shape = tuple(checkpoint.get("network", {}).get("volume_shape", model_grid(voxel_size).shape))
    if shape != model_grid(voxel_size).shape:
        raise ValueError(
            f"was made for {'x'.join(map(str, shape))} voxels of {voxel_size} mm, the grid of an earlier version; "
            f"today's has {'x'.join(map(str, model_grid(voxel_size).shape))}; train it again"
        )
    return voxel_size, own


class ScanStore:
    """Read scans, from a cache where there is one.

    Parameters
    ----------
    voxel_size : int, mm, of the model's grid
    normalization : {"brain", "legacy", "tissue"}
        See `utils.data.images.brain_statistics` and `scale_by_tissue` there.
    cache_folder : Path or None
        Holds one folder of entries for each folder of scans; None reads the
        scans themselves each time.
    workers : int
        Processes that read scans in `prepare`; 0 reads in this one.

    Notes
    -----
    An entry is one file for one scan. Its name holds the scan's name, size
    and time of modification, so that an entry is never changed, only added
    or, once its scan has changed, removed. Entries are written to a
    temporary file and renamed: whatever is killed, no half entry is read.
    """

    def __init__(self, voxel_size: int, normalization: str, cache_folder: Path | None = None, workers: int = 0) -> None:
        self.voxel_size = voxel_size
        self.normalization = normalization
        self.cache_folder = cache_folder
        self.workers = workers
        self._entries: dict[Path, tuple[Path, str]] = {}  # folder and name of the entries of scans that are ready
        self._checksums: dict[Path, int] = {}  # of the scans that `prepare` has read without a cache

    def prepare(self, paths: Sequence[Path]) -> list[str]:
        """Check scans and add those that are new or have changed to the cache; return every problem.

        Without a cache, or where it cannot be written, all scans are read.

        Parameters
        ----------
        paths : sequence of Path

        Returns
        -------
        list of str
            A line for each unusable scan.

        Raises
        ------
        InputError
            If the disk is full.
        """
        if self.cache_folder is None:
            return self._check_all(paths)
        folders: dict[Path, list[Path]] = {}
        for path in paths:  # links to one scan share its entry
            folders.setdefault(_source(path).parent, []).append(path)
        return [line for folder, own in folders.items() for line in self._prepare_folder(folder, own)]

    def read(self, path: Path) -> Scan:
        """Return a scan.

        Raises
        ------
        InputError
            If the scan cannot be read, or has changed since `prepare`.
        """
        if path not in self._entries:
            return self.read_file(path)
        cache, name = self._entries[path]
        scan = self._read_entry(cache / name)
        if scan is None:
            if _entry_name(path) != name:
                raise InputError(f"{path}: has changed since it was checked; start the same command again")
            scan = self.read_file(path)  # somebody has removed or damaged the entry
            with suppress(OSError):
                _write_entry(cache / name, scan)
        return scan

    def are_equal(self, path: Path, other: Path) -> bool:
        """Tell whether two scans hold the same voxels."""
        return np.array_equal(self.read(path).voxels, self.read(other).voxels)

    def checksum(self, path: Path) -> int | None:
        """Return a number that is the same for equal scans, and hardly ever for others; None before `prepare`."""
        if path not in self._entries:
            return self._checksums.get(path)
        cache, name = self._entries[path]
        with suppress(OSError, IndexError):
            return int(np.fromfile(cache / name, HEADER, 1)[0]["checksum"])
        return None

    def read_file(self, path: Path) -> Scan:
        """Return a scan from its file, whatever the cache holds."""
        return self.encode(read_brain(path, self.voxel_size))

    def encode(self, brain: Brain) -> Scan:
        """Average a brain to the model's grid, and make a `Scan` of it.

        Raises
        ------
        InputError
            If its intensities cannot be normalized.
        """
        factor = self.voxel_size // brain.voxel_size
        if self.normalization == "tissue":
            with user_errors(str(brain.path)):
                volume = coarsen_volume(scale_by_tissue(brain.volume), factor)
            voxels = np.rint(volume * TISSUE_LEVELS).astype(np.int16)
            return Scan(voxels, 1 / TISSUE_LEVELS, 0.0, 0.0, 1.0)  # is normalized already
        volume = coarsen_volume(brain.volume, factor)
        return Scan(
            *encode_volume(volume, brain.slope, brain.intercept), *brain_statistics(volume, self.normalization)
        )  # fmt: skip

    def _cache_of(self, folder: Path) -> Path:
        """Return the folder of the entries of a folder of scans."""
        assert self.cache_folder is not None  # nosec B101
        key = f"{folder.resolve()}|{self.voxel_size}|{self.normalization}|{FORMAT}"
        return self.cache_folder / f"{folder.name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"

    def _prepare_folder(self, folder: Path, paths: list[Path]) -> list[str]:
        """Add the missing entries of one folder's scans."""
        cache = self._cache_of(folder)
        names = {path: _entry_name(path) for path in paths}
        problems: list[str] = []
        if not names.keys() <= (ready := _ready(cache, names)).keys():
            try:
                cache.mkdir(parents=True, exist_ok=True)
                lock = _lock(cache)
            except OSError as error:
                print(f"note: {cache}: cannot be written ({error}), so scans are decoded each time; {HINT}")
                return self._check_all(paths)
            with lock:
                ready = _ready(cache, names)  # another process may have added some meanwhile
                missing = [path for path in paths if path not in ready]
                _remove_stale(cache, {names[path] for path in missing})
                try:
                    for path, scan in self._read_all(missing):
                        if isinstance(scan, str):
                            problems.append(scan)
                        else:
                            _write_entry(cache / names[path], scan)
                            ready[path] = names[path]
                except OSError as error:
                    raise InputError(f"{cache}: cannot be written ({error}); {HINT}") from error
                added = len(missing) - len(problems)
                if added:
                    print(f"{added} scans of {folder} were added to {cache}", flush=True)
        self._entries |= {path: (cache, name) for path, name in ready.items()}
        return problems

    def _check_all(self, paths: Sequence[Path]) -> list[str]:
        """Read all scans; return every problem."""
        problems: list[str] = []
        for path, scan in self._read_all(paths):
            if isinstance(scan, str):
                problems.append(scan)
            else:
                self._checksums[path] = int(_header_of(scan)["checksum"])
        return problems

    def _read_entry(self, path: Path) -> Scan | None:
        """Read an entry; None if it is missing or damaged."""
        try:
            with path.open("rb", buffering=0) as file:
                header = np.frombuffer(file.read(HEADER.itemsize), HEADER)[0]
                voxels = np.fromfile(file, TYPES[header["type"]]).reshape(model_grid(self.voxel_size).shape)
        except (OSError, ValueError, IndexError):
            return None
        if header["checksum"] != _checksum(header, voxels):
            return None
        return Scan(voxels, *(float(header[name]) for name in NUMBERS))

    def _read_all(self, paths: Sequence[Path]) -> "Iterator[tuple[Path, Scan | str]]":
        """Yield each path with its scan, or with what is wrong with it, read by several processes."""
        workers = min(self.workers, len(paths), usable_cores())
        loader = WorkerLoader(_Reader(self, paths), workers, _as_it_is, batch_size=None)
        scans = tqdm(loader, "reading scans", len(paths), unit="scan", disable=None, leave=False)
        return zip(paths, scans, strict=True)


def _as_it_is(item: Scan | str) -> Scan | str:
    return item


class _Reader(Dataset[Any]):
    """Scans, or what is wrong with them, for a loader."""

    def __init__(self, store: ScanStore, paths: Sequence[Path]) -> None:
        self.store, self.paths = store, paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Scan | str:
        try:
            scan = self.store.read_file(self.paths[index])
        except InputError as error:
            return str(error)
        return scan._replace(voxels=torch.from_numpy(scan.voxels))


def _entry_name(path: Path) -> str:
    """Name the entry of a scan, or of the file it links to, as it is now."""
    source = _source(path)
    try:
        status = source.stat()
    except OSError:  # reading the scan says what is wrong
        return f"{source.name}-missing"
    return f"{source.name}-{status.st_size}-{status.st_mtime_ns}"


def _source(path: Path) -> Path:
    """Return a scan's own file: the path, or what it links to."""
    return path.resolve() if path.is_symlink() else path


def _ready(cache: Path, names: dict[Path, str]) -> dict[Path, str]:
    """Return those scans of `names` whose entries exist."""
    existing = set(os.listdir(cache)) if cache.is_dir() else set()
    return {path: name for path, name in names.items() if name in existing}


def _remove_stale(cache: Path, wanted: set[str]) -> None:
    """Remove entries of earlier states of these scans, and what a killed process left behind."""
    scans = {name.rsplit("-", 2)[0] for name in wanted}
    for name in os.listdir(cache):
        if name.startswith(".") or name.rsplit("-", 2)[0] in scans:
            (cache / name).unlink(missing_ok=True)


def _write_entry(path: Path, scan: Scan) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(_header_of(scan).tobytes() + np.asarray(scan.voxels).tobytes())


def _header_of(scan: Scan) -> np.ndarray:
    """Return the header of a scan's entry."""
    voxels = np.asarray(scan.voxels)
    header = np.array((0, TYPES.index(voxels.dtype), *scan[1:]), HEADER)
    header["checksum"] = _checksum(header, voxels)
    return header


def _checksum(header: Any, voxels: np.ndarray) -> int:
    """Return the CRC-32 of an entry without the checksum itself."""
    return zlib.crc32(np.ascontiguousarray(voxels).data, zlib.crc32(header.tobytes()[HEADER["checksum"].itemsize :]))


def _lock(cache: Path) -> AcquireReturnProxy[FileLock]:
    """Let one process at a time add entries; the system frees the lock of one that is killed."""
    lock = FileLock(cache.with_name(f"{cache.name}.lock"))
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        print(f"waiting for another process that prepares {cache}", flush=True)
        return lock.acquire()
