"""Preprocess many scans in several processes, and record the result of each."""

import multiprocessing
import os
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from pebble import ProcessExpired, ProcessPool
from tqdm import tqdm

from utils.common.choices import WHOLE, Shard
from utils.common.errors import InputError
from utils.common.files import check_writable, replacing, write_json
from utils.common.log_file import keep_log
from utils.common.machine import usable_cores, use_gpu
from utils.common.provenance import software_version
from utils.data.image_files import UnusableScanError, open_image
from utils.preparation.layouts import (
    FLAT,
    brain_path,
    mask_path,
    path_in_other_layout,
    remove_brain,
    save_brain,
    save_image,
    write_description,
)
from utils.preparation.overview import picture_path, write_overview
from utils.preparation.parameters import fingerprint, fingerprint_key, package_versions
from utils.preparation.raw_scans import RawFile
from utils.preparation.records import FAIL, QC_FOLDER, VERDICTS, Record, read_record, record_path

MEMORY, MEMORY_OF_VOXEL = 1.2 * 2**30, 40  # bytes that one process needs, and for each voxel of the largest scan
GPU_FILES = ("/dev/nvidia0", "/dev/kfd", "/dev/dxg")  # of NVIDIA, AMD, Windows; without them torch need not be asked
GPU_MEMORY = 4 * 2**30  # the same for the GPU; an estimate
SCANS_PER_PROCESS = 20  # after which a process is replaced, so that its memory does not grow
LOG_PAUSE = 30.0  # s between two reports of progress, if they go to a file
EXTRACTED = {"auto": None, "true": True, "false": False}  # what --brain_extracted means
PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}  # waiting threads leave their cores to others


@dataclass(frozen=True)
class Settings:
    """How scans are preprocessed; see `utils.options.preparation.preprocessing_parser`."""

    output_dir: Path
    registration: str
    device: str
    keep_failed: bool
    save_masks: bool
    brain_extracted: str = "auto"
    overwrite: bool = False
    threads: int = 1
    layout: str = FLAT


def preprocess_all(
    scans: Sequence[RawFile], settings: Settings, workers: int, timeout: float, shard: Shard = WHOLE
) -> list[Record]:
    """Preprocess scans in several processes; one that fails, hangs or dies does not stop the others.

    Parameters
    ----------
    scans : sequence of RawFile
        Those already finished with the same parameters are skipped.
    settings : Settings
    workers : int
        Processes; 0: as many as CPU cores and memory allow.
    timeout : float, s
        Time limit for each scan.
    shard : Shard
        Which part of them to do.

    Returns
    -------
    list of dict, the records of this part of the scans, in the same order

    Raises
    ------
    InputError
        If the output folder cannot be written, holds other scans of these names,
        or holds scans made with other parameters and `settings.overwrite` is false.
    """
    folder, scans = settings.output_dir, shard.of(scans)
    check_writable(folder)
    content = fingerprint(settings.registration)
    key = fingerprint_key(content)
    records = {scan.name: read_record(folder, scan.name) for scan in scans}
    _check_outputs(scans, records, settings, key)
    gpu_memory = _gpu_memory(settings.device)
    (folder / QC_FOLDER).mkdir(parents=True, exist_ok=True)
    keep_log(folder, "cuda" if gpu_memory else "cpu", shard)
    write_description(folder, settings.layout, content, key)
    waiting = [scan for scan in scans if not _is_finished(scan, records[scan.name], settings, key)]
    if len(waiting) < len(scans):
        print(f"{len(scans) - len(waiting)} of {len(scans)} scans are already finished")
    cores = usable_cores()
    if not workers:
        room = [int(_main_memory() // _memory_needed(waiting))]
        if gpu_memory:
            room.append(gpu_memory // GPU_MEMORY)
        workers = max(1, min(cores, *room))
    workers = min(workers, max(1, len(waiting)))
    settings = replace(settings, threads=max(1, cores // workers))
    print(f"scans to do: {len(waiting)}, {settings.registration}, {workers} at a time, into {folder}", flush=True)
    try:
        records |= {record["name"]: record for record in _run_all(waiting, settings, key, workers, timeout)}
    finally:
        write_overview(folder)
    return [record for record in records.values() if record]


def _run_all(scans: Sequence[RawFile], settings: Settings, key: str, workers: int, timeout: float) -> Iterator[Record]:
    """Preprocess scans in a pool of processes; yield their records."""
    os.environ.update({name: value for name, value in PASSIVE.items() if name not in os.environ})
    pause = 0.1 if sys.stderr.isatty() else LOG_PAUSE
    counts: Counter[str] = Counter()
    pool = ProcessPool(workers, max_tasks=SCANS_PER_PROCESS, context=multiprocessing.get_context("spawn"))
    with pool, tqdm(total=len(scans), desc="preprocessing", unit="scan", mininterval=pause, smoothing=0.1) as bar:
        try:
            futures = [pool.schedule(_run, [scan, settings, key], timeout=timeout) for scan in scans]
            for scan, future in zip(scans, futures, strict=True):
                record = _result(future, scan, settings, key, timeout)
                counts[record["verdict"]] += 1
                bar.set_postfix_str(", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS))
                bar.update()
                yield record
        except BaseException:
            pool.stop()
            raise


def _memory_needed(scans: Sequence[RawFile]) -> float:
    """Return the bytes that a process may need for the largest of some scans; one that cannot be read needs none."""
    largest = 0
    for scan in scans:
        with suppress(UnusableScanError), open_image(scan.path) as image:
            largest = max(largest, prod(image.shape))
    return MEMORY + MEMORY_OF_VOXEL * largest


def _main_memory() -> int:
    """Return the bytes that this process may use: the machine's, or the limit of its control group."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(machine, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no such group, or no limit
        return machine


def _gpu_memory(device: str) -> int:
    """Return the free bytes of the GPU's memory, 0 if none is used."""
    if device == "auto" and not any(map(os.path.exists, GPU_FILES)):
        return 0
    if not use_gpu(device):
        return 0
    import torch  # takes a second, which a machine without GPU need not wait

    return torch.cuda.mem_get_info()[0]


def _check_outputs(
    scans: Sequence[RawFile], records: Mapping[str, Record | None], settings: Settings, key: str
) -> None:
    """Refuse to replace a file unless preprocessing made it from the same scan, and in the same way."""
    folder, problems, others = settings.output_dir, [], []
    for scan in scans:
        output = brain_path(folder, scan.name, settings.layout)
        record = records[scan.name]
        if record is None and output.exists():
            problems.append(f"{output}: already exists and was not made here; set another OUTPUT_DIR (--output_dir)")
        elif other := path_in_other_layout(folder, scan.name, settings.layout):
            problems.append(f"{other}: is in another layout than {settings.layout}; set LAYOUT, or another OUTPUT_DIR")
        elif record and record["source"] != str(scan.path.resolve()) and Path(record["source"]).exists():
            problems.append(f"{output}: was made from {record['source']}, not {scan.path}; set another OUTPUT_DIR")
        elif record and output.exists() and (record["fingerprint"], record["brain_extracted"]) != (
            key, settings.brain_extracted,
        ):  # fmt: skip
            others.append(scan.name)
    if others and not settings.overwrite:
        problems.append(
            f"{folder}: {len(others)} scans, such as {others[0]}, are finished, but with other parameters or packages; "
            "set another OUTPUT_DIR (--output_dir), or OVERWRITE=true (--overwrite true) to make them again"
        )
    if problems:
        raise InputError(problems)


def _run(scan: RawFile, settings: Settings, key: str) -> Record | str:
    """Preprocess one scan in a process of the pool; return its record, or what went wrong."""
    try:
        return preprocess_file(scan, settings, key)
    except Exception as error:  # whatever a package raises, the other scans go on
        return f"failed unexpectedly ({type(error).__name__}: {error})"


def preprocess_file(scan: RawFile, settings: Settings, key: str) -> Record:
    """Preprocess one scan; write brain, picture, mask and, last, the record.

    Parameters
    ----------
    scan : RawFile
    settings : Settings
    key : str
        Fingerprint of the parameters.

    Returns
    -------
    dict
        The record.
    """
    from utils.preparation.preprocessing import preprocess_scan
    from utils.preparation.quality import draw_picture, judge
    from utils.preparation.template import load_template

    started = time.perf_counter()
    folder = settings.output_dir
    picture = picture_path(folder, scan.name)
    record = _new_record(scan, settings, key)
    kept = False
    try:
        prepared = preprocess_scan(
            scan.path, settings.registration, settings.device, settings.threads, EXTRACTED[settings.brain_extracted]
        )
    except UnusableScanError as error:
        record |= {"verdict": FAIL, "reasons": [str(error)]}
        picture.unlink(missing_ok=True)
    else:
        verdict, reasons = judge(prepared.quality, prepared.notes)
        record |= {"verdict": verdict, "reasons": reasons, "quality": prepared.quality}
        record["extracted"] = prepared.extracted
        with replacing(picture) as temporary:
            draw_picture(temporary, prepared.head, prepared.volume, load_template(), scan.name, verdict, reasons)
        if settings.save_masks:
            with open_image(scan.path) as image:
                save_image(mask_path(folder, scan.name), prepared.native_mask, image.affine)
        kept = verdict != FAIL or settings.keep_failed
        if kept:
            save_brain(folder, scan.name, settings.layout, prepared.volume)
    if not kept:
        remove_brain(folder, scan.name, settings.layout)  # of an earlier run with other parameters
    record["seconds"] = round(time.perf_counter() - started, 2)
    record["memory"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)  # GiB, peak of the process
    write_json(record_path(folder, scan.name), record)
    return record


def _result(future: "Future[Any]", scan: RawFile, settings: Settings, key: str, timeout: float) -> Record:
    """Return the record of a scan, even if its process hung or died."""
    try:
        result = future.result()
    except TimeoutError:
        result = f"took more than {timeout:g} s; increase --timeout"
    except ProcessExpired as error:
        result = f"its process died with exit code {error.exitcode}, perhaps out of memory; lower NUM_WORKERS"
    if not isinstance(result, str):
        return result
    record = _new_record(scan, settings, key) | {"verdict": FAIL, "reasons": [result], "finished": False}
    folder = settings.output_dir
    try:
        remove_brain(folder, scan.name, settings.layout)
        picture_path(folder, scan.name).unlink(missing_ok=True)
        write_json(record_path(folder, scan.name), record)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error}); make room and run it again") from error
    return record


def _new_record(scan: RawFile, settings: Settings, key: str) -> Record:
    """Start the record of a scan; ``finished`` is false if another run should try again."""
    return {
        "name": scan.name, "source": str(scan.path.resolve()), "stamp": _stamp(scan.path), "fingerprint": key,
        "registration": settings.registration, "brain_extracted": settings.brain_extracted, "extracted": None,
        "versions": package_versions(), "software_version": software_version(), "quality": {}, "seconds": 0.0,
        "memory": 0.0, "finished": True,
    }  # fmt: skip


def _is_finished(scan: RawFile, record: Record | None, settings: Settings, key: str) -> bool:
    """Tell from its record whether a scan can be skipped."""
    folder = settings.output_dir
    if not record or not record["finished"] or record["fingerprint"] != key or record["stamp"] != _stamp(scan.path):
        return False
    if record["brain_extracted"] != settings.brain_extracted:
        return False
    wanted = record["verdict"] != FAIL or (settings.keep_failed and record["quality"])
    if brain_path(folder, scan.name, settings.layout).exists() != bool(wanted):
        return False
    return not settings.save_masks or not record["quality"] or mask_path(folder, scan.name).exists()


def _stamp(path: Path) -> list[int]:
    """Return size and time, which change when a file is replaced; nothing for a broken link."""
    try:
        status = path.stat()
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]
