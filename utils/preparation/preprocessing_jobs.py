"""Preprocess many scans: find them, share them out among processes, record and show the results."""

import csv
import hashlib
import json
import multiprocessing
import os
import resource
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2
import nibabel
import numpy as np
from filelock import FileLock
from pebble import ProcessExpired, ProcessPool
from tqdm import tqdm

from utils.common.errors import InputError
from utils.common.files import check_writable, origins, replacing, write_json
from utils.data.images import MNI152_T1_2MM, is_nifti
from utils.data.subjects import DESCRIPTION, DOUBTFUL, FAIL, PASS, QC_FOLDER, VERDICTS
from utils.data.tables import scan_name
from utils.preparation.quality import LIMITS, PICTURE_SIZE

MEMORY = 2 * 2**30  # bytes that one process may need
GPU_MEMORY = 4 * 2**30  # bytes of the GPU, likewise; an estimate
SCANS_PER_PROCESS = 20  # before it is replaced, so that memory stays flat
LOG_PAUSE = 30.0  # s between lines of progress where there is no terminal
MOST_SHOWN = 20  # scans of the summary
LEVELS = 4095  # of the intensities that are stored
PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}  # threads that wait do not spin
COLUMNS = (
    "name",
    "verdict",
    "reasons",
    *LIMITS,
    "signal",
    "noise",
    "seconds",
    "memory",
    "source",
    "fingerprint",
    "versions",
)


@dataclass(frozen=True)
class RawFile:
    """A raw scan and the name of what will be made of it.

    Parameters
    ----------
    name : str
        Subject, and session where there is one.
    path : Path
    """

    name: str
    path: Path


@dataclass(frozen=True)
class Settings:
    """How scans are preprocessed; see `utils.options.preparation.preprocessing_parser`."""

    output_dir: Path
    registration: str
    device: str
    keep_failed: bool
    save_masks: bool
    threads: int = 1


def find_raw_scans(source: Path) -> list[RawFile]:
    """List the scans of a file, a folder or a BIDS data set.

    Parameters
    ----------
    source : Path

    Returns
    -------
    list of RawFile, sorted by name

    Raises
    ------
    InputError
        If there is none, or two would get the same name.
    """
    if source.is_file():
        paths = [source] if is_nifti(source) else []
    elif source.is_dir():
        paths = sorted(path for path in source.iterdir() if is_nifti(path))
        for pattern in ("", "ses-*/", "sub-*/", "sub-*/ses-*/"):
            paths += sorted(path for path in source.glob(f"{pattern}anat/*_T1w.nii*") if is_nifti(path))
    else:
        raise InputError(f"{source}: no such file or folder; set INPUT (--input) to T1-weighted scans")
    if not paths:
        raise InputError(
            f"{source}: holds no scan; expected .nii or .nii.gz files, or the root of a BIDS data set with "
            "sub-*/[ses-*/]anat/*_T1w.nii.gz"
        )
    found: dict[str, Path] = {}
    problems = []
    for path in paths:
        name = scan_name(path.name)
        if name in found:
            problems.append(f"{path}: would be written to the same file as {found[name]}; rename one")
        found.setdefault(name, path)
    if problems:
        raise InputError(problems)
    return [RawFile(name, found[name]) for name in sorted(found)]


def preprocess_all(scans: Sequence[RawFile], settings: Settings, workers: int, timeout: float) -> list[dict[str, Any]]:
    """Preprocess scans in processes of their own; one that fails, hangs or dies does not stop the others.

    Parameters
    ----------
    scans : sequence of RawFile
        Those that are finished, with the same parameters, are not done again.
    settings : Settings
    workers : int
        Processes; 0: as many as processors and memory allow.
    timeout : float, s
        After which a scan is given up.

    Returns
    -------
    list of dict, the records of these scans, in their order

    Raises
    ------
    InputError
        If the output folder cannot be written.
    """
    # Imported here: these take seconds to import.
    import torch

    from utils.preparation.preprocessing import fingerprint

    folder = settings.output_dir
    check_writable(folder)
    _check_outputs(scans, folder)
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: no GPU is to be seen; use --device auto or cpu")
    content = fingerprint(settings.registration)
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
    (folder / QC_FOLDER).mkdir(parents=True, exist_ok=True)
    _write_description(folder, content, key)
    records = {scan.name: _finished(scan, settings, key) for scan in scans}
    waiting = [scan for scan in scans if records[scan.name] is None]
    if len(waiting) < len(scans):
        print(f"{len(scans) - len(waiting)} of {len(scans)} scans are finished already")
    older = [_read_record(_record_file(folder, scan.name)) for scan in waiting]
    others = sum(record is not None and record["fingerprint"] != key for record in older)
    if others:
        print(f"{others} scans were made with other parameters or packages, and are done again")
    os.environ.update({name: value for name, value in PASSIVE.items() if name not in os.environ})
    processors = len(os.sched_getaffinity(0))
    if not workers:
        room = [_main_memory() // MEMORY]
        if settings.device != "cpu" and torch.cuda.is_available():
            room.append(torch.cuda.mem_get_info()[0] // GPU_MEMORY)
        workers = max(1, min(processors, *room))
    workers = min(workers, max(1, len(waiting)))
    settings = replace(settings, threads=max(1, processors // workers))
    print(f"{len(waiting)} scans to do, {settings.registration}, {workers} at a time, into {folder}", flush=True)
    context = multiprocessing.get_context("spawn")
    pause = 0.1 if sys.stderr.isatty() else LOG_PAUSE
    try:
        with (
            ProcessPool(workers, max_tasks=SCANS_PER_PROCESS, context=context) as pool,
            tqdm(total=len(waiting), desc="preprocessing", unit="scan", mininterval=pause, smoothing=0.1) as bar,
        ):
            running: dict[Future[Any], RawFile] = {}
            queue = list(reversed(waiting))
            try:
                while queue or running:
                    while queue and len(running) < 2 * workers:
                        scan = queue.pop()
                        running[pool.schedule(_run, [scan, settings, key], timeout=timeout)] = scan
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        scan = running.pop(future)
                        records[scan.name] = _result(future, scan, settings, key, timeout)
                        bar.update()
                        counts = Counter(record["verdict"] for record in records.values() if record)
                        bar.set_postfix_str(", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS))
            except BaseException:
                pool.stop()
                raise
    finally:
        write_overview(folder)
    return [record for record in records.values() if record]


def _main_memory() -> int:
    """Return the bytes that this process may use: the machine's, or its group's if that is less."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(machine, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no such group, or no limit
        return machine


def _check_outputs(scans: Sequence[RawFile], folder: Path) -> None:
    """Refuse to replace what this command did not make of the same scan."""
    problems = []
    for scan in scans:
        output = _outputs(folder, scan.name)[0]
        record = _read_record(_record_file(folder, scan.name))
        if record is None and output.exists():
            problems.append(f"{output}: exists already and was not made here; set another OUTPUT_DIR (--output_dir)")
        elif record and record["source"] != str(scan.path.resolve()) and Path(record["source"]).exists():
            problems.append(f"{output}: was made of {record['source']}, not of {scan.path}; set another OUTPUT_DIR")
    if problems:
        raise InputError(problems)


def preprocess_file(scan: RawFile, settings: Settings, key: str) -> dict[str, Any]:
    """Preprocess one scan and write everything about it; the record comes last.

    Returns
    -------
    dict
        The record, a row of ``qc.csv``.
    """
    from utils.preparation.preprocessing import UnusableScanError, preprocess_scan
    from utils.preparation.quality import draw_picture, judge
    from utils.preparation.template import load_template

    started = time.perf_counter()
    output, picture, mask_file = _outputs(settings.output_dir, scan.name)
    record = _new_record(scan, settings.registration, key)
    kept = False
    try:
        prepared = preprocess_scan(scan.path, settings.registration, settings.device, settings.threads)
    except UnusableScanError as error:
        record |= {"verdict": FAIL, "reasons": [str(error)]}
        picture.unlink(missing_ok=True)
    else:
        verdict, reasons = judge(prepared.quality, prepared.notes)
        record |= {"verdict": verdict, "reasons": reasons, "quality": prepared.quality}
        with replacing(picture) as temporary:
            draw_picture(temporary, prepared.head, prepared.volume, load_template(), scan.name, verdict, reasons)
        if settings.save_masks:
            _save(mask_file, prepared.native_mask, nibabel.load(scan.path).affine)  # type: ignore[attr-defined]
        kept = verdict != FAIL or settings.keep_failed
        if kept:
            slope = float(prepared.volume.max()) / LEVELS or 1.0
            _save(output, np.rint(prepared.volume / slope).astype(np.int16), MNI152_T1_2MM.affine, slope)
    if not kept:
        output.unlink(missing_ok=True)  # of an earlier run with other parameters
    record["seconds"] = round(time.perf_counter() - started, 2)
    record["memory"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)  # GiB, at most so far
    write_json(_record_file(settings.output_dir, scan.name), record)
    return record


def write_overview(folder: Path) -> None:
    """Write ``qc.csv`` and ``index.html`` from the records of a folder; parts of a job array take turns."""
    with FileLock(folder / QC_FOLDER / ".lock"):
        _write_overview(folder)


def _write_overview(folder: Path) -> None:
    records = sorted(_read_records(folder), key=lambda record: record["name"])
    rows = [_row(record) for record in records]
    with replacing(folder / "qc.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("quality_page.html").render(
        title=folder.resolve().name,
        rows=[
            row | {"picture": f"{QC_FOLDER}/{row['name']}.png" if _outputs(folder, row["name"])[1].exists() else ""}
            for row in rows
        ],
        limits=LIMITS,
        verdicts=VERDICTS,
        picture_size=PICTURE_SIZE,
    )
    with replacing(folder / "index.html") as temporary:
        temporary.write_text(page, encoding="utf-8")


def summarize(records: Sequence[dict[str, Any]], folder: Path) -> int:
    """Print what came out; return the exit status: 0 if every scan passed, else 1."""
    counts = Counter(record["verdict"] for record in records)
    seconds = [record["seconds"] for record in records if record.get("quality")]
    print(f"\n{len(records)} scans: " + ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS))
    if seconds:
        print(f"  {np.median(seconds):.1f} s a scan and process in the median, {max(seconds):.1f} s at most")
    others = [record for verdict in (FAIL, DOUBTFUL) for record in records if record["verdict"] == verdict]
    width = max((len(record["name"]) for record in others[:MOST_SHOWN]), default=0)
    for record in others[:MOST_SHOWN]:
        print(f"  {record['verdict']:<9} {record['name']:<{width}}  {'; '.join(record['reasons'])}")
    if len(others) > MOST_SHOWN:
        print(f"  ... and {len(others) - MOST_SHOWN} more")
    names = {record["name"] for record in records}
    rest = [record for record in _read_records(folder) if record["name"] not in names]
    gone = [record["name"] for record in rest if not Path(record["source"]).exists()]
    if gone:
        print(f"WARNING: {folder} also holds scans whose source is gone: {', '.join(gone[:MOST_SHOWN])}")
    if {record["fingerprint"] for record in rest} - {record["fingerprint"] for record in records}:
        print(f"WARNING: {folder} also holds scans made with other parameters; see the fingerprint in qc.csv")
    print(f"  brains: {folder}   table: {folder / 'qc.csv'}   pictures: {folder / 'index.html'}")
    return 0 if counts[PASS] == len(records) else 1


def _run(scan: RawFile, settings: Settings, key: str) -> dict[str, Any] | str:
    """Preprocess one scan in a process of the pool; return its record, or what went wrong."""
    try:
        return preprocess_file(scan, settings, key)
    except Exception as error:  # whatever a package raises, the other scans go on
        return f"failed unexpectedly ({type(error).__name__}: {error})"


def _result(future: "Future[Any]", scan: RawFile, settings: Settings, key: str, timeout: float) -> dict[str, Any]:
    """Return the record of a scan, also of one whose process did not come to an end."""
    try:
        result = future.result()
    except TimeoutError:
        result = f"was given up after {timeout:g} s; raise --timeout"
    except ProcessExpired as error:
        result = f"its process died with exit code {error.exitcode}, perhaps for want of memory; lower NUM_WORKERS"
    if not isinstance(result, str):
        return result
    record = _new_record(scan, settings.registration, key) | {"verdict": FAIL, "reasons": [result], "finished": False}
    output, picture, _ = _outputs(settings.output_dir, scan.name)
    try:
        for stale in (output, picture):
            stale.unlink(missing_ok=True)
        write_json(_record_file(settings.output_dir, scan.name), record)
    except OSError as error:
        raise InputError(f"{settings.output_dir}: cannot be written ({error}); make room and run it again") from error
    return record


def _new_record(scan: RawFile, registration: str, key: str) -> dict[str, Any]:
    from utils.preparation.preprocessing import package_versions

    return {
        "name": scan.name, "source": str(scan.path.resolve()), "stamp": _stamp(scan.path), "fingerprint": key,
        "registration": registration, "versions": package_versions(), "quality": {}, "seconds": 0.0, "memory": 0.0,
        "finished": True,
    }  # fmt: skip


def _finished(scan: RawFile, settings: Settings, key: str) -> dict[str, Any] | None:
    """Return the record of a scan that need not be done again."""
    record = _read_record(_record_file(settings.output_dir, scan.name))
    if not record or not record["finished"] or record["fingerprint"] != key or record["stamp"] != _stamp(scan.path):
        return None
    output, _, mask_file = _outputs(settings.output_dir, scan.name)
    wanted = record["verdict"] != FAIL or (settings.keep_failed and record["quality"])
    if output.exists() != bool(wanted) or (settings.save_masks and record["quality"] and not mask_file.exists()):
        return None
    return record


def _read_records(folder: Path) -> list[dict[str, Any]]:
    found = (_read_record(path) for path in (folder / QC_FOLDER).glob("[!.]*.json"))
    return [record for record in found if record]


def record_of(scan: Path) -> dict[str, Any] | None:
    """Return what preprocessing noted of a brain that it wrote, or of the file that it links to; None of any other."""
    records = (_read_record(_record_file(file.parent, scan_name(file.name))) for file in origins(scan))
    return next(filter(None, records), None)


def _read_record(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _row(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record as a row of ``qc.csv``."""
    versions = " ".join(f"{name}={value}" for name, value in record["versions"].items())
    quality = {name: f"{value:.4g}" for name, value in record["quality"].items() if value is not None}
    plain = {
        name: record.get(name, "")
        for name in ("name", "verdict", "registration", "seconds", "memory", "source", "fingerprint")
    }
    return plain | quality | {"reasons": "; ".join(record["reasons"]), "versions": versions}


def _outputs(folder: Path, name: str) -> tuple[Path, Path, Path]:
    """Return the paths of a scan's brain, its picture and its native-space mask."""
    return folder / f"{name}.nii.gz", folder / QC_FOLDER / f"{name}.png", folder / "masks" / f"{name}.nii.gz"


def _record_file(folder: Path, name: str) -> Path:
    return folder / QC_FOLDER / f"{name}.json"


def _stamp(path: Path) -> list[int]:
    """Return what changes when a file is replaced; nothing for a link to nowhere."""
    try:
        status = path.stat()
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]


def _save(path: Path, voxels: np.ndarray, affine: np.ndarray, slope: float | None = None) -> None:
    """Write a NIfTI file, whole or not at all."""
    image = nibabel.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm")
    image.header.set_slope_inter(slope, 0 if slope else None)
    if slope:
        image.set_sform(affine, "mni")
        image.set_qform(affine, "mni")
    with replacing(path) as temporary:
        nibabel.save(image, temporary)


def _write_description(folder: Path, content: dict[str, Any], key: str) -> None:
    """Write ``dataset_description.json``, as BIDS derivatives have one."""
    write_json(
        folder / DESCRIPTION,
        {
            "Name": "Brain-extracted T1-weighted scans in MNI152 space, 2 mm",
            "BIDSVersion": "1.10.0",
            "DatasetType": "derivative",
            "GeneratedBy": [{"Name": "TSAN preprocess.py", "Fingerprint": key, "Parameters": content}],
        },
    )
