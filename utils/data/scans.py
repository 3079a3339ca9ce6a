"""Scans on the model's grid: read from files, or from a cache made on first use."""

import glob
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from filelock import AcquireReturnProxy, FileLock, Timeout
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from utils.common.errors import InputError, ignore_interrupts
from utils.common.files import replacing
from utils.data.images import brain_statistics, deviation_file, encode_volume, model_grid, read_image

FORMAT = 2  # of the cache; another number makes every cache stale
TYPES = tuple(np.dtype(name) for name in ("uint8", "int16", "float32"))
STAMP = ["name", "size", "modified"]
HINT = "set another CACHE_FOLDER (--cache_folder), or '' for no cache"


class Scan(NamedTuple):
    """A scan before normalization: its intensities are ``voxels * slope + intercept``.

    Parameters
    ----------
    voxels : (D, H, W) uint8, int16 or float32 array or tensor
        The smallest of these types that loses nothing.
    slope, intercept : float
    mean, deviation : float
        What normalization takes off, and what it divides by; see `utils.data.images.brain_statistics`.
    """

    voxels: Any
    slope: float
    intercept: float
    mean: float
    deviation: float


class ScanStore:
    """Read scans, from a cache where there is one.

    Parameters
    ----------
    voxel_size : int, mm, of the model's grid
    normalization : {"brain", "legacy", "registered_sd", "native_sd"}
        See `utils.data.images.read_image`.
    cache_folder : Path or None
        Where the caches lie, one for each folder of scans; None reads the
        scans themselves each time.
    workers : int
        Processes that read scans in `prepare`; 0 reads in this one.

    Notes
    -----
    A cache is a file of voxels, one scan after the other, and an index that
    names it by the hash of its own content. The index is replaced as a
    whole, after the voxels have reached the disk: whoever reads an index has
    the voxels that belong to it, whatever another process does meanwhile,
    and what a killed process leaves behind is never read.
    """

    def __init__(
        self,
        voxel_size: int,
        normalization: str,
        cache_folder: Path | None = None,
        workers: int = 0,
    ) -> None:
        self.voxel_size = voxel_size
        self.normalization = normalization
        self.cache_folder = cache_folder
        self.workers = workers
        self._cached: dict[Path, tuple[_Cache, int]] = {}

    def prepare(self, paths: Sequence[Path]) -> list[str]:
        """Check scans and bring their caches up to date; return every problem.

        Only scans that are new, or changed in size or time of modification,
        are read; without a cache, or where it cannot be written, all are.

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
            return [scan for scan in self._read_all(paths) if isinstance(scan, str)]
        problems: list[str] = []
        for folder in dict.fromkeys(path.parent for path in paths):
            problems += self._prepare_folder(folder, [path for path in paths if path.parent == folder])
        return problems

    def read(self, path: Path) -> Scan:
        """Return a scan.

        Raises
        ------
        InputError
            If the scan, or its cache, cannot be read.
        """
        if path in self._cached:
            cache, row = self._cached[path]
            return cache.read(row)
        return self.read_file(path)

    def read_file(self, path: Path) -> Scan:
        """Return a scan from its file, whatever the cache holds."""
        volume, slope, intercept = read_image(path, self.voxel_size, self.normalization)
        return Scan(*encode_volume(volume, slope, intercept), *brain_statistics(volume, self.normalization))

    def _stamp(self, path: Path) -> tuple[str, int, int]:
        """Return what a changed scan is known by."""
        measured = deviation_file(path) if self.normalization == "native_sd" else None
        return _stamp(path, measured or path)

    def base_of(self, folder: Path) -> Path:
        """Return where the cache of a folder lies, but for the suffixes."""
        assert self.cache_folder is not None
        key = f"{folder.resolve()}|{self.voxel_size}|{self.normalization}|{FORMAT}"
        return self.cache_folder / f"{folder.name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"

    def _prepare_folder(self, folder: Path, paths: list[Path]) -> list[str]:
        """Bring the cache of one folder up to date."""
        base = self.base_of(folder)
        stamps = [self._stamp(path) for path in paths]
        cache, rows = self._open(base, stamps)
        problems: list[str] = []
        if (rows < 0).any():
            try:
                base.parent.mkdir(parents=True, exist_ok=True)
                lock = _lock(base)
            except OSError as error:
                print(f"note: {base}: the cache cannot be written ({error}), so scans are read anew each time; {HINT}")
                return [scan for scan in self._read_all(paths) if isinstance(scan, str)]
            with lock:
                cache, rows = self._open(base, stamps)  # another process may have made it meanwhile
                new = [index for index, row in enumerate(rows) if row < 0]
                if new:
                    try:
                        problems = self._add(base, [paths[i] for i in new], [stamps[i] for i in new], cache)
                    except OSError as error:
                        raise InputError(f"{base}: the cache cannot be written ({error}); {HINT}") from error
                    cache, rows = self._open(base, stamps)
        if cache is not None:
            self._cached |= {path: (cache, int(row)) for path, row in zip(paths, rows, strict=True) if row >= 0}
        return problems

    def _open(self, base: Path, stamps: list[Any]) -> "tuple[_Cache | None, np.ndarray]":
        """Open the cache that there is; tell the row of each scan, -1 if it is not there as it is now."""
        cache = _Cache.open(base, model_grid(self.voxel_size).shape)
        known = {} if cache is None else {s: row for row, s in enumerate(cache.index[STAMP].tolist())}
        return cache, np.array([known.get(stamp, -1) for stamp in stamps])

    def _add(self, base: Path, paths: list[Path], stamps: list[Any], old: "_Cache | None") -> list[str]:
        """Write a cache of these scans, but for unusable ones, and of those of the old one that are still there."""
        records, problems, offset = [], [], 0
        partial = _beside(base, "partial")
        try:
            with partial.open("wb") as file:

                def write(stamp: Any, scan: Scan) -> None:
                    nonlocal offset
                    voxels = np.asarray(scan.voxels)
                    records.append((*stamp, offset, TYPES.index(voxels.dtype), *map(float, scan[1:])))
                    offset += file.write(voxels.tobytes())

                for stamp, scan in zip(stamps, self._read_all(paths), strict=True):
                    if isinstance(scan, str):
                        problems.append(scan)
                    else:
                        write(stamp, scan)
                if not records:
                    return problems
                for row, stamp in enumerate([] if old is None else old.index[STAMP].tolist()):
                    if self._stamp(paths[0].parent / stamp[0]) == stamp:
                        write(stamp, old.read(row))  # type: ignore[union-attr]
                file.flush()
                os.fsync(file.fileno())
            index = make_index(records)
            data = data_path(base, index)
            os.replace(partial, data)
        finally:
            partial.unlink(missing_ok=True)
        write_index(base, index)
        for stale in set(base.parent.glob(f"{glob.escape(base.name)}.*.voxels")) - {data}:
            stale.unlink(missing_ok=True)
        print(f"{len(records)} scans of {paths[0].parent} are kept ready in {data} ({offset / 1e9:.2g} GB)", flush=True)
        return problems

    def _read_all(self, paths: Sequence[Path]) -> Any:
        """Yield each scan, or what is wrong with it, in order, read by several processes."""
        workers = min(self.workers, len(paths), os.cpu_count() or 1)
        reader = _Reader(self, paths)
        loader = DataLoader(reader, batch_size=None, num_workers=workers, worker_init_fn=ignore_interrupts)
        return tqdm(loader, "reading scans", len(paths), unit="scan", disable=None, leave=False)


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


class _Cache:
    """The scans of one folder: an index in memory, voxels in a file that is mapped scan by scan.

    Mapping one scan at a time keeps the memory of a process from growing
    with the scans that it has read.
    """

    def __init__(self, path: Path, index: np.ndarray, shape: tuple[int, int, int]) -> None:
        self.path, self.index, self.shape = path, index, shape
        self.file: IO[bytes] = path.open("rb")  # stays readable when the cache is replaced

    def __reduce__(self) -> tuple[Any, ...]:
        return _Cache, (self.path, self.index, self.shape)

    @classmethod
    def open(cls, base: Path, shape: tuple[int, int, int]) -> "_Cache | None":
        """Open a cache; None if there is none, or it is damaged."""
        try:
            index = np.load(_beside(base, "npy"), allow_pickle=False)
            cache = cls(data_path(base, index), index, shape)
        except (OSError, ValueError, EOFError):
            return None
        sizes = np.array([kind.itemsize for kind in TYPES])[index["type"]] * int(np.prod(shape))
        return cache if os.fstat(cache.file.fileno()).st_size == sizes.sum() else None

    def read(self, row: int) -> Scan:
        """Copy one scan out of the file."""
        record = self.index[row]
        try:
            voxels = np.array(np.memmap(self.file, TYPES[record["type"]], "r", int(record["offset"]), self.shape))
        except ValueError as error:
            raise InputError(f"{self.path}: the cache was cut short; start again, and it is made anew") from error
        return Scan(voxels, *(float(record[name]) for name in Scan._fields[1:]))


def make_index(records: Sequence[tuple[Any, ...]]) -> np.ndarray:
    """Make an index.

    Parameters
    ----------
    records : sequence of tuple
        Of each scan: file name, size in bytes, time of modification in ns,
        the place of its voxels in bytes, the number of their type in
        `TYPES`, slope, intercept, mean, deviation.

    Returns
    -------
    (N,) structured array
    """
    width = max((len(record[0]) for record in records), default=1)
    return np.array(records, [
        ("name", f"U{width}"), ("size", "i8"), ("modified", "i8"), ("offset", "i8"), ("type", "u1"),
        ("slope", "f8"), ("intercept", "f8"), ("mean", "f8"), ("deviation", "f8"),
    ])  # fmt: skip


def write_index(base: Path, index: np.ndarray) -> None:
    """Make a cache known, whose voxels lie at `data_path` already."""
    with replacing(_beside(base, "npy")) as temporary:
        np.save(temporary, index)


def data_path(base: Path, index: np.ndarray) -> Path:
    """Name the voxels that belong to an index."""
    return _beside(base, f"{hashlib.sha256(index.tobytes()).hexdigest()[:12]}.voxels")


def _beside(base: Path, suffix: str) -> Path:
    """Name a file of a cache."""
    return base.with_name(f"{base.name}.{suffix}")


def _stamp(path: Path, source: Path) -> tuple[str, int, int]:
    """Return the name of a scan, and size and time of modification of what is read of it."""
    try:
        status = source.stat()
    except OSError:  # said better when the scan is read
        return path.name, -1, -1
    return path.name, status.st_size, status.st_mtime_ns


def _lock(base: Path) -> AcquireReturnProxy[FileLock]:
    """Let one process at a time write a cache; the system frees the lock of one that is killed."""
    lock = FileLock(_beside(base, "lock"))
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        print(f"waiting for another process that prepares {base}", flush=True)
        return lock.acquire()
