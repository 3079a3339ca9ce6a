"""Measure loading: from files and from the cache, while training, and at the start of a large cohort."""

import errno
import os
import shutil
import statistics
import tempfile
import time
from argparse import Namespace
from itertools import islice
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch

from benchmarks.network_speed import OURS, build, bytes_in, variants_of
from utils.common.machine import usable_cores
from utils.data.cohort import load_cohort
from utils.data.dataset import EpochBatches, ScanDataset, make_loader
from utils.data.scans import ScanStore
from utils.data.subjects import Subject
from utils.preparation.simulation import draw_subjects, write_scan

SCANS = 4  # simulated, whose loading is measured
BATCHES_OF_COHORT = 200  # after which the memory is measured


def measure_loader(args: Namespace, device: torch.device) -> dict[str, float]:
    """Measure reading from files and from the cache, the loader alone, and how long training waits for it.

    All scans are in the system's page cache.
    """
    with tempfile.TemporaryDirectory() as folder:
        paths = [write_scan(person, Path(folder), 0, args.voxel_size) for person in draw_subjects(SCANS)]
        store = ScanStore(args.voxel_size, "brain", Path(folder) / "cache")
        store.prepare(paths)
        result = measure_reading(paths, store, 4 * args.rounds)
        ahead = 2 * min(args.num_workers, usable_cores())  # batches that the loader has ready
        wanted = max(10, 4 * ahead)
        copies = -(-(ahead + wanted) * args.batch_size // len(paths))
        subjects = [Subject(path.name, path, 50.0 + index % 30, 0) for index, path in enumerate(paths * copies)]

        def batches() -> Any:
            order = EpochBatches([s.chronological_age for s in subjects], args.batch_size, 0, least=args.batch_size)
            loader = iter(make_loader(ScanDataset(subjects, store), order, args.num_workers, device))
            for _ in range(ahead):
                next(loader)
            return loader

        loader = batches()
        started = time.perf_counter()
        scans = sum(len(batch["sex"]) for batch in islice(loader, wanted))
        result["loader_scans_per_second"] = scans / (time.perf_counter() - started)
        ours = next(variant for variant in reversed(variants_of(args)) if variant.name == OURS)
        step = build(ours, "training", args, device)
        loader = batches()
        step(next(loader))
        waited, started = 0.0, time.perf_counter()
        for _ in range(min(wanted - 1, 4 * args.rounds)):
            asked = time.perf_counter()
            batch = next(loader)
            waited += time.perf_counter() - asked
            step(batch)
        result["waiting_share_of_training"] = waited / (time.perf_counter() - started)
    return result


def measure_reading(paths: list[Path], store: ScanStore, rounds: int) -> dict[str, float]:
    """Measure decoding scans, without any checks, against reading them from the cache."""

    def decode(path: Path) -> None:
        np.asarray(nibabel.load(path).dataobj, np.float32)  # type: ignore[attr-defined]

    times: dict[str, list[float]] = {"files": [], "cache": []}
    for _ in range(rounds + 1):
        for name, read in (("files", decode), ("cache", store.read)):
            started = time.perf_counter()
            for path in paths:
                read(path)
            times[name].append((time.perf_counter() - started) / len(paths))
    files, cache = (statistics.median(times[name][1:]) for name in ("files", "cache"))
    return {"files_seconds_per_scan": files, "cache_seconds_per_scan": cache, "ratio": files / cache}


def measure_cohort(args: Namespace, device: torch.device) -> dict[str, float]:
    """Start a loader over a cohort of any size, whose scans and cache entries are links to those of one scan."""
    with tempfile.TemporaryDirectory() as folder:
        names = [f"sub-{number:06d}.nii.gz" for number in range(args.cohort_size)]
        table, cache = (Path(folder) / name for name in ("labels.csv", "cache"))
        table.write_text("subject_id,age,sex\n" + "".join(f"{name},{20 + i % 60},F\n" for i, name in enumerate(names)))
        scan = write_scan(draw_subjects(1)[0], Path(folder), 0, args.voxel_size)
        scan = scan.rename(scan.with_name(names[0]))
        ScanStore(args.voxel_size, "brain", cache).prepare([scan])
        (entry,) = cache.glob(f"*/{scan.name}*")
        for name in names[1:]:  # an entry is known by its scan's name, size and time, and links share the last two
            entry = link(entry, entry.with_name(entry.name.replace(scan.name, name)))
            scan = link(scan, scan.with_name(name))
        started = time.perf_counter()
        store = ScanStore(args.voxel_size, "brain", cache)
        subjects = load_cohort({"train": scan.parent}, table, store)["train"]
        order = EpochBatches([subject.chronological_age for subject in subjects], args.batch_size, 0)
        batches = iter(make_loader(ScanDataset(subjects, store), order, args.num_workers, device))
        next(batches)
        first = time.perf_counter() - started
        for _ in islice(batches, BATCHES_OF_COHORT):
            pass
        workers = [worker.pid for worker in batches._workers] if args.num_workers else []  # type: ignore[attr-defined]
        # Of pages that several processes share, each counts its share.
        memory = sum(bytes_in(f"/proc/{pid}/smaps_rollup", "Pss") for pid in (os.getpid(), *workers))
        return {"seconds_to_first_batch": first, "resident_GiB_of_all_processes": memory / 2**30}


def link(source: Path, target: Path) -> Path:
    """Make a hard link, or a copy where the file system allows no more links; return it."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno != errno.EMLINK:
            raise
        shutil.copy2(source, target)
    return target
